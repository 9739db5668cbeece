# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Research controls: variants of PLT with one part removed, to train and time in the same code base.

    plt_loop_attention = "shared"     later loops attend only to loop 0's keys
    plt_loop_attention = "own"        later loops attend to all their own keys, and not to loop 0's
    plt_cross_loop_shift = False      a loop reads the state of the same token, and has to wait for it

The released model uses none of these.
"""

import torch

from .attention_plt import IQuestPLTCoderAttention
from .grid_plt import LoopGrid, Run
from .masks_plt import Cells


class SharedKeysAttention(IQuestPLTCoderAttention):
    """Attention of all loops to loop 0's keys only."""

    def attend_later(self, query_BHNC, key_BKNC, value_BKNC, cells: Cells, cache, **kwargs) -> None:  # type: ignore[override]
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


class UnshiftedGrid(LoopGrid):
    """A grid where `x^r_i` reads `H^{r-1}_i`. Passes carry no state over."""

    def _fed_back(self, run: Run) -> torch.Tensor:
        states_BTD = self.states[run.loop - 1].to(self.embeds_BTD.device)
        return states_BTD[:, -(run.stop - run.start) :]

    def next_carries(self) -> list[torch.Tensor]:
        return []


ATTENTIONS = {"gated": IQuestPLTCoderAttention, "shared": SharedKeysAttention, "own": OwnKeysAttention}


def grid_class(config) -> type[LoopGrid]:
    return LoopGrid if config.plt_cross_loop_shift else UnshiftedGrid


__all__ = ["ATTENTIONS", "grid_class"]
