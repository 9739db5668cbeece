# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
How queries reach the library's attention kernels: as they come, grouped by the keys they share, or in tiles.

Shapes are suffixes: B batch, N queries, S keys, H query heads, K key/value heads, G = H / K, C head_dim.
"""

from dataclasses import dataclass

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward


@dataclass(frozen=True)
class Kernel:
    """
    What an attention kernel of the library can do.

    Attributes:
        takes_4d_masks: whether it takes a mask (B, 1, N, S).
        adds_masks: whether it adds the mask to its scores, so that a boolean one would have no effect.
        takes_tiles: whether the window branch may be cut into tiles for it. Others have windows of their own.
        groups_as_rows: from how many queries at one position on these become rows of one matrix for each key/value
            head, which reads the keys once; fewer queries go as they are. None: they become heads instead, for kernels
            that take the rows of a matrix for positions.
        takes_views: whether it takes keys of any strides. A user's function may call `.view` on them, as it can with
            Llama's cache, whose tensors are contiguous; ours are views of a larger one.
    """

    takes_4d_masks: bool = True
    adds_masks: bool = True
    takes_tiles: bool = False
    groups_as_rows: int | None = None
    takes_views: bool = True


KERNELS = {
    # A single query stays as it is under eager attention, so that one loop equals Llama to the bit.
    "eager": Kernel(takes_tiles=True, groups_as_rows=2),
    "sdpa": Kernel(adds_masks=False, takes_tiles=True, groups_as_rows=1),
}


def get_kernel(name: str) -> Kernel:
    """What the kernel `name` can do; of one that is not in the table, what any can."""
    is_librarys = "/" in name or name.startswith(("flash_attention", "flex_attention"))  # a slash: from the Hub
    return KERNELS.get(name) or Kernel(takes_4d_masks="flash" not in name, takes_views=is_librarys)


class _GroupedQueries:
    """Stands for the attention module when queries are grouped in another way than its heads are."""

    is_causal = False

    def __init__(self, attention: nn.Module, num_key_value_groups: int):
        self.config = attention.config
        self.layer_idx = attention.layer_idx
        self.training = attention.training
        self.scaling = attention.scaling
        self.attention_dropout = attention.attention_dropout
        self.modules = attention.modules
        self.num_key_value_groups = num_key_value_groups


def _kernel_name(attention: nn.Module) -> str:
    return attention.config._attn_implementation  # type: ignore[union-attr, return-value]


def attend(attention: nn.Module, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs):
    """Attention of queries at positions of their own, (B, N, H, C), and its weights, or None."""
    return _call(attention, _kernel_name(attention), query_BHNC, key_BKSC, value_BKSC, mask, **kwargs)


def attend_from_one_position(attention: nn.Module, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs):
    """The same where all queries stand at one position and see the same keys: the loops of one token."""
    name, num_queries = _kernel_name(attention), query_BHNC.shape[2]
    as_rows = get_kernel(name).groups_as_rows
    if as_rows is not None and num_queries >= as_rows:
        return _attend_as_rows(attention, name, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs), None
    if num_queries == 1:
        return attend(attention, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs)
    # As heads: one query of length 1 has many times as many of them.
    heads = query_BHNC.flatten(1, 2)[:, :, None]
    grouped = _GroupedQueries(attention, heads.shape[1] // key_BKSC.shape[1])
    output, _ = _call(grouped, name, heads, key_BKSC, value_BKSC, mask, **kwargs)
    return output[:, 0].unflatten(1, (-1, num_queries)).transpose(1, 2), None


def attend_in_tiles(attention: nn.Module, query_BHNC, key_BKSC, value_BKSC, window, **kwargs):
    """
    The window branch in O(N · w), (B, N, H, C): tiles of queries, as rows of a batch, each with the keys it may see.
    Tiles are counted from the last query, so that fewer queries are the last of the same tiles.
    """
    batch, _, num_queries, _ = query_BHNC.shape
    size, left = window.tile_size, window.left
    num_tiles = -(-num_queries // size)

    def tiles(states, length, width):
        """The last `length` columns in pieces of `width` that begin every `size`: (B · tiles, heads, width, C)."""
        states = nn.functional.pad(states, (0, 0, max(length - states.shape[2], 0), 0))[:, :, -length:]
        return states.unfold(2, width, size).permute(0, 2, 1, 4, 3).flatten(0, 1)

    query = tiles(query_BHNC, num_tiles * size, size)
    key, value = (tiles(states, num_tiles * size + left, size + left) for states in (key_BKSC, value_BKSC))
    mask = window.mask[:, -num_tiles:].expand(batch, -1, -1, -1, -1).flatten(0, 1)
    output = _attend_as_rows(attention, window.tile_kernel, query, key, value, mask, **kwargs)
    return output.reshape(batch, num_tiles * size, *output.shape[2:])[:, num_tiles * size - num_queries :]


def _attend_as_rows(attention, kernel_name: str, query_BHNC, key_BKSC, value_BKSC, mask, **kwargs):
    """All queries that share a key/value head as rows of one matrix, G · N of them, each with its row of `mask`."""
    num_queries, kv_heads = query_BHNC.shape[2], key_BKSC.shape[1]
    rows = query_BHNC.reshape(query_BHNC.shape[0], kv_heads, -1, query_BHNC.shape[3])
    kwargs["is_causal"] = False  # rows are no positions
    grouped = _GroupedQueries(attention, 1)
    output, _ = _call(grouped, kernel_name, rows, key_BKSC, value_BKSC, mask, **kwargs)
    return output.transpose(1, 2).unflatten(2, (-1, num_queries)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _call(module, kernel_name: str, query, key, value, mask, **kwargs):
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(kernel_name, eager_attention_forward)
    dropout = module.attention_dropout if module.training else 0.0
    if not get_kernel(kernel_name).takes_views:
        key, value = key.contiguous(), value.contiguous()
    return kernel(module, query, key, value, mask, dropout=dropout, scaling=module.scaling, **kwargs)


__all__ = ["attend", "attend_from_one_position", "attend_in_tiles", "get_kernel"]
