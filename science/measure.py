# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Measures a trained model on held-out rows, for 1 to R loops.

The state after loop r does not depend on later loops, so one pass of R loops gives the predictions of every number of
loops up to R.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..diagnostics.metrics import effective_rank
from .copies import copies_in


ROWS_AT_ONCE = 16
RANK_ROWS = 16  # rows whose effective rank is measured
CONTRASTS = (-0.25, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0)  # weights ω


def heldout_rows(stream: np.ndarray, length: int, device: torch.device) -> torch.Tensor:
    """Cuts a held-out stream into rows (N, length). The rest is dropped."""
    count = len(stream) // length
    return torch.from_numpy(stream[: count * length].astype(np.int64)).view(count, length).to(device)


def bits_per_byte_of_nats(num_tokens: int, bytes_per_token: float) -> float:
    """Returns the factor from nats summed over `num_tokens` tokens to bits per byte."""
    return 1 / (math.log(2) * num_tokens * bytes_per_token)


def choose_contrast(weights: Sequence[float], nats: np.ndarray) -> tuple[int, np.ndarray]:
    """
    Chooses ω on every second row and tests it on the others.

    Args:
        weights: the values of ω, one of them 0.
        nats: the losses (weights, N) of each ω and row.

    Returns the index of ω, and the change of the loss in each tested row, those with an even number.
    """
    best, tested = int(nats[:, 1::2].sum(axis=1).argmin()), nats[:, 0::2]
    return best, tested[best] - tested[list(weights).index(0.0)]


@torch.no_grad()
def measure(model, rows: torch.Tensor, max_loops: int) -> dict:
    """
    Measures rows (N, T), whose first token is only context.

    Returns:
        `nats`: for each loop, the sum of losses of each row. `top1`: for each loop, the share of right tokens.
        `effective_rank`: the mean over the first rows, for each loop.
        `copies`: the number of tokens that are copies. `copied_nats`: the sum of their losses in each row, with the
        number of loops that the model was trained for.
        `contrast`: for each ω of `CONTRASTS`, for each row, the loss of the logits z_R + ω (z_R - z_1), where R is the
        number of loops that the model was trained for.
    """
    trained = model.config.plt_num_loops
    nats: list[list[float]] = [[] for _ in range(max_loops)]
    right, ranks = torch.zeros(max_loops), torch.zeros(max_loops)
    contrast: list[list[float]] = [[] for _ in CONTRASTS]
    copies = copies_in(rows)
    copied_nats: list[float] = []
    for number, (batch, is_copy) in enumerate(zip(rows.split(ROWS_AT_ONCE), copies.split(ROWS_AT_ONCE), strict=True)):
        output = model.model(batch, use_cache=False, num_loops=max_loops, output_loop_states=True)
        targets, first = batch[:, 1:], None
        for loop, states in enumerate(output.loop_states):
            logits = model.lm_head(states[:, :-1]).float()
            losses = _losses(logits, targets)
            nats[loop] += _row_sums(losses)
            if loop + 1 == trained:
                copied_nats += _row_sums(losses * is_copy)
            right[loop] += (logits.argmax(-1) == targets).float().sum().cpu()
            if number * ROWS_AT_ONCE < RANK_ROWS:
                ranks[loop] += effective_rank(states).sum().cpu()
            first = logits if loop == 0 else first
            if loop + 1 == trained and trained > 1:
                for index, weight in enumerate(CONTRASTS):
                    contrast[index] += _row_sums(_losses(logits + weight * (logits - first), targets))
    ranked = min(-(-RANK_ROWS // ROWS_AT_ONCE) * ROWS_AT_ONCE, len(rows))
    return {
        "tokens_per_row": rows.shape[1] - 1,
        "nats": nats,
        "top1": (right / (rows.shape[0] * (rows.shape[1] - 1))).tolist(),
        "effective_rank": (ranks / ranked).tolist(),
        "copies": int(copies.sum()),
        "copied_nats": copied_nats,
        "contrast": dict(zip(map(str, CONTRASTS), contrast, strict=True)) if trained > 1 else None,
    }


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def _row_sums(losses: torch.Tensor) -> list[float]:
    return [round(value, 3) for value in losses.sum(-1).tolist()]
