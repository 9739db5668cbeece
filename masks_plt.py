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
"""What a PLT forward pass asks of masks and positions: the masks of both branches, and where sequences start."""

import copy

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .cache_plt import PLTCacheLayer


class WindowView:
    """What the library's mask functions ask of a cache, answered for the windows of loops ≥ 1."""

    is_compileable = False
    is_sliding = (True,)

    def __init__(self, layer: PLTCacheLayer):
        self.layer = layer

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layer.get_seq_length()

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.layer.get_window_mask_sizes(query_length)


def create_masks(config, embeds_BTD, attention_mask, position_ids, cache, num_loops: int, looped_rows: int):
    """The masks of the global and of the window branch; the latter for `looped_rows` loops that run together."""
    arguments = {
        "config": config,
        "inputs_embeds": embeds_BTD,
        "attention_mask": attention_mask,
        "past_key_values": cache,
        "position_ids": position_ids,
    }
    global_mask = create_causal_mask(**arguments)
    if num_loops == 1:
        return global_mask, None
    if cache is not None:
        arguments["past_key_values"] = WindowView(cache.layers[0])
    if looped_rows > 1:
        arguments["inputs_embeds"] = embeds_BTD.repeat(looped_rows, 1, 1)
        arguments["attention_mask"] = (
            attention_mask if attention_mask is None else attention_mask.repeat(looped_rows, 1)
        )
        arguments["position_ids"] = None
    if embeds_BTD.shape[1] == 1:  # the window holds no more than the one new token sees
        return global_mask, create_causal_mask(**arguments)
    # On the model's own config this field would turn every layer into a window layer.
    arguments["config"] = copy.copy(config)
    arguments["config"].sliding_window = config.plt_window_size[0] + 1
    return global_mask, create_sliding_window_causal_mask(**arguments)


def check_mask(attention_mask, length: int) -> None:
    """More than one loop needs to know which token comes before another. Raises ValueError where the mask hides it."""
    if attention_mask is None:
        return
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        raise ValueError(
            "A PLT model with more than one loop needs a 2D attention mask (batch, past + time): a 4D mask does not "
            "say which token comes before another, and the loops' shift needs that. For packed documents pass "
            "`position_ids` that restart, without a mask."
        )
    if attention_mask.shape[1] != length:
        raise ValueError(
            f"The attention mask has {attention_mask.shape[1]} columns, but cached and new tokens are {length}: "
            "it must cover both."
        )
    real = attention_mask.bool()
    resumes = real[:, 1:] & ~real[:, :-1]  # a real token after padding
    if not torch.compiler.is_compiling() and bool((resumes.sum(-1) + real[:, 0] > 1).any()):
        raise ValueError(
            "A row of the attention mask has padding between real tokens. PLT's windows and shift count tokens, so "
            "such a row would not give what it gives alone. Pad on the left, and encode the whole conversation anew. "
            "If the text itself holds the padding token, pass an `attention_mask` that says so."
        )


def is_packed(position_ids, attention_mask, past_length: int) -> bool:
    """Whether the rows hold several documents. Raises ValueError if a mask is in the way of keeping them apart."""
    if position_ids is None or position_ids.shape[1] == 1 or torch.compiler.is_compiling():
        return False
    if attention_mask is None:
        return bool((torch.diff(position_ids) != 1).any())
    follows = attention_mask[:, past_length : past_length + position_ids.shape[1] - 1].bool()
    if bool(((position_ids[:, 1:] == 0) & follows.to(position_ids.device)).any()):
        raise ValueError("For packed documents pass `position_ids` that restart, without an `attention_mask`.")
    return False


def packed_positions(cu_seq_lens: torch.Tensor, time: int) -> torch.Tensor:
    """The positions (1, time) of documents whose first tokens stand at `cu_seq_lens[:-1]`."""
    tokens = torch.arange(time, device=cu_seq_lens.device)
    return (tokens - cu_seq_lens[torch.bucketize(tokens, cu_seq_lens, right=True) - 1]).unsqueeze(0)


def sequence_starts(position_ids, attention_mask, cache, past_length: int) -> torch.Tensor:
    """Where no token of the same sequence comes before: (batch, time) or (1, time), boolean."""
    starts = position_ids == 0
    if attention_mask is not None and attention_mask.ndim == 2:  # R = 1 takes other masks too
        time = position_ids.shape[1]
        before = nn.functional.pad(attention_mask, (1, 0))[:, past_length : past_length + time]
        starts = starts | (before == 0).to(starts.device)
    elif attention_mask is None and cache is None:  # where the library's masks look for packed documents
        jumps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
        starts = starts | jumps
    return starts
