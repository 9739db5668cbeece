# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The layers of the Parallel Loop Transformer's key/value cache.

    every layer     keys, values              K⁰, V⁰ of loop 0: (batch, kv_heads, length, head_dim)
                    window_keys, …_values     k^r, v^r of loops r ≥ 1: (R - 1, batch, kv_heads, ≤ w, head_dim)
                    is_token                  which window columns are tokens, not padding: (batch, ≤ w); None: all
    layer 0         carries                   H^r of the last token, r < R - 1: (R - 1, batch, 1, hidden_size)

Only the first line grows with the text, and it does not depend on the number of loops. A window holds a row's last w
*tokens*: padding after a token is left out, so a row does not depend on the rest of the batch. The windows of a static
cache are rings, see `cache_static_plt.py`.
"""

import weakref

import torch
from transformers.cache_utils import DynamicLayer


LAYER_TYPE = "parallel_loop_attention"
SPARE_COLUMNS = 256  # a larger number means fewer copies of a growing cache, but more unused memory


def last_tokens(is_token: torch.Tensor, count: int) -> torch.Tensor:
    """Returns the columns of each row's last `count` tokens, in order. Rows with fewer tokens start with padding."""
    return is_token.to(torch.int8).argsort(dim=-1, stable=True)[:, -count:]


def gather_columns(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Selects `columns` (batch, n) of `states` (loops, batch, kv_heads, length, head_dim)."""
    index = columns[None, :, None, :, None].expand(*states.shape[:3], -1, states.shape[-1])
    return states.gather(-2, index)


def _can_grow(past: torch.Tensor, new: torch.Tensor) -> bool:
    """Returns whether two plain tensors (batch, kv_heads, any, head_dim) differ only in length."""
    return (
        type(past) is type(new) is torch.Tensor
        and (past.dtype, past.device) == (new.dtype, new.device)
        and (past.shape[:2], past.shape[3:]) == (new.shape[:2], new.shape[3:])
    )


class GrowingBuffer:
    """
    A tensor (batch, kv_heads, length, head_dim) with spare room at its end, so that a step writes in place.

    Each column is written once, so a returned tensor never changes, as with `torch.cat`. Only the most recently
    returned tensor grows in place. Any other, such as a cropped one, is copied. The exception is `take_back`. The
    buffer keeps no tensor alive, so memory is freed when the cache drops a tensor or moves it to another device. A copy
    of the buffer starts empty.
    """

    def __init__(self):
        self._capacity = 0
        self._last = lambda: None  # a weak reference to the most recently returned tensor

    def append(self, past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Returns `past` followed by the columns of `new` (batch, kv_heads, time, head_dim)."""
        length, total = past.shape[-2], past.shape[-2] + new.shape[-2]
        can_write = torch.is_inference_mode_enabled() or not past.is_inference()
        if past is self._last() and total <= self._capacity and can_write:
            shape = (*past.shape[:-2], self._capacity, past.shape[-1])
            room = past.as_strided(shape, past.stride(), past.storage_offset())
        else:
            self._capacity = total + min(length, SPARE_COLUMNS)
            room = past.new_empty((*past.shape[:-2], self._capacity, past.shape[-1]))
            room[..., :length, :] = past
        room[..., length:total, :] = new
        states = room[..., :total, :]
        self._last = weakref.ref(states)
        return states

    def take_back(self, states: torch.Tensor, count: int) -> torch.Tensor:
        """Returns `states` without the last `count` columns, which the next step may overwrite."""
        kept = states[..., : states.shape[-2] - count, :]
        if states is self._last():
            self._last = weakref.ref(kept)
        return kept

    def __reduce__(self):
        return GrowingBuffer, ()


class LoopStates:
    """
    A mixin with the loops' part of a cache layer. The library's layer class, listed after it, keeps the shared part.

    The first forward pass (or [`PLTCache`]) fixes the number of loops and the window.
    """

    layer_type = LAYER_TYPE
    can_take_back = False  # whether `take_back` and `set_window` work
    keys: torch.Tensor | None  # set by the library's layer, like `values`
    values: torch.Tensor | None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_loops: int | None = None
        self.window: int | None = None
        self.record_past = False
        self._clear_loops()

    def _clear_loops(self) -> None:
        self.window_keys: torch.Tensor | None = None
        self.window_values: torch.Tensor | None = None
        self.is_token: torch.Tensor | None = None
        self.next_column: torch.Tensor | None = None  # of a ring
        self.carries: torch.Tensor | None = None
        self._unfinished: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.has_padding = False  # in layer 0: whether later passes need a mask

    def check_num_loops(self, num_loops: int, window: int) -> None:
        """Raises ValueError if the cache already serves another number of loops, or another window."""
        if self.num_loops is not None and (self.num_loops, self.window) != (num_loops, window):
            raise ValueError(
                f"This cache was built for num_loops={self.num_loops} and a window of {self.window}. It cannot serve "
                f"num_loops={num_loops} and a window of {window}: their states were never computed. Start a new cache."
            )

    def set_num_loops(self, num_loops: int, window: int) -> None:
        """Sets the number of loops and the window of loops >= 1: `window` keys besides the token itself."""
        self.num_loops, self.window = num_loops, window

    @property
    def window_length(self) -> int:
        """The number of window columns that the next tokens can see."""
        if self.window_keys is None:
            return 0
        columns = self.window_keys.shape[-2]
        # Columns recorded only for a rollback are not visible. With padding, only a mask can tell which ones those are.
        return columns if self.is_token is not None else min(columns, self.window)

    def get_window_tokens(self, batch_size: int, device: torch.device) -> torch.Tensor | None:
        """Returns which window columns hold tokens, (batch, window_length); None if all do."""
        return self.is_token

    def get_window_order(self, batch_size: int, device: torch.device) -> torch.Tensor | None:
        """In layer 0: returns where a ring holds its columns, see `Window.order`; None: in the order of the text."""
        return None

    def get_window(self, loops: range, order: torch.Tensor | None = None) -> list[torch.Tensor | None]:
        """
        Returns the window's keys and values for `loops`, in the order of the text: (loops, batch, kv_heads, <= w,
        head_dim). None if empty. `order` is that of layer 0.
        """
        rows = slice(loops.start - 1, loops.stop - 1)
        return [states if states is None else states[rows] for states in (self.window_keys, self.window_values)]

    def update_window(
        self,
        loops: range,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        is_token: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Appends the keys and values of `loops`, all of them >= 1.

        Args:
            key_states, value_states: (loops * batch, kv_heads, time, head_dim), loops outermost.
            is_token (`torch.Tensor`, *optional*): (batch, window_length + time), false on padding.
            keep (`torch.Tensor`, *optional*): (batch, <= w), the columns to keep; the last ones by default.
            order (`torch.Tensor`, *optional*): as `get_window_order` of layer 0 returned it before the pass.

        Returns the keys and values that the new tokens can see, (loops * batch, kv_heads, window_length + time,
        head_dim).
        """
        if not self.window:  # a token sees only itself: nothing to keep
            return key_states, value_states
        visible, kept = [], []
        seen = self.window_length + key_states.shape[-2]
        for past, states in zip(self.get_window(loops, order), (key_states, value_states), strict=True):
            states = states.unflatten(0, (len(loops), -1))
            if past is not None:
                states = torch.cat([past, states], dim=-2)
            visible.append(states[..., -seen:, :].flatten(0, 1))
            if not self.record_past:
                states = states[..., -self.window :, :] if keep is None else gather_columns(states, keep)
                if keep is None and (past is None or key_states.shape[-2] > 1):
                    states = states.clone()  # a view would keep the whole tensor alive
            kept.append(states)
        if is_token is not None and self.record_past:  # the hidden columns precede any padding, so all are tokens
            is_token = torch.nn.functional.pad(is_token, (kept[0].shape[-2] - seen, 0), value=True)
        elif is_token is not None:
            is_token = is_token[:, -self.window :] if keep is None else is_token.gather(1, keep)
        self._keep_window(loops, *kept, is_token)  # type: ignore[call-arg]
        return tuple(visible)  # type: ignore[return-value]

    def _keep_window(self, loops: range, keys: torch.Tensor, values: torch.Tensor, is_token) -> None:
        if loops.start == 1:
            self._unfinished = []
        self._unfinished.append((keys, values))
        if loops.stop == self.num_loops:  # if loops run one after another, the last one updates all windows
            self.window_keys, self.window_values = (
                parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*self._unfinished, strict=True)
            )
            self._unfinished, self.is_token = [], is_token

    def update_carries(self, states: list[torch.Tensor]) -> None:
        """
        Stores what each loop but the last passes on to the next token. Each column of `states[r]` (batch, time,
        hidden_size) is `H^r` of the last token up to there. Keeps the last column, or all while recording the past.
        """
        new = torch.stack(states if self.record_past else [state[:, -1:] for state in states])
        keeps_past = self.record_past and self.carries is not None
        self.carries = torch.cat([self.carries, new], dim=2) if keeps_past else new

    def take_back(self, count: int) -> None:
        """Removes the last `count` tokens from loop 0's keys and values only. Later loops must not have seen them."""
        raise NotImplementedError

    def set_window(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Replaces the windows of all loops >= 1, (R - 1, batch, kv_heads, <= w, head_dim), all of them tokens."""
        self._keep_window(range(1, self.num_loops), keys, values, None)

    def add_tokens(self, count: int) -> None:
        """In layer 0, after `set_window` in all layers: counts the tokens that it added, without padding."""

    def get_carries(self) -> torch.Tensor | None:
        """Returns `H^r` of the last token for r < R - 1, (R - 1, batch, 1, hidden_size); None or zeros if empty."""
        return self.carries if self.carries is None else self.carries[:, :, -1:]

    @property
    def nbytes(self) -> int:
        """Size of all stored states in bytes, without the spare room for the next tokens."""
        tensors = (self.keys, self.values, *self._loop_tensors().values())
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def _loop_tensors(self) -> dict[str, torch.Tensor]:
        names = ("window_keys", "window_values", "is_token", "next_column", "carries")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _map_batch(self, function) -> None:
        """Applies `function(tensor, batch_dim)` to every tensor of the loops."""
        for name, tensor in self._loop_tensors().items():
            setattr(self, name, function(tensor, 0 if name in ("is_token", "next_column") else 1))

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self._clear_loops()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._map_batch(lambda tensor, dim: tensor.index_select(dim, beam_idx.to(tensor.device)))

    # `offload` and `prefetch` are inherited and move only the shared part. Windows and carries stay on the device: they
    # are small, and are still needed after the shared part has left it.


class PLTCacheLayer(LoopStates, DynamicLayer):
    """
    One decoder layer's cache: the shared keys and values of loop 0, plus a window for each later loop.

    It is registered for the layer type `parallel_loop_attention`, so `generate()` and `DynamicCache(config=config)`
    build it.
    """

    _layer_type = LAYER_TYPE
    can_take_back = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._key_buffer, self._value_buffer = GrowingBuffer(), GrowingBuffer()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Like the library's. Without gradients, though, a step appends in place, and existing columns are copied only
        when up to `SPARE_COLUMNS` spare columns are used up. The result is then a view, and not contiguous.
        """
        is_traced = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_traced or self.get_seq_length() == 0 or not _can_grow(self.keys, key_states):
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = self._key_buffer.append(self.keys, key_states)
        self.values = self._value_buffer.append(self.values, value_states)
        return self.keys, self.values

    def take_back(self, count: int) -> None:
        self.keys = self._key_buffer.take_back(self.keys, count)
        self.values = self._value_buffer.take_back(self.values, count)

    def activate_past_recording(self) -> None:
        """Makes windows and carries keep everything until the next `crop`, so that tokens can be rolled back."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """
        Removes the last `-tokens_to_remove` tokens. 0 only discards what was recorded beyond the usual size.

        Raises:
            ValueError: if the number is positive, or if the states of the new last token were not recorded.
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
        if tokens_to_remove and self.carries is not None and self.carries.shape[2] <= -tokens_to_remove:
            raise ValueError(
                f"Cannot remove {-tokens_to_remove} tokens: the loop states of the token before them were not kept. "
                "Call `cache.activate_past_recording()` before you add tokens that you may remove."
            )
        super().crop(tokens_to_remove)
        columns = slice(None, tokens_to_remove or None)
        if self.carries is not None:
            self.carries = self.carries[:, :, columns][:, :, -1:]
        if self.window_keys is not None:
            states = [self.window_keys[..., columns, :], self.window_values[..., columns, :]]
            if self.is_token is None:
                states = [state[..., -self.window :, :] for state in states]
            else:
                keep = last_tokens(self.is_token[:, columns], self.window)
                states, self.is_token = (
                    [gather_columns(state, keep) for state in states],
                    self.is_token.gather(1, keep),
                )
            self.window_keys, self.window_values = states

    def reset(self) -> None:
        super().reset()
        self.keys = self.values = None  # Transformers 5.16 zeroes them instead of removing them
        self.is_initialized = False

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._map_batch(lambda tensor, dim: tensor.repeat_interleave(repeats, dim=dim))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._map_batch(lambda tensor, dim: tensor[(slice(None),) * dim + (indices,)])


def is_exporting() -> bool:
    """
    Returns whether `torch.export` (or the ONNX exporter) is tracing. No branch may then depend on a size.

    Reads private flags, because `torch.compiler.is_exporting()` is also true inside `torch.compile` in some versions
    (2.11). Before PyTorch 2.7, `torch.export` sets `_is_compiling_flag`, and `torch.compile` does not.
    """
    flags = torch.compiler
    return flags._is_exporting_flag if hasattr(flags, "_is_exporting_flag") else flags._is_compiling_flag


__all__ = ["LAYER_TYPE", "LoopStates", "PLTCacheLayer"]
