# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The states of a staircase (`staircase_plt.py`): what loops that are ahead of the last one have computed.

The cache itself stays as after plain decoding, except that loop 0's keys and values reach as far as loop 0. All else
that lies ahead of the last loop is kept here: keys and values of loops >= 1, and the states that they feed to the next
loop. It is dropped if a draft is wrong. Its size depends on the lengths of drafts, not on the text's.

Shapes are suffixes: B batch (always 1), U tokens of a pass, N cells, S keys, D hidden_size, K key/value heads,
C head_dim.
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from .grid_plt import Block
from .kernels_plt import get_kernel
from .masks_plt import Cells, Layout, Window, as_additive
from .staircase_plt import advance, plan_staircase


Columns = tuple[torch.Tensor, ...]  # keys and values of one loop, (B, K, S, C)


class Staircase:
    """
    The states ahead of the last loop, over a PLT cache of one row without padding.

    A pass calls `layout`, `get_carries`, in each layer `update_window`, and `update_carries`. The caller ends it with
    `settle` once it knows which tokens are right.

    Attributes:
        leads: see `staircase_plt.py`. All are 0 if no loop is ahead.
        past_length: the number of tokens before the pass, which all loops have computed.
    """

    def __init__(self, cache: Cache, num_loops: int):
        self.cache = cache
        self.leads = (0,) * num_loops
        self.past_length = 0
        self._ahead: list[list[Columns]] = [[] for _ in cache.layers]  # for each layer and loop >= 1
        self._states_ahead: list[torch.Tensor] = []  # for each loop but the last, (B, lead, D)
        self._clear_pass()

    def _clear_pass(self) -> None:
        self.block = Block(())  # the cells of the running pass
        self._windows: list[list[Columns]] = [[] for _ in self.cache.layers]  # with all columns that the pass sees
        self._order: torch.Tensor | None = None  # of the windows' columns, if they are rings
        self._states: list[torch.Tensor] = []  # the carries and the new states, (B, 1 + stop, D)

    @property
    def is_level(self) -> bool:
        """Whether no loop is ahead, as after plain decoding."""
        return not any(self.leads)

    @property
    def sizes(self) -> list[int]:
        """The number of cells per loop in the running pass."""
        return [run.stop - run.start for run in self.block.runs]

    def get_carries(self) -> list[torch.Tensor]:
        """Returns the states of the last settled token and those ahead, (B, 1 + lead, D), of each loop but the last."""
        carries = self.cache.layers[0].get_carries()
        if self.is_level:
            return [] if carries is None else list(carries)
        pairs = zip(carries, self._states_ahead, strict=True)
        return [torch.cat([carry, ahead.to(carry.device)], dim=1) for carry, ahead in pairs]

    # -- how the layers see a pass ------------------------------------------------------------------------------------

    def layout(self, config, embeds_BUD: torch.Tensor) -> "StaircaseLayout":
        """Plans a pass over the last known token and the drafts after it, and creates its masks."""
        if self.is_level:  # plain passes may have come before
            self.past_length = int(self.cache.get_seq_length())
        self.block = plan_staircase(self.leads, embeds_BUD.shape[1])
        self._order = self.cache.layers[0].get_window_order(1, embeds_BUD.device)
        kernel, dtype = get_kernel(config._attn_implementation), embeds_BUD.dtype
        heads_per_key = config.num_attention_heads // config.num_key_value_heads

        def finished(mask: torch.Tensor) -> torch.Tensor:
            """Turns a mask (N, S) into that of a kernel: (1, 1, heads per key head · N, S)."""
            mask = mask.repeat(heads_per_key, 1)[None, None]
            return as_additive(mask, torch.float32 if dtype == torch.float64 else dtype) if kernel.adds_masks else mask

        layout = StaircaseLayout(finished(self._global_mask(embeds_BUD.device)), staircase=self)
        if len(self.leads) > 1:
            layout.window = Window(config.loop_window, finished(self._window_mask(embeds_BUD.device)))
        return layout

    def _global_mask(self, device) -> torch.Tensor:
        """Returns which of loop 0's keys each cell sees: those up to its own token."""
        keys = torch.arange(self.cache.get_mask_sizes(self.sizes[0], 0)[0], device=device)
        tokens = [token for run in self.block.runs for token in range(run.start, run.stop)]
        return keys <= torch.tensor(tokens, device=device)[:, None] + self.past_length

    def _window_mask(self, device) -> torch.Tensor:
        """Returns which keys of loops >= 1 each of their cells sees: its own loop's, in the window."""
        layer, later = self.cache.layers[0], self.block.runs[1:]
        width = self._window_width(layer)
        columns = [(run.loop, token) for run in later for token in range(-width, run.stop)]
        cells = [(run.loop, token) for run in later for token in range(run.start, run.stop)]
        key_loop, key_token = torch.tensor(columns, device=device).T
        loop, token = (torch.tensor(cells, device=device).reshape(-1, 2).T)[..., None]
        distance = token - key_token
        seen = (loop == key_loop) & (distance >= 0) & (distance <= layer.window)
        is_token = layer.get_window_tokens(1, device) if width else None
        if is_token is not None:  # a static cache, whose windows may not be full
            padded = [torch.nn.functional.pad(is_token[0], (0, run.stop), value=True) for run in later]
            seen &= torch.cat(padded)
        return seen

    def _window_width(self, layer) -> int:
        if layer.window_keys is None:
            return 0
        return layer.window_keys.shape[-2] - (self._order is not None)  # a ring has room for the next token

    def update_window(self, layer_idx: int, key_BKNC, value_BKNC) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Adds the keys and values of the pass's cells of loops >= 1. Returns all that these cells may see, loop by loop:
        the window, the columns ahead, the new ones.
        """
        layer, loops = self.cache.layers[layer_idx], []
        new = zip(key_BKNC.split(self.sizes[1:], dim=2), value_BKNC.split(self.sizes[1:], dim=2), strict=True)
        for index, columns in enumerate(new):
            parts: list[Columns] = [columns]
            if not self.is_level:
                parts.insert(0, self._ahead[layer_idx][index])
            if layer.window_keys is not None:
                order = self._order if self._order is None else self._order.to(key_BKNC.device)
                parts.insert(0, tuple(states[0] for states in layer.get_window(range(index + 1, index + 2), order)))
            loops.append(tuple(torch.cat(states, dim=2) for states in zip(*parts, strict=True)))
        self._windows[layer_idx] = loops
        keys, values = zip(*loops, strict=True)
        return (keys[0], values[0]) if len(loops) == 1 else (torch.cat(keys, dim=2), torch.cat(values, dim=2))

    def update_carries(self, states: list[torch.Tensor]) -> None:
        """Keeps the new states `H^r` (B, n, D) of each loop but the last until the pass is settled."""
        pairs = zip(self.get_carries(), states, strict=True)
        self._states = [torch.cat([carry.to(new.device), new], dim=1) for carry, new in pairs]

    # -- after a pass -------------------------------------------------------------------------------------------------

    def settle(self, settled: int, keep_ahead: bool) -> None:
        """
        Ends a pass. Its first `settled` tokens become part of the cache. The cells after them stay ahead, or are
        dropped.
        """
        written = self.block.runs[0].stop
        self.leads = advance(self.block, settled, keep_ahead)
        self.past_length += settled
        for layer, windows, index in zip(self.cache.layers, self._windows, range(len(self._ahead)), strict=True):
            if written > settled and not keep_ahead:
                layer.take_back(written - settled)
            if not windows:  # one loop
                continue
            end = self._window_width(layer) + settled
            if layer.window:
                kept = slice(max(end - layer.window, 0), end)
                keys, values = (torch.stack([c[:, :, kept] for c in states]) for states in zip(*windows, strict=True))
                layer.set_window(keys, values)
            pairs = zip(windows, self.leads[1:], strict=True)
            self._ahead[index] = [tuple(c[:, :, end : end + lead] for c in states) for states, lead in pairs]
        self.cache.layers[0].add_tokens(settled)
        if self._states:
            self.cache.layers[0].update_carries([states[:, settled : settled + 1] for states in self._states])
            ahead = zip(self._states, self.leads[:-1], strict=True)
            self._states_ahead = [states[:, settled + 1 : settled + 1 + lead] for states, lead in ahead]
        self._clear_pass()

    def drop(self) -> None:
        """Drops all that is not settled, even if an exception has ended a pass."""
        if self.block.runs or not self.is_level:
            for layer in self.cache.layers:
                layer.take_back(int(layer.get_seq_length()) - self.past_length)
        self.leads = (0,) * len(self.leads)
        self._clear_pass()


@dataclass
class StaircaseLayout(Layout):
    """The masks of a pass on a staircase, with a row for each cell."""

    staircase: Staircase | None = None

    def cells(self, config, inputs, blocks: list[Block]) -> list[Cells]:
        (block,) = blocks
        cos, sin = (
            torch.cat([states[:, run.start : run.stop] for run in block.runs], dim=1)
            for states in self.position_embeddings
        )
        staircase, num_cells = self.staircase, cos.shape[1]
        return [Cells(block.loops, (cos, sin), self.global_mask, self.window, num_cells, staircase=staircase)]


__all__ = ["Staircase"]
