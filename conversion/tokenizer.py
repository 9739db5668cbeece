# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a converted folder, its chat template, and its stop tokens."""

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
OTHERS = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.tiktoken")  # other tokenizers, which cannot be converted
# Sizes of the released vocabulary, in its config.json and in its configuration class. The released config.json does not
# list all ids that end a turn; `generation_config.json` in the root does.
RELEASED_SIZES = (76800, 75904)
# Limits for templates and tokenizers, which are untrusted programs.
TEMPLATE_SECONDS, TEMPLATE_BYTES = 10, 1 << 30
LOAD_SECONDS, CONVERSION_SECONDS, TOKENIZER_BYTES = 60, 1200, 4 << 30
PROBE = "".join(map(chr, range(32, 127))) + "\taaaaaaaa 1234\n    é ß 中文 🙂 ▁"


def write_tokenizer(
    out: Folder, source: Path, config: PreTrainedConfig, is_plt_source: bool, with_code: bool = True
) -> dict:
    """
    Writes the tokenizer and chat template of the folder `source` to `out`, if it has any. `tokenizer.json` is copied,
    or made from the SentencePiece model `tokenizer.model`. References to the source's code are removed. A PLT source
    (`is_plt_source`) with a ChatML vocabulary but no template gets this package's template. `with_code` copies the
    tokenizer class for a PLT; without it, the library's own class is named, which gives the same ids.

    Returns the fields of `generation_config.json`: the source's own, or the recommended sampling for the released
    vocabulary. The stop tokens always include all tokens that end a turn. Raises ValueError for a tokenizer that cannot
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
            f"The source has {found[0]}, but neither tokenizer.json nor tokenizer.model. First load its tokenizer with "
            "Transformers and `save_pretrained` it to the source."
        )
    else:
        vocabulary = {}
    template = fields.pop("chat_template", None)
    if template is not None and not isinstance(template, str):
        raise ValueError("tokenizer_config.json has several chat templates. Keep one, as a string, or none.")
    if vocabulary:
        for name in COPIED:
            if (source / name).exists():
                out.copy(inside(source, name))
        fields = {name: value for name, value in fields.items() if name not in DROPPED}
        has_class = is_plt and with_code
        named = chat.tokenizer_config_fields() if has_class else {"tokenizer_class": "PreTrainedTokenizerFast"}
        out.write_json("tokenizer_config.json", fields | named)
        if has_class:
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
    """Returns a list of the token ids in a configuration field, which holds one, several or None."""
    return token_ids if isinstance(token_ids, list) else [token_ids]


def _content(token: str | dict | None) -> str | None:
    """Returns the text of a special token in tokenizer_config.json."""
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
    Loads the tokenizer in `folder`, or returns None without `tokenizer.json`. Runs no code from the folder. Raises
    ValueError if the tokenizer is invalid.
    """
    if not (Path(folder) / "tokenizer.json").exists():
        return None
    for name in ("tokenizer_config.json", *(name for name in COPIED if name.endswith(".json"))):
        if (Path(folder) / name).exists():
            read_json(Path(folder) / name)  # so that an error names the file
    with layout.refusals("tokenizer.json"):
        return _tried(lambda: tokenizer_class.from_pretrained(folder))


def check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """
    Raises ValueError if the chat template exceeds the limits for a short message. Ignores errors that the template
    itself raises, because it may need other roles.
    """
    try:
        render(tokenizer, [{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    except (TimeoutError, MemoryError) as error:
        raise ValueError(f"The chat template cannot be used: {error}. Replace chat_template.jinja.") from None
    except ValueError:
        pass


def render(tokenizer: PreTrainedTokenizerFast, messages: list[dict], seconds: float | None = None, **options) -> str:
    """
    Renders messages with the tokenizer's chat template, within limits. Raises TimeoutError or MemoryError if it exceeds
    them, and ValueError if the template raises an error.
    """

    def call() -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    return run_limited(call, TEMPLATE_SECONDS if seconds is None else seconds, TEMPLATE_BYTES)


def _tried(load: Callable[[], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """
    Loads the tokenizer, after first loading it and encoding a text in a process with limits. This exposes replacements
    that double a text repeatedly, and regular expressions that backtrack.
    """

    def attempt() -> None:
        load()(PROBE)

    run_limited(attempt, LOAD_SECONDS, TOKENIZER_BYTES)
    return load()


def _from_sentencepiece(folder: Path) -> tuple[str, dict]:
    backend, fields = spm.convert_folder(folder)
    return backend.to_str(pretty=True), fields
