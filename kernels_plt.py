# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Calls the library's attention kernels with queries unchanged, grouped by shared keys, or cut into tiles.

Shapes are suffixes: B batch, N queries, S keys, H query heads, K key/value heads, G = H / K, C head_dim.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward


@dataclass(frozen=True)
class Kernel:
    """
    The capabilities of an attention kernel.

    Attributes:
        takes_4d_masks: whether it accepts a mask (B, 1, N, S).
        adds_masks: whether it adds the mask to its scores. A boolean mask would then have no effect.
        takes_tiles: whether to cut the window branch into tiles for it. Other kernels implement windows themselves.
        groups_as_rows: the smallest number of queries at one position to turn into rows of one matrix per key/value
            head, so that the keys are read once. None: the queries become heads instead, because the kernel treats
            rows as positions.
        takes_views: whether it accepts keys with any strides. PLT's cached keys are views of a larger tensor, but a
            user's function may call `.view` on them, which works with Llama's contiguous cache.
    """

    takes_4d_masks: bool = True
    adds_masks: bool = True
    takes_tiles: bool = False
    groups_as_rows: int | None = None
    takes_views: bool = True


TILES_AT_ONCE = 128  # under eager attention, whose memory grows with the number of tiles
KERNELS = {
    # Eager attention does not group a single query, so that one loop equals Llama bit for bit.
    "eager": Kernel(takes_tiles=True, groups_as_rows=2),
    "sdpa": Kernel(adds_masks=False, takes_tiles=True, groups_as_rows=1),
}


def get_kernel(name: str) -> Kernel:
    """Returns the capabilities of the kernel `name`, with safe defaults if it is not in the table."""
    is_from_library = "/" in name or name.startswith(("flash_attention", "flex_attention"))  # a slash means the Hub
    return KERNELS.get(name) or Kernel(takes_4d_masks="flash" not in name, takes_views=is_from_library)


class _GroupedQueries:
    """Replaces the attention module in a kernel call when queries are grouped differently from its heads."""

    is_causal = False

    def __init__(self, attention: nn.Module, num_key_value_groups: int):
        self._attention = attention
        self.num_key_value_groups = num_key_value_groups

    def __getattr__(self, name: str):  # only what a kernel reads, or a compiled layer would depend on its index
        return getattr(self._attention, name)


def _kernel_name(attention: nn.Module) -> str:
    return attention.config._attn_implementation  # type: ignore[union-attr, return-value]


def attend(attention: nn.Module, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs):
    """Runs attention for queries at distinct positions. Returns the output (B, N, H, C), and the weights or None."""
    return _call(attention, _kernel_name(attention), query_BHNC, key_BKSC, value_BKSC, mask, **kwargs)


def attend_from_one_position(attention: nn.Module, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs):
    """Like `attend`, for queries at one position that see the same keys: the loops of one token."""
    name, num_queries = _kernel_name(attention), query_BHNC.shape[2]
    as_rows = get_kernel(name).groups_as_rows
    if as_rows is not None and num_queries >= as_rows:
        return _attend_as_rows(attention, name, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs), None
    if num_queries == 1:
        return attend(attention, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs)
    # As heads: one query position with `num_queries` times as many heads.
    heads = query_BHNC.flatten(1, 2)[:, :, None]
    grouped = _GroupedQueries(attention, heads.shape[1] // key_BKSC.shape[1])
    output, _ = _call(grouped, name, heads, key_BKSC, value_BKSC, mask, **kwargs)
    return output[:, 0].unflatten(1, (-1, num_queries)).transpose(1, 2), None


def attend_with_row_masks(attention: nn.Module, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs):
    """
    Like `attend`, for queries in any order. `mask` (1, 1, G · N, S) has a row for each query of a key/value head, so
    that the keys are read once.
    """
    return _attend_as_rows(attention, _kernel_name(attention), query_BHNC, key_BKSC, value_BKSC, mask, **kwargs), None


def attend_in_tiles(attention: nn.Module, query_BHNC, key_BKSC, value_BKSC, window, **kwargs):
    """
    Computes the window branch (B, N, H, C) in O(N · w). Each tile of queries becomes a row of the batch, with only the
    keys it can see. Tiles are aligned to the last query, so fewer queries use the last of the same tiles.
    """
    batch, _, num_queries, _ = query_BHNC.shape
    size, left = window.tile_size, window.left
    num_tiles = -(-num_queries // size)

    def tiles(states, length, width):
        """Cuts the last `length` columns into pieces of `width`, one every `size`: (B · tiles, heads, width, C)."""
        states = nn.functional.pad(states, (0, 0, max(length - states.shape[2], 0), 0))[:, :, -length:]
        return states.unfold(2, width, size).permute(0, 2, 1, 4, 3).flatten(0, 1)

    query = tiles(query_BHNC, num_tiles * size, size)
    key, value = (tiles(states, num_tiles * size + left, size + left) for states in (key_BKSC, value_BKSC))
    mask = window.mask[:, -num_tiles:].expand(batch, -1, -1, -1, -1).flatten(0, 1)
    parts = [(query, key, value, mask)]
    if window.tile_kernel == "eager" and not torch.compiler.is_compiling():  # it stores all scores, several times
        parts = list(zip(*(states.split(TILES_AT_ONCE) for states in parts[0]), strict=True))
    outputs = [_attend_as_rows(attention, window.tile_kernel, *part, **kwargs) for part in parts]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output.reshape(batch, num_tiles * size, *output.shape[2:])[:, num_tiles * size - num_queries :]


def _attend_as_rows(attention, kernel_name: str, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs):
    """Runs attention with the G · N queries of a key/value head as rows of one matrix. `mask` has one row or G · N."""
    num_queries, kv_heads = query_BHNC.shape[2], key_BKSC.shape[1]
    rows = query_BHNC.reshape(query_BHNC.shape[0], kv_heads, -1, query_BHNC.shape[3])
    kwargs["is_causal"] = False  # rows are not positions
    grouped = _GroupedQueries(attention, 1)
    output, _ = _call(grouped, kernel_name, rows, key_BKSC, value_BKSC, mask, **kwargs)
    return output.transpose(1, 2).unflatten(2, (-1, num_queries)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _call(module, kernel_name: str, query, key, value, mask, **kwargs):
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(kernel_name, eager_attention_forward)
    dropout = module.attention_dropout if module.training else 0.0
    if not get_kernel(kernel_name).takes_views:
        key, value = key.contiguous(), value.contiguous()
    return kernel(module, query, key, value, mask, dropout=dropout, scaling=module.scaling, **kwargs)


__all__ = ["attend", "attend_from_one_position", "attend_in_tiles", "attend_with_row_masks", "get_kernel"]
