# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Research controls: variants of PLT with one part removed or replaced, to train and time in the same code base.

What loops r >= 1 attend to:

    plt_loop_attention = "shared"       only loop 0's keys
    plt_loop_attention = "own"          all their own keys, and not loop 0's
    plt_loop_attention = "joint"        loop 0's keys and a window of their own keys, in one softmax without a gate

Which states of the previous loop token i reads:

    plt_cross_loop_shift = False        H^{r-1}_i: its own, for which it has to wait
    plt_cross_loop_shift = "learned"    m · H^{r-1}_{i-1} + (1 - m) · H^{r-1}_i, so it has to wait as well
    plt_cross_loop_shift = "mixed"      p_1 · H^{r-1}_{i-1} + … + p_4 · H^{r-1}_{i-4}: loops still run together

m in (0, 1) and p_1 + … + p_4 = 1 are learned per channel, shared by all loops, and start close to the shift: m and p_1
are 0.98. At the start of a text, the missing states are zeros. The released model uses none of these controls.

Shapes are suffixes, as in `grid_plt.py` and `attention_plt.py`.
"""

from dataclasses import replace

import torch
from torch import nn

from .attention_plt import IQuestPLTCoderAttention
from .configuration_plt import MIXED_STATES
from .grid_plt import LoopGrid, Run, states_before
from .kernels_plt import KERNELS, attend, attend_from_one_position, get_kernel
from .mask_views_plt import shape_of
from .masks_plt import Cells, Layout, as_additive, create_layout


# -- what loops >= 1 attend to ----------------------------------------------------------------------------------------


class SharedKeysAttention(IQuestPLTCoderAttention):
    """Attention of all loops to loop 0's keys only."""

    def attend_later(self, query_BHNC, key_BKNC, value_BKNC, shared, cells: Cells, cache, **kwargs) -> None:  # type: ignore[override]
        return None

    def mix(self, global_BNHC, local, residual_BND, query_BHNC, cells: Cells) -> torch.Tensor:
        return global_BNHC


class OwnKeysAttention(IQuestPLTCoderAttention):
    """Attention of each loop to all of its own keys, which its window holds."""

    def attend_globally(self, query_BHNC, key0_BKSC, value0_BKSC, cells: Cells, **kwargs) -> torch.Tensor:
        if cells.loops.start > 0:
            return query_BHNC.transpose(1, 2)  # unused
        query_BHNC = query_BHNC[:, :, : cells.num_outputs]
        return super().attend_globally(query_BHNC, key0_BKSC, value0_BKSC, cells, **kwargs)

    def mix(self, global_BNHC, local_BNHC, residual_BND, query_BHNC, cells: Cells) -> torch.Tensor:
        return local_BNHC


class JointAttention(OwnKeysAttention):
    """
    Attention of loops >= 1 to two sets of keys in one softmax, without a gate. Token i sees loop 0's keys of all tokens
    up to i, and its own loop's keys of the tokens i - w … i. So a token in the window counts twice, with a key of each.

    In the spirit of LPT (arXiv 2610.02383).
    """

    def _attend_in_window(self, query_BHNC, key_BKSC, value_BKSC, shared, cells: Cells, **kwargs) -> torch.Tensor:
        num_loops, num_shared = query_BHNC.shape[0] // shared[0].shape[0], shared[0].shape[2]
        key0, value0 = (states.repeat(num_loops, 1, 1, 1) for states in shared)  # loops are rows here, see the caller
        key, value = torch.cat([key0, key_BKSC], dim=2), torch.cat([value0, value_BKSC], dim=2)
        attention = attend_from_one_position if query_BHNC.shape[2] == 1 else attend
        output, weights = attention(self, query_BHNC, key, value, cells.window.mask, **kwargs)  # type: ignore[union-attr]
        if cells.is_recorded and weights is not None:  # both together sum to one
            self.attention_tap(weights[..., :num_shared])
            self.record_window(weights[..., num_shared:], cells.window)  # type: ignore[arg-type]
        return output


ATTENTIONS = {
    "gated": IQuestPLTCoderAttention,
    "shared": SharedKeysAttention,
    "own": OwnKeysAttention,
    "joint": JointAttention,
}


def create_joint_layout(config, inputs) -> Layout:
    """
    Like `create_layout`, for [`JointAttention`]: `window.mask` covers loop 0's keys and then those of the window.

    Raises:
        ValueError: for an attention kernel that is not known to take such a mask.
    """
    if inputs.num_loops == 1:
        return create_layout(config, inputs)
    if config._attn_implementation not in KERNELS:
        raise ValueError(
            f'`plt_loop_attention="joint"` needs a mask over two sets of keys, which the attention kernel '
            f'{config._attn_implementation!r} may not take. Load the model with `attn_implementation="sdpa"` (or '
            f"another of {', '.join(KERNELS)})."
        )
    layout = create_layout(config, replace(inputs, records=True))  # recorded passes do not cut windows into tiles
    num_tokens, cache, window = inputs.embeds.shape[1], inputs.cache, layout.window
    assert window is not None  # there are several loops
    if num_tokens == 1 and layout.global_mask is None and window.mask is None:  # it sees all keys
        return layout
    shared, own = layout.global_mask, window.mask  # None: causal
    if shared is None:
        past, num_keys = 0, num_tokens
        if cache is not None:
            past, num_keys = cache.get_seq_length(), cache.get_mask_sizes(num_tokens, 0)[0]
        shared = _causal_mask(config, inputs.embeds, past, num_keys, num_keys)
    if own is None:
        past = 0 if cache is None else cache.layers[0].window_length
        own = _causal_mask(config, inputs.embeds, past, past + num_tokens, window.left)
    elif window.is_token is None and layout.previous is None:  # all rows are alike
        own = own[:1]
    if max(shared.shape[0], own.shape[0]) > 1:
        rows = inputs.embeds.shape[0] * (inputs.num_loops - 1 if inputs.together else 1)  # loops as rows, outermost
        shared, own = (mask.repeat(rows // mask.shape[0], 1, 1, 1) for mask in (shared, own))
    window.mask = torch.cat([shared, own], dim=-1)
    return layout


def _causal_mask(config, embeds_BTD: torch.Tensor, past, num_keys: int, left: int) -> torch.Tensor:
    """
    Returns the mask (1, 1, T, num_keys) of new tokens that see the keys up to their own, and at most `left` before it.
    `past` keys precede the first token's.
    """
    keys = torch.arange(num_keys, device=embeds_BTD.device)
    distance = torch.arange(embeds_BTD.shape[1], device=embeds_BTD.device)[:, None] + past - keys
    mask = ((distance >= 0) & (distance <= left))[None, None]
    return as_additive(mask, shape_of(embeds_BTD).dtype) if get_kernel(config._attn_implementation).adds_masks else mask


def layout_function(config):
    """Returns the function that creates a pass's layout from the configuration and the inputs."""
    return create_joint_layout if config.plt_loop_attention == "joint" else create_layout


# -- which states a loop reads ----------------------------------------------------------------------------------------


class StateMix(nn.Module):
    """
    A weighted mean of the states of several tokens, with weights per channel.

    `logits` are relative to the start, where they are zero: small steps are then not rounded away in half precision,
    and weight decay pulls towards the shift.
    """

    def __init__(self, num_logits: int, hidden_size: int):
        super().__init__()
        self.logits = nn.Parameter(torch.empty(num_logits, hidden_size))

    def shares(self) -> torch.Tensor:
        """Returns the weight of each state, (number of states, D). They sum to one. The previous token is first."""
        raise NotImplementedError

    def forward(self, *states_BND: torch.Tensor) -> torch.Tensor:
        shares = self.shares().to(states_BND[0].dtype)
        return sum(share_D * state for share_D, state in zip(shares, states_BND, strict=True))


class LearnedShift(StateMix):
    """The mean `m · H_{i-1} + (1 - m) · H_i`, with `m = sigmoid(4 + logits)`."""

    def __init__(self, hidden_size: int):
        super().__init__(1, hidden_size)

    def shares(self) -> torch.Tensor:
        logits = 4.0 + self.logits
        return torch.sigmoid(torch.cat([logits, -logits]))


class EarlierStates(StateMix):
    """The mean of the states of the last four tokens, with weights `softmax(start + logits)`, start = (5, 0, 0, 0)."""

    def __init__(self, hidden_size: int):
        super().__init__(MIXED_STATES, hidden_size)

    def shares(self) -> torch.Tensor:
        start = self.logits.new_zeros(MIXED_STATES, 1)
        start[0] = 5.0
        return (start + self.logits).softmax(dim=0)


def _own_states(grid: LoopGrid, run: Run) -> torch.Tensor:
    """Returns `H^{r-1}` of the run's tokens themselves, (B, N, D)."""
    states_BTD = grid.states[run.loop - 1].to(grid.embeds_BTD.device)
    return states_BTD[:, -(run.stop - run.start) :]


class UnshiftedGrid(LoopGrid):
    """A grid where `x^r_i` reads `H^{r-1}_i`. Passes carry no state over."""

    def _fed_back(self, run: Run) -> torch.Tensor:
        return _own_states(self, run)

    def next_carries(self) -> list[torch.Tensor]:
        return []


class LearnedShiftGrid(LoopGrid):
    """A grid where `x^r_i` reads a mean of `H^{r-1}_{i-1}` and `H^{r-1}_i`."""

    def _fed_back(self, run: Run) -> torch.Tensor:
        return self.mix(super()._fed_back(run), _own_states(self, run))


class MixedStatesGrid(LoopGrid):
    """
    A grid where `x^r_i` reads a mean of `H^{r-1}_{i-1}` … `H^{r-1}_{i-4}`. A carry holds all four, concatenated along
    its last dimension, so a cache treats it like that of the shift.
    """

    carried = MIXED_STATES

    def _fed_back(self, run: Run) -> torch.Tensor:
        if len(self.states) < run.loop:  # the loops run together, so the carries hold all states
            return self.mix(*self.carries[run.loop - 1].chunk(self.carried, dim=-1))
        earlier = self._earlier(run.loop - 1)
        return self.mix(*(states[:, -(run.stop - run.start) - 1 : -1] for states in earlier))

    def next_carries(self) -> list[torch.Tensor]:
        return [torch.cat(self._earlier(loop), dim=-1)[:, 1:] for loop in range(self.num_loops - 1)]

    def _earlier(self, loop: int) -> list[torch.Tensor]:
        """
        Returns `H^loop` one to four tokens before each new token and the next one, four tensors (B, T + 1, D). If only
        the end of the states is given, the first four columns are not valid, as in `states_before`.
        """
        carries = self.carries[loop].chunk(self.carried, dim=-1)
        states_BTD, earlier = self.states[loop].to(carries[0].device), []
        for carry_B1D in carries:  # the previous state of the previous state, and so on
            earlier.append(states_before(carry_B1D, states_BTD, self.previous_BT))
            states_BTD = earlier[-1][:, :-1]
        return earlier


GRIDS = {True: LoopGrid, False: UnshiftedGrid, "learned": LearnedShiftGrid, "mixed": MixedStatesGrid}
MIXES = {"learned": LearnedShift, "mixed": EarlierStates}


def grid_class(config) -> type[LoopGrid]:
    return GRIDS[config.plt_cross_loop_shift]


def create_mix(config) -> StateMix | None:
    """Creates the parameters of a learned shift. The model itself has none."""
    mix = MIXES.get(config.plt_cross_loop_shift)
    return None if mix is None else mix(config.hidden_size)


__all__ = ["ATTENTIONS", "StateMix", "create_mix", "grid_class", "layout_function"]
