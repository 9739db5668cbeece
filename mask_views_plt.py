# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for a cache, a configuration and embeddings, which tell the library's mask functions what mask to make."""

import torch
from transformers.cache_utils import Cache


class CacheView:
    """
    A stand-in for a cache in the library's mask functions: the number of keys, and where the queries begin. With
    `has_mask` they always make a mask, without a check that would make the host wait for the device.
    """

    is_sliding = (True,)

    def __init__(self, keys: int, query_offset: int | torch.Tensor, has_mask: bool = False):
        self.keys = keys
        self.query_offset = query_offset
        self.is_compileable = has_mask  # the library makes all masks for a static cache

    @classmethod
    def of(cls, cache: Cache, num_tokens: int) -> "CacheView":
        """Returns a view of a cache for a 2D mask that hides some of its columns."""
        return cls(cache.get_mask_sizes(num_tokens, 0)[0], cache.get_seq_length(), has_mask=True)

    def get_query_offset(self, layer_idx: int = 0) -> int | torch.Tensor:
        return self.query_offset

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.keys, 0


class ConfigView:
    """
    A stand-in for a configuration in the library's mask functions: with a window, which in the model's own
    configuration would make every layer a window layer. (Compiled graphs cannot copy a configuration.)
    """

    def __init__(self, config, left: int):
        self.config = config
        self.sliding_window = left + 1  # the library's window includes the token itself

    def __getattr__(self, name: str):
        return getattr(self.config, name)


def shape_of(embeds: torch.Tensor) -> torch.Tensor:
    """
    Returns an empty tensor (B, T, 0) that gives the library's mask functions a shape, dtype and device. Never float64:
    eager attention computes its softmax in float32, where the lowest float64 is -inf and a fully masked row is NaN.
    """
    dtype = torch.float32 if embeds.dtype == torch.float64 else embeds.dtype
    return embeds.new_empty((*embeds.shape[:2], 0), dtype=dtype)


__all__ = ["CacheView", "ConfigView", "shape_of"]
