# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Tables and the picture of a trained family, from its runs."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..diagnostics.bootstrap import recommend
from ..utils.markdown import table
from .cells import Cell, cell_of, order
from .measure import bits_per_byte_of_nats, choose_contrast
from .statistics import Difference, interval, paired_difference, rows_interval


class Family:
    """Trained models of one size and number of tokens, and their held-out losses."""

    def __init__(self, runs: list[dict]):
        self.runs: dict[Cell, dict[int, dict]] = defaultdict(dict)
        for run in runs:
            self.runs[cell_of(run)][run["seed"]] = run
        self.first = first = runs[0]
        self.tokens = first["heldout"]["tokens_per_row"] * len(first["heldout"]["nats"][0])
        self.units = bits_per_byte_of_nats(self.tokens, first["environment"]["heldout_bytes_per_token"])

    def __str__(self) -> str:
        parameters, tokens = self.first["non_embedding_parameters"] / 1e6, self.first["tokens"] / 1e6
        return f"{parameters:.2f} million parameters, {tokens:.1f} million tokens"

    def nats(self, cell: Cell, seeds: list[int], loops: int | None = None) -> np.ndarray:
        """Returns the losses (seeds, rows) of a cell, run with its own number of loops or with another."""
        loops = loops or cell.loops
        return np.array([self.runs[cell][seed]["heldout"]["nats"][loops - 1] for seed in seeds])

    def bits_per_byte(self, cell: Cell, loops: int | None = None) -> np.ndarray:
        """Returns the bits per byte of every seed."""
        return self.nats(cell, sorted(self.runs[cell]), loops).sum(axis=1) * self.units

    def copied_nats(self, cell: Cell, seeds: list[int]) -> np.ndarray:
        """Returns the losses on copies (seeds, rows) of a cell, run with its own number of loops."""
        return np.array([self.runs[cell][seed]["heldout"]["copied_nats"] for seed in seeds])

    def common_seeds(self, cell: Cell, other: Cell) -> list[int]:
        return sorted(set(self.runs.get(cell, {})) & set(self.runs.get(other, {})))

    def difference(self, cell: Cell, other: Cell) -> Difference | None:
        """Compares two cells, each with its own number of loops, over the seeds of both; None without any."""
        seeds = self.common_seeds(cell, other)
        if not seeds:
            return None
        return paired_difference(self.nats(cell, seeds), self.nats(other, seeds), self.units)

    def difference_by_token(self, cell: Cell, other: Cell) -> tuple[Difference, Difference] | None:
        """As `difference`, in nats per token: on copies, and on all other tokens. None without seeds of both."""
        seeds, copies = self.common_seeds(cell, other), self.first["heldout"]["copies"]
        if not seeds:
            return None
        ours, theirs = self.copied_nats(cell, seeds), self.copied_nats(other, seeds)
        our_rest, their_rest = self.nats(cell, seeds) - ours, self.nats(other, seeds) - theirs
        on_copies = paired_difference(ours, theirs, 1 / copies)
        return on_copies, paired_difference(our_rest, their_rest, 1 / (self.tokens - copies))


def losses_table(family: Family) -> str:
    rows = []
    for cell in sorted(family.runs, key=order):
        mean, _, high = interval(family.bits_per_byte(cell))
        others = [f"{family.bits_per_byte(cell, loops).mean():.3f}" for loops in range(1, 6)]
        others[cell.loops - 1] = f"**{others[cell.loops - 1]}**"
        count = len(family.runs[cell])
        spread = f"{mean:.4f} ± {high - mean:.4f}" if count > 1 else f"{mean:.4f}"
        rows.append([cell, count, spread, *others])
    return table(["model", "seeds", "bits per byte", *(f"run with R = {loops}" for loops in range(1, 6))], rows)


COMPARISONS = [
    ("second loop, shift", Cell(2), Cell(1)),
    ("second loop, no shift", Cell(2, False), Cell(1)),
    ("third loop, shift", Cell(3), Cell(2)),
    ("third loop, no shift", Cell(3, False), Cell(2, False)),
    ("fourth loop, shift", Cell(4), Cell(3)),
    ("fourth loop, no shift", Cell(4, False), Cell(3, False)),
    ("fifth loop, shift", Cell(5), Cell(4)),
    ("fifth loop, no shift", Cell(5, False), Cell(4, False)),
    ("no shift over shift, R = 2", Cell(2, False), Cell(2)),
    ("no shift over shift, R = 3", Cell(3, False), Cell(3)),
    ("no shift over shift, R = 4", Cell(4, False), Cell(4)),
    ("learned offset over shift, R = 2", Cell(2, "learned"), Cell(2)),
    ("learned offset over shift, R = 3", Cell(3, "learned"), Cell(3)),
    ("mix of four over shift, R = 3", Cell(3, "mixed"), Cell(3)),
    ("joint over gated attention, R = 2", Cell(2, True, "joint"), Cell(2)),
    ("joint over gated attention, R = 3", Cell(3, True, "joint"), Cell(3)),
    ("third loop, joint attention", Cell(3, True, "joint"), Cell(2, True, "joint")),
    ("shared over gated attention, R = 3", Cell(3, True, "shared"), Cell(3)),
    ("own over gated attention, R = 3", Cell(3, True, "own"), Cell(3)),
]


def differences_table(family: Family) -> str:
    rows = []
    for name, cell, other in COMPARISONS:
        found = family.difference(cell, other)
        if found is None:
            continue
        one = found.seeds == 1
        over_seeds = "one seed" if one else f"{found.low:+.4f} … {found.high:+.4f}"
        over_rows = "" if found.rows is None else f"{found.rows[0]:+.4f} … {found.rows[1]:+.4f}"
        detectable = "" if found.detectable is None else f"{found.detectable:.4f}"
        verdict = "" if one else "yes" if found.is_clear else "no"
        rows.append([name, found.seeds, f"{found.mean:+.4f}", over_seeds, over_rows, detectable, verdict])
    head = ["difference, bits per byte", "seeds", "mean", "95 % over seeds", "95 % over rows", "detectable", "clear"]
    return table(head, rows)


def copies_table(family: Family) -> str:
    """Losses on copies and on all other tokens: for each model by seed, then the differences."""
    copies = family.first["heldout"].get("copies", 0)
    if not copies:
        return "No losses on copies were recorded."
    levels = []
    for cell in sorted(family.runs, key=order):
        seeds = sorted(family.runs[cell])
        copied = family.copied_nats(cell, seeds).sum(axis=1)
        rest = family.nats(cell, seeds).sum(axis=1) - copied
        each = (copied / copies, rest / (family.tokens - copies))
        levels.append([cell, *(" ".join(f"{value:.3f}" for value in values) for values in each)])
    differences = []
    for name, cell, other in COMPARISONS:
        found = family.difference_by_token(cell, other)
        if found is not None and found[0].seeds > 1:
            parts = (f"{part.mean:+.4f} ({part.low:+.4f} … {part.high:+.4f})" for part in found)
            differences.append([name, found[0].seeds, *parts])
    text = f"{copies / family.tokens:.1%} of the held-out tokens are copies. Intervals: 95 % over seeds."
    head = ["difference", "seeds", "nats per copy", "nats per other token"]
    tables = [table(["model", "nats per copy, per seed", "nats per other token"], levels)]
    if differences:
        tables.append(table(head, differences))
    return "\n\n".join([text, *tables])


def rule_table(family: Family) -> str:
    """The paper's rule against the loss, for every model, measured with 1 to 5 loops."""
    counts: dict[Cell, list] = defaultdict(list)
    for cell in sorted(family.runs, key=order):
        for _, run in sorted(family.runs[cell].items()):
            if run["heldout"]["effective_rank"] is None:
                continue
            losses = np.array(run["heldout"]["nats"]).sum(axis=1)
            rule = int(recommend(losses, np.array(run["heldout"]["effective_rank"])))
            counts[cell].append((rule, int(recommend(losses)), int(losses.argmin()) + 1))
    rows = [
        [cell, *(" ".join(map(str, values)) for values in zip(*found, strict=True))] for cell, found in counts.items()
    ]
    if not rows:
        return "No effective ranks were recorded."
    every = [entry for found in counts.values() for entry in found]
    same = sum(rule == best for rule, _, best in every)
    text = f"The rule picks the number of loops with the lowest held-out loss for {same} of {len(every)} models."
    return table(["model", "rule, per seed", "first rise of the loss", "lowest loss"], rows) + f"\n\n{text}"


def contrast_table(family: Family) -> str:
    """ω is chosen on the odd rows and tested on the even ones."""
    rows = []
    for cell in sorted(family.runs, key=order):
        for seed, run in sorted(family.runs[cell].items()):
            contrast = run["heldout"]["contrast"]
            if contrast is None:
                continue
            weights, nats = [float(weight) for weight in contrast], np.array(list(contrast.values()))
            best, gain = choose_contrast(weights, nats)
            units = family.units * nats.shape[1] / len(gain)
            low, high = (units * end for end in rows_interval(gain))
            rows.append([cell, seed, weights[best], f"{units * gain.sum():+.5f}", f"{low:+.5f} … {high:+.5f}"])
    if not rows:
        return "No contrasts were recorded."
    return table(["model", "seed", "ω", "tested gain, bits per byte", "95 % over rows"], rows)


def offsets_table(family: Family) -> str:
    labelled = (
        ([cell, seed], run["offset_shares"])
        for cell in sorted(family.runs, key=order)
        for seed, run in sorted(family.runs[cell].items())
    )
    return shares_table(["model", "seed"], labelled)


def shares_table(head: list[str], labelled: Iterable[tuple[list, list[list[float]] | None]]) -> str:
    """
    Returns a table of the shares of the states that loops read, per channel.

    Args:
        labelled: for each run, the cells below `head`, and the shares; None for a run with nothing learned. The first
            state is that of the token before. The second is that of the token itself with a learned offset, and of the
            token before the last with a mix of four.
    """
    rows = []
    for labels, shares_of_states in labelled:
        if shares_of_states is not None:
            shares = np.array(shares_of_states)
            means = " ".join(f"{value:.3f}" for value in shares.mean(axis=1))
            rows.append([*labels, means, f"{shares[1].max():.3f}", f"{(shares[1] > 0.5).mean():.1%}"])
    if not rows:
        return "No model with a learned offset was trained."
    columns = ["mean share of each state", "largest share of the second", "channels where it dominates"]
    return table([*head, *columns], rows)


FAMILY_TABLES: dict[str, Callable[[Family], str]] = {
    "Held-out losses": losses_table,
    "Differences": differences_table,
    "Copies": copies_table,
    "The paper's rule": rule_table,
    "Contrast of loops": contrast_table,
    "Learned offsets": offsets_table,
}


def draw_losses(path: Path, family: Family) -> None:
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    for shift, label, style in ((True, "with the shift", "o-"), (False, "without", "s--")):
        points = []
        for loops in range(1, 6):
            cell = Cell(loops, shift if loops > 1 else True)
            found = family.difference(cell, Cell(1)) if cell in family.runs else None
            if found is not None:
                half = 0.0 if found.seeds == 1 else found.high - found.mean
                points.append((loops, found.mean, half))
        if points:
            x, y, error = zip(*points, strict=True)
            left.errorbar(np.array(x) + 0.04 * (not shift), y, yerr=error, fmt=style, capsize=3, label=label)
    left.set(xlabel="loops R", ylabel="held-out bits per byte, over R = 1")
    left.xaxis.get_major_locator().set_params(integer=True)
    for cell in sorted(family.runs, key=order):
        run = next(iter(family.runs[cell].values()))
        if run["losses"]:
            steps, losses = zip(*run["losses"], strict=True)
            right.plot(steps, losses, linewidth=0.8, label=str(cell))
    right.set(xlabel="step", ylabel="training loss, nats per token")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
