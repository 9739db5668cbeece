# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by the commands: sizes, progress bars, and printing of results."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from ..utils.terminal import HIDDEN, printable


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str) -> int:
    """Parses a size such as `5GB` into bytes. Raises typer.BadParameter if it is not a size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2] or "B"]) if match else 0
    if size < 1:
        raise typer.BadParameter(f"{text!r} is not a size such as 5GB or 500MB.")
    return size


def human_size(size: float) -> str:
    """Formats bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (bytes done, total bytes) that updates a bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def require_text(text: str | None, what: str) -> None:
    """Raises ValueError if `text` was read from bytes that are not UTF-8: no tokenizer accepts it."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not UTF-8 text. Convert it to UTF-8.") from None


def chosen_length(length: int | None, maximum: int) -> int:
    """Returns the option --length, by default the model's maximum. Reports on standard error if it is larger."""
    if length is not None and length > maximum:
        print(f"note: --length {length} is more than the model's maximum of {maximum} tokens", file=sys.stderr)
    return length or maximum


def require_stop(stop: list[str] | None) -> None:
    """Raises an error unless every stop text can occur in a reply."""
    for text in stop or []:
        if not text:
            raise typer.BadParameter("--stop needs a text that is not empty.")
        require_text(text, "--stop")


def print_result(document: dict, as_json: bool, table: Table | str) -> None:
    """Prints the document as JSON, or the table. The caller passes the table's cells through `printable`."""
    if as_json:
        text = json.dumps(document, indent=1, ensure_ascii=False)
        print(HIDDEN.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text))
    else:
        table = printable(table, line_ends=True) if isinstance(table, str) else table
        Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False, emoji=False).print(table)
