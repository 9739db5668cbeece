# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a converted folder, its chat template, and where generation stops."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from ..configuration_plt import IQuestPLTCoderConfig
from ..tokenization import bpe, chat, spm
from ..tokenization.tokenization_plt import IQuestPLTCoderTokenizer
from . import layout
from .checkpoint import inside, read_json
from .limits import run_limited
from .writer import Folder


COPIED = ("tokenizer.model", "special_tokens_map.json", "added_tokens.json")
DROPPED = ("auto_map", "tokenizer_class", "is_local", "local_files_only", "name_or_path")
TEMPLATE = "chat_template.jinja"
OTHERS = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.tiktoken")  # of tokenizers that are not converted
# Sizes of the released vocabulary, in its config.json and in its configuration class. Which ids end a turn the former
# does not say: see `generation_config.json` in the root.
RELEASED_SIZES = (76800, 75904)
# A template and a tokenizer are programs of somebody else's: what they may take.
TEMPLATE_SECONDS, TEMPLATE_BYTES = 10, 1 << 30
LOAD_SECONDS, CONVERSION_SECONDS, TOKENIZER_BYTES = 60, 1200, 4 << 30
PROBE = "".join(map(chr, range(32, 127))) + "\taaaaaaaa 1234\n    é ß 中文 🙂 ▁"


def write_tokenizer(out: Folder, source: Path, config: PreTrainedConfig, is_plt_source: bool) -> dict:
    """
    Writes the tokenizer of the folder `source` to `out`, if it has one: `tokenizer.json`, made from the SentencePiece
    model `tokenizer.model` if need be, without references to code of the source; and the source's chat template, or,
    if `is_plt_source` says that the source is a PLT, with a ChatML vocabulary and no template, that of this package.

    Returns the fields of `generation_config.json`: the source's own, the recommended sampling for the released
    vocabulary, and in any case all tokens that end a turn as stop tokens. Raises ValueError for a tokenizer that cannot
    be converted exactly.
    """
    is_plt = isinstance(config, IQuestPLTCoderConfig)
    fields = _json_or_empty(source, "tokenizer_config.json")
    for name in (*COPIED, "tokenizer.json", TEMPLATE):  # before any of them is opened
        if os.path.lexists(source / name):
            path = inside(source, name)
            if name in COPIED and name.endswith(".json"):
                read_json(path)
    if (source / "tokenizer.json").exists():
        out.copy(inside(source, "tokenizer.json"))
        with layout.refusals("tokenizer.json"):
            file = str(out.path / "tokenizer.json")
            vocabulary = _tried(lambda: PreTrainedTokenizerFast(tokenizer_file=file)).get_vocab()
    elif (source / "tokenizer.model").exists():
        with layout.refusals("tokenizer.model"):
            text, fields = run_limited(lambda: _from_sentencepiece(source), CONVERSION_SECONDS, TOKENIZER_BYTES)
        out.write_text("tokenizer.json", text)
        vocabulary = Tokenizer.from_str(text).get_vocab()
    elif found := [name for name in OTHERS if (source / name).exists()]:
        raise ValueError(
            f"The source has {found[0]}, and neither tokenizer.json nor tokenizer.model: load its tokenizer with "
            "Transformers and `save_pretrained` it to the source first."
        )
    else:
        vocabulary = {}
    template = fields.pop("chat_template", None)
    if template is not None and not isinstance(template, str):
        raise ValueError("tokenizer_config.json has several chat templates: leave one, as a text, or none.")
    if vocabulary:
        for name in COPIED:
            if (source / name).exists():
                out.copy(inside(source, name))
        fields = {name: value for name, value in fields.items() if name not in DROPPED}
        named = chat.tokenizer_config_fields() if is_plt else {"tokenizer_class": "PreTrainedTokenizerFast"}
        out.write_json("tokenizer_config.json", fields | named)
        if is_plt:
            out.copy(layout.ROOT / chat.TOKENIZER_FILE, chat.TOKENIZER_FILE)
        if (source / TEMPLATE).exists():
            out.copy(inside(source, TEMPLATE))
        elif template is not None:
            out.write_text(TEMPLATE, template)
        elif is_plt_source and {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys():
            out.copy(layout.ROOT / TEMPLATE)
    is_released = is_plt_source and config.vocab_size in RELEASED_SIZES
    generation = _generation_config(source, config, vocabulary, is_released)
    pad = vocabulary.get(_content(fields.get("pad_token")))
    return generation if pad is None else generation | {"pad_token_id": pad}


def as_list(token_ids: int | list[int] | None) -> list:
    """Token ids as configurations have them: one, several, or None."""
    return token_ids if isinstance(token_ids, list) else [token_ids]


def _content(token: str | dict | None) -> str | None:
    """The text of a special token, as tokenizer_config.json has it."""
    return token.get("content") if isinstance(token, dict) else token


def _generation_config(source: Path, config: PreTrainedConfig, vocabulary: dict[str, int], is_released: bool) -> dict:
    fields = _json_or_empty(source, "generation_config.json")
    released = json.loads((layout.ROOT / "generation_config.json").read_text())
    is_released = is_released and vocabulary.get("<|im_end|>", released["eos_token_id"][1]) in released["eos_token_id"]
    if is_released and not fields:
        fields = dict(released)
    stops = []
    for ids in (config.eos_token_id, fields.get("eos_token_id"), released["eos_token_id"] if is_released else None):
        stops += as_list(ids)
    stops += [vocabulary.get(token) for token in bpe.STOP_TOKENS]
    stops = sorted({stop for stop in stops if isinstance(stop, int) and 0 <= stop < config.vocab_size})
    fields["eos_token_id"] = stops or None
    for name in ("bos_token_id", "pad_token_id"):
        fields.setdefault(name, getattr(config, name))
    return {name: value for name, value in fields.items() if value is not None}


def _json_or_empty(folder: Path, name: str) -> dict:
    return read_json(inside(folder, name)) if os.path.lexists(folder / name) else {}


def load_tokenizer(
    folder: str | Path, tokenizer_class: type[PreTrainedTokenizerFast] = IQuestPLTCoderTokenizer
) -> PreTrainedTokenizerFast | None:
    """
    The tokenizer in `folder`, or None if there is no `tokenizer.json`. Runs no code of the folder. Raises ValueError if
    it cannot be read.
    """
    if not (Path(folder) / "tokenizer.json").exists():
        return None
    for name in ("tokenizer_config.json", *(name for name in COPIED if name.endswith(".json"))):
        if (Path(folder) / name).exists():
            read_json(Path(folder) / name)  # for an error that names the file
    with layout.refusals("tokenizer.json"):
        return _tried(lambda: tokenizer_class.from_pretrained(folder))


def check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """
    Raises ValueError if the chat template exceeds the limits for a short message. An error that the template itself
    raises is passed over: it may ask for other roles.
    """
    try:
        render(tokenizer, [{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    except (TimeoutError, MemoryError) as error:
        raise ValueError(f"The chat template cannot be used, {error}: put another chat_template.jinja there.") from None
    except ValueError:
        pass


def render(tokenizer: PreTrainedTokenizerFast, messages: list[dict], seconds: float | None = None, **options) -> str:
    """
    The messages by the tokenizer's chat template, within limits. Raises TimeoutError or MemoryError beyond them, and
    ValueError if the template raises anything.
    """

    def call() -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    return run_limited(call, TEMPLATE_SECONDS if seconds is None else seconds, TEMPLATE_BYTES)


def _tried(load: Callable[[], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """
    The tokenizer, after loading it and encoding a text by it in a process with limits. Replacements that double a text
    again and again, and expressions that backtrack, show there.
    """

    def attempt() -> None:
        load()(PROBE)

    run_limited(attempt, LOAD_SECONDS, TOKENIZER_BYTES)
    return load()


def _from_sentencepiece(folder: Path) -> tuple[str, dict]:
    backend, fields = spm.convert_folder(folder)
    return backend.to_str(pretty=True), fields
