# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The carry: `H^r` of every token, r < R - 1. The next token of the same text uses it as input of loop r + 1.

Carries are stored like keys and values, in cache layers that only store. Such a layer has the cache specification of a
window branch, so vLLM allocates, shares and frees its slots in the same way as for the window's keys. Cached prefixes,
preemption, chunked prompts and rejected drafts therefore need no code here: the state before position p is in the slot
of position p - 1, which the window still holds.

A layer's slot has room for the keys and values of one token, so a state needs several layers (cells).
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadataBuilder,
    subclass_attention_backend,
)
from vllm.v1.kv_cache_interface import KVCacheSpec

from .schedule import Part, in_parts, single_tokens, tail_lengths


@dataclass
class CarryMetadata:
    """The cache slots of a batch's tokens in one layer."""

    block_table: torch.Tensor  # (requests, blocks)
    slot_mapping: torch.Tensor  # (tokens,), -1 for padding
    query_start_loc: torch.Tensor  # (requests + 1,)
    single: int  # the number of requests at the front with one new token
    parts: tuple["CarryMetadata", ...] = ()
    tails: tuple[tuple["CarryMetadata", torch.Tensor], ...] = ()


class CarryMetadataBuilder(AttentionMetadataBuilder[CarryMetadata]):
    _cudagraph_support = AttentionCGSupport.ALWAYS

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        batch = common_attn_metadata
        single = single_tokens(batch, self.vllm_config)
        return CarryMetadata(batch.block_table_tensor, batch.slot_mapping, batch.query_start_loc, single)


@functools.cache
def stores_only(backend: type[AttentionBackend], lengths: tuple[int, ...]) -> type[AttentionBackend]:
    """Returns the same backend with the metadata of a layer that only stores."""
    return in_parts(subclass_attention_backend("Carry", backend, CarryMetadataBuilder), lengths)


class CarryCell(AttentionLayerBase):
    """A cache layer like that of the branch `window`. Its slots hold values of shape (kv_heads, 2 * head_dim)."""

    def __init__(self, layer_name: str, window: Attention, vllm_config: VllmConfig):
        self.layer_name = layer_name
        self.impl = window.impl
        self.num_heads = window.num_heads
        self.kv_cache = torch.tensor([])  # (blocks, kv_heads, block_size, 2 * head_dim), bound by vLLM
        self._backend = stores_only(window.attn_backend, tail_lengths(vllm_config))
        self._window_spec = window.get_kv_cache_spec
        vllm_config.compilation_config.static_forward_context[layer_name] = self

    def get_attn_backend(self) -> type[AttentionBackend]:
        return self._backend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec:
        return self._window_spec(vllm_config)

    def write(self, values: torch.Tensor, part: Part) -> None:
        """Stores values (tokens, kv_heads, 2 * head_dim) in the slots of the part's tokens."""
        slots = part.context.attn_metadata[self.layer_name].slot_mapping
        size = self.kv_cache.shape[2]
        known = slots.clamp(min=0)  # padding goes to block 0, which is unused, and does not change it
        blocks, offsets = known // size, known % size
        kept = self.kv_cache[blocks, :, offsets]
        self.kv_cache[blocks, :, offsets] = torch.where((slots >= 0)[:, None, None], values[: len(slots)], kept)

    def read_before(self, positions: torch.Tensor, part: Part) -> torch.Tensor:
        """Reads the slot of the token before `positions` (requests,), with one position per request of the part."""
        block_table = part.context.attn_metadata[self.layer_name].block_table
        size = self.kv_cache.shape[2]
        before = (positions - 1).clamp(min=0)
        blocks = block_table.gather(1, (before // size)[:, None].to(torch.int64))[:, 0]
        return self.kv_cache[blocks.to(torch.int64), :, before % size]


class Carry:
    """The states of all loops but the last. Each tensor-parallel rank stores them in full."""

    def __init__(self, windows: list[Attention], prefix: str, vllm_config: VllmConfig):
        """`windows` are the window branches of all layers and loops >= 1; `prefix` names the model's layers."""
        config, window = vllm_config.model_config.hf_config, windows[0]
        self.hidden_size = config.hidden_size
        self.slot_shape = (window.num_kv_heads, window.head_size + window.head_size_v)
        self.num_cells = math.ceil(self.hidden_size / math.prod(self.slot_shape))
        further_loops = config.plt_num_loops - 1
        # With fewer window layers than 1.5 times the other layers, vLLM would pad the others and every token's keys.
        enough = math.ceil(1.5 * config.num_hidden_layers) - len(windows)
        first = 2 * config.num_hidden_layers + len(windows)  # after the layers for all loops' queries
        cells = [
            CarryCell(f"{prefix}.{first + index}.carry", window, vllm_config)
            for index in range(max(further_loops * self.num_cells, enough))
        ]
        self.cells = [cells[loop * self.num_cells :][: self.num_cells] for loop in range(further_loops)]
        self.layer_name = cells[0].layer_name

    def write(self, loop: int, states: torch.Tensor, part: Part) -> None:
        """Stores `H^loop` of the part's tokens, (tokens, hidden_size)."""
        if not part.context.attn_metadata:
            return
        room = self.num_cells * math.prod(self.slot_shape) - self.hidden_size
        values = nn.functional.pad(states, (0, room)).view(len(states), self.num_cells, *self.slot_shape)
        for cell, value in zip(self.cells[loop], values.unbind(1), strict=True):
            cell.write(value, part)

    def read_before(self, loop: int, positions: torch.Tensor, part: Part) -> torch.Tensor:
        """Returns `H^loop` before `positions`, one per request, (requests, hidden_size); zero at the text's start."""
        cells = [cell.read_before(positions, part).flatten(1) for cell in self.cells[loop]]
        states = torch.cat(cells, dim=1)[:, : self.hidden_size]
        return torch.where((positions > 0)[:, None], states, 0.0)

    def shift(self, loop: int, states: torch.Tensor, positions: torch.Tensor, part: Part) -> torch.Tensor:
        """Returns `H^loop` of the token before each of the part's. `states` (tokens, hidden_size) are their own."""
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        if part.context.attn_metadata:
            first = part.context.attn_metadata[self.layer_name].query_start_loc[:-1].to(torch.int64)
            before[first] = self.read_before(loop, positions[first], part)
        return before
