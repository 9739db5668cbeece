# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Fill-in-the-middle: builds prompts from a prefix and a suffix, and extracts the generated middle."""

from collections.abc import Sequence

import torch
from transformers import BatchEncoding, PreTrainedTokenizerFast


PREFIX, SUFFIX, MIDDLE = FIM_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def fim_prompt(prefix: str, suffix: str = "") -> str:
    """Returns the prompt as a string, for servers and pipelines.

    Raises ValueError if the prefix or suffix contains one of the three tokens, which would be mistaken for the prompt's
    own. `fim_inputs` accepts any text.
    """
    for text in (prefix, suffix):
        if found := [token for token in FIM_TOKENS if token in text]:
            raise ValueError(f"The text contains {found[0]}, which a text prompt cannot quote. Use fim_inputs.")
    return f"{PREFIX}{prefix}{SUFFIX}{suffix}{MIDDLE}"


def fim_inputs(tokenizer: PreTrainedTokenizerFast, prefix: str, suffix: str = "") -> BatchEncoding:
    """Returns the prompt for `model.generate(**inputs)`: `input_ids` and `attention_mask`, each of shape (1, tokens).

    Special tokens spelled out in the prefix or suffix stay plain text. Raises ValueError if the tokenizer lacks the
    three tokens.
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in FIM_TOKENS if token not in vocabulary]:
        raise ValueError(f"The tokenizer has no {missing[0]}, so its model does not support fill-in-the-middle.")
    ids = []
    for token, text in ((PREFIX, prefix), (SUFFIX, suffix), (MIDDLE, "")):
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids += [vocabulary[token], *plain]
    return BatchEncoding(
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    )


def fim_middle(tokenizer: PreTrainedTokenizerFast, row: Sequence[int] | torch.Tensor) -> str:
    """Returns the text that fills the gap: the part of `row`, a row of the output of `generate`, between the end of the
    prompt and the next special token.

    Raises ValueError if the row does not contain a prompt.
    """
    ids = row.tolist() if isinstance(row, torch.Tensor) else list(row)
    middle = tokenizer.get_vocab().get(MIDDLE)
    if middle not in ids:
        raise ValueError(f"The row has no {MIDDLE}. Pass the whole row that generate returned, including the prompt.")
    ids = ids[ids.index(middle) + 1 :]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = next((position for position, index in enumerate(ids) if index in special), len(ids))
    return tokenizer.decode(ids[:end])
