# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the byte-level BPE tokenizer of the small checkpoint.

`train(texts)` returns a `PreTrainedTokenizerFast` whose `save_pretrained` folder needs no code to load. The special
tokens are those of the released tokenizer, in the same order: three at the lowest ids, the others at the highest.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


VOCAB_SIZE = 8192
BOTTOM_TOKENS = ["<unk>", "<s>", "</s>"]
TOP_TOKENS = [
    "<CLS>",
    "<SEP>",
    "<EOD>",
    "<MASK>",
    "<PAD>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|endoftext|>",
]
# A training document ends with END_TOKEN; generation stops on any of STOP_TOKENS.
END_TOKEN = "<|endoftext|>"
STOP_TOKENS = ["</s>", "<|im_end|>", "<|endoftext|>"]

# Words include one leading non-letter (" foo", ".foo", "_foo"), digits are separate, and newlines never merge with the
# indentation after them. So a prompt that ends with a newline ends at a token boundary seen in training.
SPLIT_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of exactly `vocab_size` entries learned from `texts`.

    Raises ValueError if the texts are too small for that many merges.
    """
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TOP_TOKENS),
        special_tokens=BOTTOM_TOKENS,
        # All 256 bytes, so that every text can be encoded and `<unk>` never occurs.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(TOP_TOKENS)
    if backend.get_vocab_size() != vocab_size:
        raise ValueError(
            f"The texts give only {backend.get_vocab_size()} of {vocab_size} vocabulary entries. Train on more text."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=END_TOKEN,
        pad_token="<PAD>",
        cls_token="<CLS>",
        sep_token="<SEP>",
        mask_token="<MASK>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json to `folder`."""
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    # Transformers 5 writes its internal class name, but every version knows this one.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["add_bos_token"] = config["add_eos_token"] = False
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Returns the token ids of each text as plain text. A "<s>" in a source file stays three characters."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
