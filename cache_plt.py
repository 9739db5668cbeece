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
"""
The key/value cache of the Parallel Loop Transformer.

    layer l     keys, values          K⁰, V⁰ of loop 0, growing: (batch, kv_heads, length, head_dim)
                windows[r - 1]        k^r, v^r of loop r ≥ 1, the last w tokens: (batch, kv_heads, ≤ w, head_dim)
    layer 0     carries[r]            H^r of the last token, r < R - 1: (batch, 1, hidden_size)

Only the first line grows with the text, and it does not know how many loops there are.
"""

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer


LAYER_TYPE = "parallel_loop_attention"


class PLTCacheLayer(DynamicLayer):
    """
    One decoder layer's cache: the shared keys and values of loop 0, plus a window for each further loop.

    Registered for the layer type `parallel_loop_attention`, so that `generate()` and `DynamicCache(config=config)`
    build it unaided. Number of loops and window are those of the first forward pass (or of [`PLTCache`]), and stay.
    """

    _layer_type = LAYER_TYPE

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.num_loops: int | None = None
        self.window: int | None = None
        self.windows: list[DynamicSlidingWindowLayer] = []
        self.carries: list[torch.Tensor | None] = []
        self._record_past = False

    @property
    def record_past(self) -> bool:
        """Whether windows and carries keep everything until `crop`, so that rejected tokens can be rolled back."""
        return self._record_past

    @record_past.setter
    def record_past(self, value: bool) -> None:
        self._record_past = value
        for window in self.windows:
            window.record_past = value

    def activate_past_recording(self) -> None:
        """Starts recording the past: see `record_past` and `crop`."""
        self.record_past = True

    def set_num_loops(self, num_loops: int, window: int) -> None:
        """
        Makes room for `num_loops` loops, each further one with a window of `window` keys besides the token itself.

        Raises:
            ValueError: if the cache already serves another number of loops, or another window.
        """
        if (self.num_loops, self.window) == (num_loops, window):
            return
        if self.num_loops is not None:
            raise ValueError(
                f"This cache was built for num_loops={self.num_loops} and a window of {self.window}. It cannot serve "
                f"num_loops={num_loops} and a window of {window}: their states were never computed. Start a new cache."
            )
        self.num_loops, self.window = num_loops, window
        self._clear_loops()

    def _clear_loops(self) -> None:
        further_loops = (self.num_loops or 1) - 1
        self.carries = [None] * further_loops
        if self.window:  # else a token sees only itself: nothing to keep
            # The library counts the token itself, PLT does not.
            self.windows = [DynamicSlidingWindowLayer(sliding_window=self.window + 1) for _ in range(further_loops)]
        self.record_past = self._record_past

    def update_window(
        self, loop: int, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Appends the keys and values of loop `loop >= 1`, each (batch, kv_heads, time, head_dim), and returns those that
        the new tokens may see: (batch, kv_heads, min(past, w) + time, head_dim).
        """
        if not self.windows:
            return key_states, value_states
        window = self.windows[loop - 1]
        keys, values = window.update(key_states, value_states)
        if self.record_past:  # Transformers 5.16 returns all that was recorded
            visible = window.sliding_window - 1 + key_states.shape[-2]
            return keys[..., -visible:, :], values[..., -visible:, :]
        if key_states.shape[-2] > 1:
            # What the window kept is a view: without a copy it would hold the whole prompt's keys and values alive.
            window.keys, window.values = window.keys.clone(), window.values.clone()
        return keys, values

    def update_carry(self, loop: int, states: torch.Tensor) -> None:
        """Stores `H^loop` (batch, time, hidden_size) of the new tokens: the last, or all while recording the past."""
        if not self.record_past:
            states = states[:, -1:].clone()
        else:  # `cat` also copies: what is returned to the caller must not be what is kept
            states = torch.cat([states] if self.carries[loop] is None else [self.carries[loop], states], dim=1)
        self.carries[loop] = states

    def get_carry(self, loop: int) -> torch.Tensor | None:
        """`H^loop` of the last token, (batch, 1, hidden_size), or None before the first token."""
        carry = self.carries[loop]
        return carry if carry is None else carry[:, -1:]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, windows and carries included."""
        layers = [layer for layer in (self, *self.windows) if layer.is_initialized]
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in (*tensors, *self.carries) if tensor is not None)

    def get_window_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the keys that `update_window` will return for `query_length` new tokens."""
        seen = self.get_seq_length()
        past = min(seen, self.window)
        return past + query_length, seen - past

    def crop(self, tokens_to_remove: int) -> None:
        """
        Removes the last `-tokens_to_remove` tokens; 0 only shrinks what was recorded back to its working size.

        Raises:
            ValueError: if the number is positive, or if the states of the token to go back to were not recorded.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"`crop` takes the number of tokens to remove as a negative number, got {tokens_to_remove}."
            )
        if not self.is_initialized:
            return
        if -tokens_to_remove >= self.get_seq_length() > 0:
            self.reset()
            return
        keep = [carry.shape[1] + tokens_to_remove for carry in self.carries if carry is not None]
        if tokens_to_remove and any(length < 1 for length in keep):
            raise ValueError(
                f"Cannot remove {-tokens_to_remove} tokens: the loop states of the token before them are gone. Call "
                "`cache.activate_past_recording()` before the tokens that may be rolled back, or start a new cache."
            )
        super().crop(tokens_to_remove)
        self.carries = [
            carry if carry is None else carry[:, : carry.shape[1] + tokens_to_remove][:, -1:] for carry in self.carries
        ]
        if self.record_past or tokens_to_remove:
            for window in self.windows:
                window.crop(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.keys = self.values = None  # Transformers 5.16 zeroes what has to go
        self.is_initialized = False
        self._clear_loops()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        for window in self.windows:
            window.reorder_cache(beam_idx)
        self._map_carries(lambda carry: carry.index_select(0, beam_idx.to(carry.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for window in self.windows:
            window.batch_repeat_interleave(repeats)
        self._map_carries(lambda carry: carry.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        for window in self.windows:
            window.batch_select_indices(indices)
        self._map_carries(lambda carry: carry[indices])

    def _map_carries(self, function) -> None:
        self.carries = [carry if carry is None else function(carry) for carry in self.carries]

    # `offload` and `prefetch` are the parent's: they move what grows. Windows and carries are small, and used after the
    # shared part of the layer has left the device.


class _NoStaticCacheLayer(StaticLayer):
    """Registered under the same name, so that asking for a static cache is answered in words and not by a KeyError."""

    _layer_type = LAYER_TYPE

    def __init__(self, *args, **kwargs):
        raise ValueError(
            "PLT models have no static cache: the windows and carries of the loops are only kept dynamically. Leave "
            "out `cache_implementation`, or use `PLTCache(model.config)`."
        )


class PLTCache(Cache):
    """
    A PLT cache for those who hold one themselves. `generate()` and `DynamicCache(config=config)` make the same layers.

    Args:
        config ([`IQuestPLTCoderConfig`]): the model's configuration.
        num_loops (`int`, *optional*): the number of loops it serves; `config.plt_num_loops` by default.

    Example:

    ```python
    >>> cache = PLTCache(model.config, num_loops=3)
    >>> output = model.generate(**inputs, past_key_values=cache, num_loops=3)
    >>> cache.nbytes
    ```
    """

    def __init__(self, config, num_loops: int | None = None):
        self.num_loops = config.check_num_loops(num_loops)
        super().__init__(layers=[PLTCacheLayer() for _ in range(config.num_hidden_layers)])
        for layer in self.layers:
            layer.set_num_loops(self.num_loops, config.plt_window_size[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(layer.nbytes for layer in self.layers)


def prepare_cache(cache: Cache, config, num_loops: int) -> None:
    """
    Readies `cache` for a forward pass of `num_loops` loops.

    Raises:
        ValueError: if it is not made of PLT layers, or was built for another model or number of loops.
    """
    layers = getattr(cache, "layers", None)
    # By layer type, not by class: remote code and the installed package are different classes of the same thing.
    if not layers or any(getattr(layer, "_layer_type", None) != LAYER_TYPE for layer in layers):
        raise ValueError(
            f"A PLT model cannot use this {type(cache).__name__}: it has no room for the loops' windows and carries. "
            "Pass `PLTCache(model.config)` or `DynamicCache(config=model.config)`, or no cache at all."
        )
    if len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"This cache has {len(layers)} layers, the model {config.num_hidden_layers}. Start a new cache."
        )
    for layer in layers:
        layer.set_num_loops(num_loops, config.plt_window_size[0])


__all__ = ["PLTCache", "PLTCacheLayer"]
