# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The grid of (loop, token) cells, and the order in which a forward pass fills it.

    loop 0     ■      ■      ■        x^0_i = E_i
                  ╲      ╲
    loop 1     ■      ■      ■        x^r_i = emb_scale · E_i + hidden_scale · H^{r-1}_{i-1}
                  ╲      ╲
    loop 2     ■      ■      ■        H^r_i = norm(layers(x^r_i)),   logits_i = lm_head(H^{R-1}_i)

A cell needs the state of the previous loop at the previous token. In each layer it also needs loop 0's keys up to its
own token, and its own loop's keys of the last w tokens. A block is a set of cells that go through the layers together.
Its cells need only results of earlier blocks, and loop 0's keys, which every layer writes first. A pass is a list of
blocks:

    prompt, training     one loop, many tokens     (0, 0…T)  then  (1, 0…T)  then …
    end of a prompt      fewer tokens per layer    (0, 0…T)  then  (1, T−n…T)
    decode               one token, all loops      (0…R−1, i)
    drafts               a staircase               see `staircase_plt.py`

Source: cross-loop parallelism, arXiv 2510.24824. Shapes are suffixes: B batch, T new tokens, N cells, D hidden_size.
"""

from typing import NamedTuple

import torch


class Run(NamedTuple):
    """The cells of one loop in a block: new tokens `start` to `stop - 1`."""

    loop: int
    start: int
    stop: int


class Block(NamedTuple):
    """
    Cells that go through the layers together.

    Attributes:
        runs: in loop order. Their cells are concatenated.
        starts: L + 1 numbers, only for a block of one run: the first token that enters each layer, then the first that
            leaves the last layer. Empty if all layers take all tokens.
    """

    runs: tuple[Run, ...]
    starts: tuple[int, ...] = ()

    @property
    def loops(self) -> range:
        return range(self.runs[0].loop, self.runs[-1].loop + 1)

    def outputs(self) -> list[Run]:
        """Returns the cells whose states the block outputs."""
        if not self.starts:
            return list(self.runs)
        (run,) = self.runs
        return [run._replace(start=self.starts[-1])]


class GridShape(NamedTuple):
    """The number of layers and loops, and how many tokens back windows and the shift reach."""

    num_layers: int
    num_loops: int
    window: int
    shift: int = 1


def plan(shape: GridShape, num_tokens: int, together: bool = False, keep: int | None = None) -> list[Block]:
    """
    Returns the blocks of a pass over `num_tokens` new tokens. `together` puts all loops of a single token in one block.
    `keep` is the number of final states of the last loop that the caller wants; all by default.

    Only loop 0 must process a whole prompt. A state of a later loop depends on loop 0's keys, on the w tokens before it
    in the layer below, and on one token before it in the previous loop. So for later loops it is enough to compute the
    end of the prompt, which includes everything the cache keeps of them.
    """
    if together:
        return [Block(tuple(Run(loop, 0, num_tokens) for loop in range(shape.num_loops)))]
    later, needed = [], keep
    for loop in range(shape.num_loops - 1, 0, -1):
        starts = _tail(shape, num_tokens, needed) if needed is not None else ()
        later.append(Block((Run(loop, starts[0] if starts else 0, num_tokens),), starts))
        needed = num_tokens - starts[0] + shape.shift if starts else None
    return [Block((Run(0, 0, num_tokens),)), *reversed(later)]


def _tail(shape: GridShape, num_tokens: int, needed: int) -> tuple[int, ...]:
    """Returns `Block.starts` so that the last layer outputs the last `needed` tokens; empty if that takes all."""
    taken = [needed + shape.window * (shape.num_layers - layer) for layer in range(shape.num_layers + 1)]
    starts = tuple(max(num_tokens - count, 0) for count in taken)
    return starts if any(starts) else ()


class LoopGrid:
    """
    The inputs and outputs of cells: the embeddings E, the states H^r, and the carries (states before the first token).

    Args:
        embeds_BTD: the embeddings of the new tokens.
        previous_BT (B, T + 1): the index of the token before each new one and before the next, see [`Layout`].
        carries: `H^r` of the token before the first, r < R - 1, (R - 1, B, 1, D). None at the start of a text: zeros.
            For a staircase, a list: the states of the token before the first and of all that loop r has already done.
        mix: the module that mixes states, for the controls that do (see `controls_plt.py`).
    """

    carried = 1  # the number of states in a carry

    def __init__(self, config, num_loops: int, embeds_BTD, previous_BT=None, carries=None, mix=None):
        self.config = config
        self.num_loops = num_loops
        self.embeds_BTD = embeds_BTD
        self.previous_BT = previous_BT
        self.mix = mix
        if carries is None:
            batch, _, size = embeds_BTD.shape
            carries = embeds_BTD.new_zeros((num_loops - 1, batch, 1, self.carried * size))
        self.carries = [carry.to(embeds_BTD.device) for carry in carries]
        self.states: list[torch.Tensor] = []  # H^r of the new tokens, or only of the last ones if more are not needed

    def inputs(self, block: Block) -> torch.Tensor:
        """Returns the inputs `x` (B, N, D) of a block's cells."""
        inputs = [self._input(run) for run in block.runs]
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)

    def _input(self, run: Run) -> torch.Tensor:
        """Returns `x^r_i = emb_scale · E_i + hidden_scale · H^{r-1}_{i-1}`, or `E_i` for loop 0."""
        embeds_BND = self.embeds_BTD[:, run.start : run.stop]
        if run.loop == 0:
            return embeds_BND
        emb_scale, hidden_scale = self.config.plt_emb_scale, self.config.plt_hidden_scale
        fed_back_BND = self._fed_back(run)
        embeds_BND = embeds_BND if emb_scale is None else emb_scale * embeds_BND
        return embeds_BND + (fed_back_BND if hidden_scale is None else hidden_scale * fed_back_BND)

    def _fed_back(self, run: Run) -> torch.Tensor:
        """Returns `H^{r-1}` of the token before each of the run's tokens, (B, N, D)."""
        carry_B1D = self.carries[run.loop - 1]
        if len(self.states) < run.loop:  # the loops run together, so the tokens before these are in the carries
            return carry_B1D[:, run.start : run.stop]
        before = states_before(carry_B1D, self.states[run.loop - 1].to(carry_B1D.device), self.previous_BT)
        return before[:, -(run.stop - run.start) - 1 : -1]

    def put(self, block: Block, hidden_BND: torch.Tensor, norm) -> None:
        """Stores a block's outputs `H^r`. Norms them if the fed-back state is normed, and always in the last loop."""
        # CODEPATH: True in LoopCoder-V2 and by default.
        if self.config.plt_normalize_per_loop:
            hidden_BND = norm(hidden_BND)
        sizes = [run.stop - run.start for run in block.outputs()]
        states = list(hidden_BND.split(sizes, dim=1)) if len(sizes) > 1 else [hidden_BND]
        if not self.config.plt_normalize_per_loop and block.loops.stop == self.num_loops:
            states[-1] = norm(states[-1])
        self.states += states

    def next_carries(self) -> list[torch.Tensor]:
        """Returns, for each loop but the last, `H^r` of the last token up to each final column, (B, ≤ T, D)."""
        if self.previous_BT is None:
            return self.states[:-1]
        pairs = zip(self.carries, self.states[:-1], strict=True)
        return [states_before(carry, states, self.previous_BT)[:, 1:] for carry, states in pairs]


def states_before(carry_B1D: torch.Tensor, states_BTD: torch.Tensor, previous_BT: torch.Tensor | None) -> torch.Tensor:
    """
    Applies the shift: returns the state of the previous token for each token of a chunk and for the next one,
    (B, T + 1, D). If only the states of the chunk's end are given, the state before the first of them is unknown. Its
    column then holds the carry and must not be used.
    """
    states_BTD = torch.cat([carry_B1D, states_BTD], dim=1)
    if previous_BT is None:
        return states_BTD
    missing = previous_BT.shape[1] - states_BTD.shape[1]
    index = (previous_BT[:, missing:] - missing).clamp(min=0)
    index = index[..., None].expand(states_BTD.shape[0], -1, states_BTD.shape[-1])
    return states_BTD.gather(1, index)


__all__ = ["Block", "GridShape", "LoopGrid", "Run", "plan", "states_before"]
