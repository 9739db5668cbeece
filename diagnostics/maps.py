# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Attention maps of every loop for a short text."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .documents import Document, check_document, start_token_id
from .lens import tokenize
from .trace import BRANCHES, check_controls, check_model, check_settings, trace


VERSION = 1


@dataclass
class AttentionMaps:
    """
    Attention averaged over heads, for S tokens. Lists are [loop][index in `layers`], None where a branch is absent.

    Attributes:
        tokens: the S inputs; the start token is first.
        layers: indices of the layers, from 0.
        global_, window, mixture: weights (S, S), queries × keys.
        gate: weight of the global branch, (S,).
    """

    max_loops: int
    tokens: list[str]
    layers: list[int]
    global_: list[list[np.ndarray | None]]
    window: list[list[np.ndarray | None]]
    mixture: list[list[np.ndarray | None]]
    gate: list[list[np.ndarray | None]]

    def to_dict(self) -> dict:
        """Returns the JSON document. A loop without a branch is null."""

        def plain(by_loop):
            return [None if of[0] is None else [values.tolist() for values in of] for of in by_loop]

        return {
            "version": VERSION,
            "max_loops": self.max_loops,
            "tokens": self.tokens,
            "layers": self.layers,
            "global": plain(self.global_),
            "window": plain(self.window),
            "mixture": plain(self.mixture),
            "gate": plain(self.gate),
        }


@torch.no_grad()
def attention_maps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    max_loops: int | None = None,
    max_tokens: int = 64,
    layers: list[int] | None = None,
) -> AttentionMaps:
    """
    Returns maps of the first `max_tokens` tokens of a text, including the start token, in `max_loops` loops, for
    `layers` (counted from 0; default: all).

    Raises:
        ValueError: if a layer does not exist, the text is empty, or for the reasons of `measure`.
    """
    check_model(model)
    check_controls(model)
    max_loops, max_tokens = check_settings(model, max_loops, max_tokens, "max_tokens")
    depth = model.config.num_hidden_layers
    layers = list(range(depth)) if layers is None else list(layers)
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong or not layers:
        raise ValueError(f"`layers` must name layers 0 to {depth - 1} of this model, got {layers}.")
    ids, texts = tokenize(tokenizer, text)
    start = start_token_id(tokenizer)
    check_document(Document([start, *ids], name="The text"), model.config.vocab_size)
    inputs = torch.tensor([start, *ids][:max_tokens])
    recorded = trace(model, inputs, max_loops)

    maps = {branch: [] for branch in BRANCHES}
    for loop in range(max_loops):
        of_loop = [recorded.log_attention(loop, layer, 0, len(inputs)) for layer in layers]
        for branch, found in maps.items():
            weights = (of[branch] for of in of_loop)
            found.append([None if log is None else _numpy(log.exp().mean(0)) for log in weights])
    gates = [
        [None if of_loop is None else _numpy(of_loop[layer].float().mean(0)) for layer in layers]
        for of_loop in recorded.gates
    ]
    tokens = [tokenizer.decode([start]), *texts][:max_tokens]
    return AttentionMaps(max_loops, tokens, layers, maps["global"], maps["window"], maps["mixture"], gates)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
