# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Where does a model gain: on tokens that could be copied from earlier in the row, or on the others?

    python -m iquest_plt.science.copying runs/science/R=1-seed0 --rows 96

Copies are those of `copies.py`. The runs of `science.train` record the same for their own rows. Adds its result to
docs/science/copying.json.
"""

import numpy as np
import torch
from torch.nn import functional as F

from ..modeling_plt import IQuestPLTCoderForCausalLM
from .copies import copies_in
from .experiment import command_line, run
from .heldout import Heldout
from .statistics import rows_interval


ROWS_AT_ONCE = 4


@torch.no_grad()
def losses(model: IQuestPLTCoderForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Returns the loss of every token but the first of rows (N, T), in nats, (N, T - 1)."""
    found = []
    for ids in rows.split(ROWS_AT_ONCE):
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        found.append(F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none"))
    return torch.cat(found)


def compare(model: IQuestPLTCoderForCausalLM, heldout: Heldout) -> dict:
    """
    Returns:
        `share`: of copies among all tokens; `copies`, `others`: the mean loss in nats per token, with an interval over
        rows; `bits_per_byte`: over all tokens.
    """
    copies = copies_in(heldout.rows)
    nats = losses(model, heldout.rows).double()
    found: dict = {"share": round(copies.double().mean().item(), 5)}
    for name, chosen in (("copies", copies), ("others", ~copies)):
        per_row = ((nats * chosen).sum(dim=1) / chosen.sum()).numpy()
        found[name] = round(float(np.sum(per_row)), 5)
        found[f"{name}_interval"] = [round(end, 5) for end in rows_interval(per_row)]
    return found | {"bits_per_byte": round(float(heldout.units(len(nats)) * nats.sum()), 5)}


def main(argv: list[str] | None = None) -> None:
    run(command_line(__doc__, "copying.json").parse_args(argv), compare, min_loops=1)


if __name__ == "__main__":
    main()
