# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Texts to measure a model on: reads files, folders and JSON Lines, and draws a sample of limited size."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..utils.files import visible_files
from .startup import Command


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Data = Annotated[
    list[Path],
    typer.Option(metavar="FILES", help="Held-out text: files, folders, or .jsonl with a `text` on every line."),
]


class ManyFiles(Command):
    """Command whose `--data` takes every argument up to the next option, so that `--data *.py` works."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        given, files = [], 0
        for arg in args:
            files = 1 if arg == "--data" else files + 1 if files and not arg.startswith("-") else 0
            given += ["--data", arg] if files > 2 else [arg]
        return super().parse_args(ctx, given)


def read_texts(paths: list[Path]) -> dict[str, str]:
    """
    Returns texts by name, which is their path below the common folder.

    Folders are searched recursively; hidden files, blank files and files that are not UTF-8 are skipped there.

    Raises:
        ValueError: if a named file is missing or not UTF-8 text, or there is no text at all.
    """
    found = {}
    for path in paths:
        if path.is_dir():
            for file in visible_files(path):
                try:
                    found |= {key: text for key, text in _read(file) if text.strip()}
                except ValueError:
                    if file.suffix == ".jsonl":
                        raise
        else:
            found |= dict(_read(path))
    if not found:
        raise ValueError(f"There is no text in {', '.join(map(str, paths))}. Name files that contain text.")
    shared = os.path.commonpath([file.absolute().parent for file, _ in found])
    names = [f"{file.absolute().relative_to(shared).as_posix()}{line}" for file, line in found]
    names = [name.encode(errors="backslashreplace").decode() for name in names]  # file names may be arbitrary bytes
    return dict(zip(names, found.values(), strict=True))


def read_text(path: Path) -> str:
    """Returns the text of one file. Raises ValueError if it is missing or not UTF-8 text."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text. Convert it or leave it out.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def _read(path: Path) -> Iterator[tuple[tuple[Path, str], str]]:
    """Yields the texts of one file, each with the file and a suffix that names the line (empty for a whole file)."""
    text = read_text(path)
    if path.suffix != ".jsonl":
        if "\0" in text:
            raise ValueError(f"{path} is not a text file: it contains NUL characters.")
        yield (path, ""), text
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                value = None
            if not isinstance(value, str):
                raise ValueError(f'Line {number} of {path} is not a JSON object with a "text".')
            yield (path, f":{number}"), value.encode(errors="replace").decode()  # JSON may hold lone surrogates


def sample(
    tokenizer: "PreTrainedTokenizerBase", texts: dict[str, str], max_tokens: int, seed: int
) -> tuple[dict[str, str], str]:
    """
    Draws texts at random until they have `max_tokens` tokens, and returns them in their original order.

    Texts are kept whole, except that a text longer than `max_tokens` is cut to its beginning. The second value says
    what was left out, "" if nothing. Raises the ValueErrors of `encode_documents`.
    """
    from ..diagnostics import encode_documents

    order = list(texts)
    random.Random(seed).shuffle(order)
    chosen, cut, tokens = {}, [], 0
    while order and tokens < max_tokens:
        name = order.pop()
        (document,) = encode_documents(tokenizer, {name: texts[name]})
        chosen[name], count = texts[name], len(document.ids) - 1
        if count > max_tokens and (part := _first_tokens(tokenizer, texts[name], max_tokens)):
            chosen[name], count = part, max_tokens
            cut.append(name)
        tokens += count
    notes = []
    if order:
        notes.append(f"{len(chosen)} of {len(texts)} documents, drawn at random until they had {max_tokens:,} tokens.")
    if cut:
        notes.append(f"Only the first {max_tokens:,} tokens of {', '.join(cut)}.")
    return {name: chosen[name] for name in texts if name in chosen}, " ".join(notes)


def _first_tokens(tokenizer: "PreTrainedTokenizerBase", text: str, count: int) -> str:
    """Returns the text of the first `count` − 1 tokens: the end token, added later, is counted too."""
    from ..diagnostics.lens import tokenize

    _, parts = tokenize(tokenizer, text)
    return "".join(parts[: count - 1]) or parts[0]
