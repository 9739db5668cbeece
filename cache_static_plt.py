# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The layers of a static cache, whose windows are rings of w + 1 columns: a step writes one column and moves none.

    columns of a row, w = 4       0   1   2   3   4       column 2 holds the oldest token, which the next one does
    tokens                        5   6   2   3   4       not see any more, so it takes that column

A single new token reads the ring as it is, because attention does not depend on the order of the keys. The rows of a
batch count tokens, not columns: padding overwrites the column that the next token takes, and leaves it to that token.
Several new tokens need the order of the text. They take the columns out in that order, and put back the last w of them.

    every layer     window_keys, …_values     (R - 1, batch, kv_heads, w + 1, head_dim)
    layer 0         is_token                  which columns hold tokens: (batch, w + 1)
                    next_column               the column that the next token takes: (batch,)
"""

import torch
from transformers.cache_utils import StaticLayer

from .cache_layers_plt import LAYER_TYPE, LoopStates, gather_columns, is_exporting


class PLTStaticCacheLayer(LoopStates, StaticLayer):
    """
    A cache layer with fixed shapes for `torch.compile`, used by `cache_implementation="static"` and
    `StaticCache(config=config, max_cache_len=...)`. All its tensors keep their addresses.
    """

    _layer_type = LAYER_TYPE
    can_take_back = True
    is_croppable = False  # the library's is, since 5.24; windows and carries of fixed size keep no older states

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(
            "A static PLT cache cannot be cropped: it keeps no older windows and carries. Use the default cache and "
            "call `activate_past_recording()` on it."
        )

    def take_back(self, count: int) -> None:
        self.cumulative_length.sub_(count)

    def get_seq_length(self) -> torch.Tensor | int:
        """Returns a copy of the counter. Flex attention's masks read it only after `update` has counted new tokens."""
        length = super().get_seq_length()
        return length.clone() if isinstance(length, torch.Tensor) else length

    def set_num_loops(self, num_loops: int, window: int) -> None:
        is_first_pass = self.num_loops is None
        if is_first_pass and self.is_initialized and num_loops > 1 and is_exporting():
            raise ValueError(
                "This exporter cannot handle a PLT cache: it registers the shared keys and values, but would lose the "
                "windows and carries. Export with `use_cache=False`, with one loop, or with `transformers.exporters`."
            )
        super().set_num_loops(num_loops, window)

    # -- the ring -----------------------------------------------------------------------------------------------------

    @property
    def window_length(self) -> int:
        return self.window

    def get_window_order(self, batch_size: int, device: torch.device) -> torch.Tensor | None:
        if not self.window:
            return None
        column = self.next_column
        if column is None:
            column = torch.zeros(batch_size, dtype=torch.long, device=device)
        return self._after(column[:, None], torch.arange(1, self.window + 2, device=device))

    def _after(self, column: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
        """Returns the column that comes `count` columns after `column`."""
        return (column + count) % (self.window + 1)

    def get_ring_tokens(self, batch_size: int, device: torch.device) -> torch.Tensor:
        """In layer 0: returns which columns of the ring hold tokens, (batch, w + 1)."""
        if self.is_token is None:
            return torch.zeros(batch_size, self.window + 1, dtype=torch.bool, device=device)
        return self.is_token

    def get_window_tokens(self, batch_size: int, device: torch.device) -> torch.Tensor:
        order = self.get_window_order(batch_size, device)
        if order is None:
            return torch.zeros(batch_size, 0, dtype=torch.bool, device=device)
        return self.get_ring_tokens(batch_size, device).gather(1, order[:, :-1])

    def get_window(self, loops: range, order: torch.Tensor | None = None) -> list[torch.Tensor | None]:
        return [gather_columns(states, order[:, :-1]) for states in super().get_window(loops)]

    def update_window(
        self,
        loops: range,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        is_token: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Like the other layers'. A single new token gets the keys and values of the ring, in the ring's order."""
        if self.window and self.window_keys is None:
            batch = key_states.shape[0] // len(loops)
            for name, states in (("window_keys", key_states), ("window_values", value_states)):
                shape = (self.num_loops - 1, batch, states.shape[1], self.window + 1, states.shape[3])
                self._allocate(name, states.new_zeros(shape))
        if not self.window or key_states.shape[-2] > 1:
            return super().update_window(loops, key_states, value_states, is_token, keep, order)
        rings = super().get_window(loops)
        for ring, states in zip(rings, (key_states, value_states), strict=True):
            _write_column(ring, order[:, -1], states.unflatten(0, (len(loops), -1)))
        return tuple(ring.flatten(0, 1) for ring in rings)  # type: ignore[return-value]

    def _keep_window(self, loops, keys, values, is_token):
        for ring, states in zip(super().get_window(loops), (keys, values), strict=True):
            ring[..., 1:, :].copy_(states)  # `_count_again` frees the first column

    def update_tokens(self, is_token: torch.Tensor, keep: torch.Tensor | None, order: torch.Tensor) -> None:
        """In layer 0, after a pass: counts the new tokens. The arguments are those of `update_window`."""
        if self.window_keys is None:
            return
        if self.is_token is None:
            self._allocate("is_token", torch.zeros_like(is_token[:, : self.window + 1]))
            self._allocate("next_column", torch.zeros_like(order[:, 0]))
        if is_token.shape[1] > self.window + 1:  # several new tokens
            self._count_again(is_token[:, -self.window :] if keep is None else is_token.gather(1, keep))
            return
        column = order[:, -1:]
        self.next_column.copy_(self._after(column, is_token.gather(1, column).long())[:, 0])
        self.is_token.copy_(is_token)

    def add_tokens(self, count: int) -> None:
        if self.window_keys is not None:
            is_token = self.get_window_tokens(len(self.is_token), self.is_token.device)
            self._count_again(torch.nn.functional.pad(is_token, (0, count), value=True)[:, -self.window :])

    def _count_again(self, is_token: torch.Tensor) -> None:
        """Lets the ring start at its first column, after the window was written in order. `is_token`: (batch, w)."""
        self.is_token.copy_(torch.nn.functional.pad(is_token, (1, 0)))
        self.next_column.zero_()

    # -- fixed addresses ----------------------------------------------------------------------------------------------

    def update_carries(self, states: list[torch.Tensor]) -> None:
        last = torch.stack([state[:, -1:] for state in states])
        if self.carries is None:
            self._allocate("carries", torch.zeros_like(last))
        self.carries.copy_(last)

    def _allocate(self, name: str, tensor: torch.Tensor) -> None:
        setattr(self, name, tensor)
        if not torch.compiler.is_compiling():  # for CUDA graphs; the library marks the shared keys and values too
            torch._dynamo.mark_static_address(tensor)

    def reset(self) -> None:
        loop_tensors = self._loop_tensors()
        super().reset()
        for name, tensor in loop_tensors.items():  # zeroed in place, to keep their addresses
            setattr(self, name, tensor.zero_())


def _write_column(ring: torch.Tensor, column: torch.Tensor, states: torch.Tensor) -> None:
    """Writes `states` (loops, batch, kv_heads, 1, head_dim) to each row's `column` (batch,) of a ring, in place."""
    rows = torch.arange(len(column), device=column.device)
    ring[:, rows, :, column] = states[..., 0, :].transpose(0, 1)  # the indexed dimensions come first


__all__ = ["PLTStaticCacheLayer"]
