# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Fill-in-the-middle: the prompt for the text between a prefix and a suffix, and the middle in what is generated."""

from collections.abc import Sequence

import torch
from transformers import BatchEncoding, PreTrainedTokenizerFast


PREFIX, SUFFIX, MIDDLE = FIM_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def fim_prompt(prefix: str, suffix: str = "") -> str:
    """Returns the prompt as a text, for servers and pipelines that take one.

    Raises ValueError where the prefix or the suffix itself has one of the three tokens, which would be taken for those
    of the prompt; `fim_inputs` takes any text.
    """
    for text in (prefix, suffix):
        if found := [token for token in FIM_TOKENS if token in text]:
            raise ValueError(f"the text has {found[0]} in it, which a prompt cannot quote: use fim_inputs")
    return f"{PREFIX}{prefix}{SUFFIX}{suffix}{MIDDLE}"


def fim_inputs(tokenizer: PreTrainedTokenizerFast, prefix: str, suffix: str = "") -> BatchEncoding:
    """Returns the prompt for `model.generate(**inputs)`: `input_ids` and `attention_mask`, each of shape (1, tokens).

    Special tokens that the prefix or the suffix spell out stay plain text. Raises ValueError for a tokenizer without
    the three tokens.
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in FIM_TOKENS if token not in vocabulary]:
        raise ValueError(f"the tokenizer has no {missing[0]}: its model does not fill in the middle")
    ids = []
    for token, text in ((PREFIX, prefix), (SUFFIX, suffix), (MIDDLE, "")):
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids += [vocabulary[token], *plain]
    return BatchEncoding(
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    )


def fim_middle(tokenizer: PreTrainedTokenizerFast, row: Sequence[int] | torch.Tensor) -> str:
    """Returns the text that fills the gap: what stands in `row`, a row of the output of `generate`, between the end of
    the prompt and the next special token.

    Raises ValueError where the row has no prompt in it.
    """
    ids = row.tolist() if isinstance(row, torch.Tensor) else list(row)
    middle = tokenizer.get_vocab().get(MIDDLE)
    if middle not in ids:
        raise ValueError(f"the row has no {MIDDLE}: give the whole row that generate returned, prompt included")
    ids = ids[ids.index(middle) + 1 :]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = next((position for position, index in enumerate(ids) if index in special), len(ids))
    return tokenizer.decode(ids[:end])
