# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The tokenizer of a converted folder, its chat template, and where generation stops."""

import json
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from ..configuration_plt import IQuestPLTCoderConfig
from ..tokenization import bpe, chat, spm
from ..tokenization.tokenization_plt import IQuestPLTCoderTokenizer
from . import layout
from .checkpoint import inside, read_json
from .writer import Folder


COPIED = ("tokenizer.model", "special_tokens_map.json", "added_tokens.json")
DROPPED = ("auto_map", "tokenizer_class", "is_local", "local_files_only", "name_or_path")
TEMPLATE = "chat_template.jinja"
# Ids of the released vocabulary that its config.json does not name, see `generation_config.json` in the root.
RELEASED_STOPS = {"<|im_end|>": 75864, "<|endoftext|>": 75869}


def write_tokenizer(out: Folder, source: Path, config: PreTrainedConfig) -> dict:
    """
    Writes the tokenizer of the folder `source` to `out`, if it has one: `tokenizer.json`, made from the SentencePiece
    model `tokenizer.model` if need be, without references to code of the source; and the source's chat template, or for
    a ChatML vocabulary without one that of this package.

    Returns the fields of `generation_config.json`: the source's own, the recommended sampling for the released
    vocabulary, and in any case all tokens that end a turn as stop tokens.
    """
    is_plt = isinstance(config, IQuestPLTCoderConfig)
    fields = _json_or_empty(source, "tokenizer_config.json")
    if (source / "tokenizer.json").exists():
        out.copy(inside(source, "tokenizer.json"))
        with layout.refusals("tokenizer.json"):
            vocabulary = PreTrainedTokenizerFast(tokenizer_file=str(out.path / "tokenizer.json")).get_vocab()
    elif (source / "tokenizer.model").exists():
        backend, fields = spm.convert_folder(source)
        out.write_text("tokenizer.json", backend.to_str(pretty=True))
        vocabulary = backend.get_vocab()
    else:
        vocabulary = {}
    template = fields.pop("chat_template", None)
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
        elif isinstance(template, str):
            out.write_text(TEMPLATE, template)
        elif {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys():
            out.copy(layout.ROOT / TEMPLATE)
    return _generation_config(source, config, vocabulary)


def _generation_config(source: Path, config: PreTrainedConfig, vocabulary: dict[str, int]) -> dict:
    fields = _json_or_empty(source, "generation_config.json")
    released = json.loads((layout.ROOT / "generation_config.json").read_text())
    named = {name: vocabulary.get(name) for name in RELEASED_STOPS}
    is_released = config.vocab_size > max(released["eos_token_id"]) and (
        named["<|im_end|>"] == RELEASED_STOPS["<|im_end|>"] or not vocabulary
    )
    if is_released and not fields:
        fields = dict(released)
    stops = []
    for ids in (config.eos_token_id, fields.get("eos_token_id"), released["eos_token_id"] if is_released else None):
        stops += ids if isinstance(ids, list) else [ids]
    stops += [vocabulary.get(token) for token in bpe.STOP_TOKENS]
    stops = sorted({stop for stop in stops if isinstance(stop, int) and 0 <= stop < config.vocab_size})
    fields["eos_token_id"] = stops or None
    for name in ("bos_token_id", "pad_token_id"):
        fields.setdefault(name, getattr(config, name))
    return {name: value for name, value in fields.items() if value is not None}


def _json_or_empty(folder: Path, name: str) -> dict:
    return read_json(inside(folder, name)) if (folder / name).exists() else {}


def load_tokenizer(folder: str | Path) -> IQuestPLTCoderTokenizer | None:
    """
    The tokenizer in `folder`, or None if there is no `tokenizer.json`. Runs no code of the folder. Raises ValueError if
    it cannot be read.
    """
    if not (Path(folder) / "tokenizer.json").exists():
        return None
    with layout.refusals("tokenizer.json"):
        return IQuestPLTCoderTokenizer.from_pretrained(folder)
