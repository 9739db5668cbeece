# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Cache layers that quantize the keys and values of loop 0 with the library's quantizers."""

import torch
from transformers.cache_utils import HQQQuantizedLayer, QuantoQuantizedLayer

from .cache_layers_plt import LoopStates
from .compat_plt import Fp8QuantizedLayer


class _QuantizedLoopStates(LoopStates):
    """The library quantizes loop 0's keys and values in groups of tokens. Windows and carries are not quantized."""

    _quantized_keys: torch.Tensor
    _quantized_values: torch.Tensor

    def _refuse(self, *args, **kwargs):
        raise ValueError(
            "A quantized cache cannot be cropped, regrouped or rolled back (as assisted generation does): its tokens "
            "are packed together. Use the default cache, or start a new one."
        )

    is_croppable = False
    crop = activate_past_recording = batch_repeat_interleave = batch_select_indices = _refuse

    @property
    def nbytes(self) -> int:
        return super().nbytes + _nbytes([self._quantized_keys, self._quantized_values])


class PLTQuantoCacheLayer(_QuantizedLoopStates, QuantoQuantizedLayer):
    """2 or 4 bits, with optimum-quanto."""


class PLTHQQCacheLayer(_QuantizedLoopStates, HQQQuantizedLayer):
    """1 to 8 bits, with HQQ."""


QUANTIZED_LAYERS = {"quanto": PLTQuantoCacheLayer, "hqq": PLTHQQCacheLayer}

if Fp8QuantizedLayer is not None:

    class PLTFp8CacheLayer(_QuantizedLoopStates, Fp8QuantizedLayer):  # type: ignore[valid-type, misc]
        """8-bit floats, with no extra dependency."""

    QUANTIZED_LAYERS["fp8"] = PLTFp8CacheLayer


def _nbytes(held) -> int:
    """Returns the size in bytes of all tensors in a quantizer's output."""
    if isinstance(held, torch.Tensor):
        if hasattr(held, "__tensor_flatten__"):
            return _nbytes([getattr(held, name) for name in held.__tensor_flatten__()[0]])
        return held.nbytes
    if isinstance(held, dict):
        held = list(held.values())
    return sum(map(_nbytes, held)) if isinstance(held, (list, tuple)) else 0


__all__ = ["QUANTIZED_LAYERS"]
