# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Contrast of loops: does the direction from loop 1 to loop R lead further, as in contrastive decoding?

    python -m iquest_plt.science.contrast checkpoints/small --rows 96

The logits are z_R + ω (z_R - z_1); a negative ω averages the two. ω is chosen on every second held-out row by the loss
and tested on the others. Adds its result to docs/science/contrast.json.
"""

import numpy as np
import torch

from ..modeling_plt import IQuestPLTCoderForCausalLM
from .experiment import command_line, run
from .heldout import Heldout
from .measure import CONTRASTS, choose_contrast
from .statistics import rows_interval


ROWS_AT_ONCE = 1  # on a CPU, larger logits leave its cache


@torch.no_grad()
def losses(model: IQuestPLTCoderForCausalLM, rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each ω of `CONTRASTS` and each row (weights, N): the loss in nats, and the number of right tokens."""
    nats: list[list[float]] = [[] for _ in CONTRASTS]
    right: list[list[int]] = [[] for _ in CONTRASTS]
    for ids in rows.split(ROWS_AT_ONCE):
        states = model.model(ids, use_cache=False, output_loop_states=True).loop_states
        first, last = (model.lm_head(states[loop][:, :-1]).float() for loop in (0, -1))
        targets = ids[:, 1:, None]
        for index, weight in enumerate(CONTRASTS):
            logits = last + weight * (last - first)
            nats[index] += (logits.logsumexp(-1) - logits.gather(-1, targets)[..., 0]).sum(-1).tolist()
            right[index] += (logits.argmax(-1) == targets[..., 0]).sum(-1).tolist()
    return np.array(nats), np.array(right)


def choose_and_test(nats: np.ndarray, right: np.ndarray, heldout: Heldout) -> dict:
    """
    Chooses ω on the odd rows and tests it on the even ones. Arguments as `losses` returns them.

    Returns:
        ω; of the tested rows, bits per byte and top-1 without contrast, and both differences with intervals over rows.
    """
    (best, gain), plain = choose_contrast(CONTRASTS, nats), CONTRASTS.index(0.0)
    tested, hits = nats[:, 0::2], right[:, 0::2]
    units = heldout.units(tested.shape[1])
    per_token = 1 / (tested.shape[1] * (heldout.rows.shape[1] - 1))
    gain, more = units * gain, per_token * (hits[best] - hits[plain])
    return {
        "weight": CONTRASTS[best],
        "bits_per_byte": round(float(units * tested[plain].sum()), 5),
        "difference": round(float(gain.sum()), 6),
        "interval": [round(end, 6) for end in rows_interval(gain)],
        "top1": round(float(per_token * hits[plain].sum()), 5),
        "top1_difference": round(float(more.sum()), 6),
        "top1_interval": [round(end, 6) for end in rows_interval(more)],
        "all_weights": {str(w): round(float(units * row.sum()), 5) for w, row in zip(CONTRASTS, tested, strict=True)},
    }


def main(argv: list[str] | None = None) -> None:
    args = command_line(__doc__, "contrast.json").parse_args(argv)
    run(args, lambda model, heldout: choose_and_test(*losses(model, heldout.rows), heldout))


if __name__ == "__main__":
    main()
