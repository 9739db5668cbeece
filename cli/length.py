# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps prompt plus reply within the model's maximum length."""

import sys

import torch

from ..conversion.tokenizer import as_list


def bounded(model, prompt_tokens: int, options: dict, advice: str = "Shorten the prompt.") -> dict:
    """
    Returns arguments of `generate()` that stop it at the model's maximum. Raises ValueError, with advice, if the prompt
    leaves no room for a reply.
    """
    limit = model.config.max_position_embeddings
    if prompt_tokens >= limit:
        raise ValueError(
            f"The prompt has {prompt_tokens:,} tokens. With this model, prompt and reply together can have at most "
            f"{limit:,}. {advice}"
        )
    room = limit - prompt_tokens
    return {**options, "max_new_tokens": min(options.get("max_new_tokens", room), room)}


def note_if_cut(model, tokens: torch.Tensor) -> None:
    """Reports on standard error that the maximum length ended a reply. `tokens` are those of prompt and reply."""
    limit, ends = model.config.max_position_embeddings, as_list(model.generation_config.eos_token_id)
    if len(tokens) >= limit and tokens[-1].item() not in ends:
        print(f"note: the reply was cut at the model's maximum of {limit:,} tokens, prompt included", file=sys.stderr)
