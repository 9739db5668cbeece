# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Writes every table and picture of the science report from the committed metrics:

    python -m iquest_plt.science.report

Reads runs.json, and runs_small.json, tracking.json, contrast.json, copying.json and holes.json if they exist, in
docs/science. Writes tables.md and the pictures there.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..diagnostics.bootstrap import recommend
from ..utils.figures import try_draw
from .cells import Cell, cell_of
from .measure import bits_per_byte_of_nats, choose_contrast
from .results import FOLDER, read_results
from .statistics import Difference, interval, paired_difference, rows_interval
from .texts import tested_lengths


Losses = dict[Cell, dict[int, np.ndarray]]  # of each cell and seed: nats (loops, rows)


class Family:
    """The trained models and their held-out losses."""

    def __init__(self, runs: list[dict]):
        if not runs:
            raise ValueError("There are no runs. Train some with `python -m iquest_plt.science.train`.")
        self.runs: dict[Cell, dict[int, dict]] = defaultdict(dict)
        for run in runs:
            self.runs[cell_of(run)][run["seed"]] = run
        first = runs[0]
        self.size = f"{first['non_embedding_parameters'] / 1e6:.2f} million parameters"
        tokens = first["heldout"]["tokens_per_row"] * len(first["heldout"]["nats"][0])
        self.units = bits_per_byte_of_nats(tokens, first["environment"]["heldout_bytes_per_token"])

    def nats(self, cell: Cell, seeds: list[int], loops: int | None = None) -> np.ndarray:
        """Returns the losses (seeds, rows) of a cell, run with its own number of loops or with another."""
        loops = loops or cell.loops
        return np.array([self.runs[cell][seed]["heldout"]["nats"][loops - 1] for seed in seeds])

    def bits_per_byte(self, cell: Cell, loops: int | None = None) -> np.ndarray:
        """Returns the bits per byte of every seed."""
        return self.nats(cell, sorted(self.runs[cell]), loops).sum(axis=1) * self.units

    def difference(self, cell: Cell, other: Cell) -> Difference | None:
        """Compares two cells, each with its own number of loops, over the seeds of both; None without any."""
        seeds = sorted(set(self.runs.get(cell, {})) & set(self.runs.get(other, {})))
        if not seeds:
            return None
        return paired_difference(self.nats(cell, seeds), self.nats(other, seeds), self.units)


# -- tables -----------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def order(cell: Cell) -> tuple:
    return (
        cell.elastic,
        cell.attention != "gated",
        cell.attention,
        str(cell.shift) not in ("True", "False"),
        cell.loops,
        str(cell),
    )


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


def rule_table(family: Family) -> str:
    """The paper's rule against the loss, for every model, measured with 1 to 5 loops."""
    counts: dict[Cell, list] = defaultdict(list)
    for cell in sorted(family.runs, key=order):
        for run in family.runs[cell].values():
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
    rows = []
    for cell in sorted(family.runs, key=order):
        for seed, run in sorted(family.runs[cell].items()):
            if run["offset_shares"] is None:
                continue
            shares = np.array(run["offset_shares"])
            means = " ".join(f"{value:.3f}" for value in shares.mean(axis=1))
            rows.append([cell, seed, means, f"{shares[1].max():.3f}", f"{(shares[1] > 0.5).mean():.1%}"])
    if not rows:
        return "No model with a learned offset was trained."
    head = ["model", "seed", "mean share of each state", "largest share of the second", "channels where it dominates"]
    return table(head, rows)


FAMILY_TABLES = {
    "Held-out losses": losses_table,
    "Differences": differences_table,
    "The paper's rule": rule_table,
    "Contrast of loops": contrast_table,
    "Learned offsets": offsets_table,
}


def given_contrast_table(results: list[dict]) -> str:
    """As `contrast_table`, of the given models; with top-1."""
    rows = []
    for found in results:
        low, high = found["interval"]
        least, most = (f"{100 * end:+.2f}" for end in found["top1_interval"])
        change = f"{found['difference']:+.5f} ({found['difference'] / found['bits_per_byte']:+.2%})"
        top1 = [f"{found['top1']:.2%}", f"{100 * found['top1_difference']:+.2f} ({least} … {most})"]
        rows.append(
            [found["model"], found["weight"], found["bits_per_byte"], change, f"{low:+.5f} … {high:+.5f}", *top1]
        )
    head = ["model", "ω", "bits per byte without", "tested gain", "95 % over rows", "top-1 without", "gain, points"]
    return table(head, rows)


def holes_table(results: list[dict]) -> str:
    """
    Bits per byte against the mean number of loops. Differences are to random choices, with intervals over rows. "whole
    texts": some texts with all loops and the others with one, so that none has holes.
    """
    rows = []
    for found in results:
        points = {(point["share"], point["rule"]): point for point in found["points"]}
        rows.append([found["model"], "1.00", found["none"], "", "", found["none"]])
        for share in sorted({share for share, _ in points}):
            cells = []
            for rule in ("entropy", "before"):
                point = points[share, rule]
                low, high = point["interval"]
                cells.append(f"{point['bits_per_byte']} ({point['difference']:+.4f}; {low:+.4f} … {high:+.4f})")
            random = points[share, "random"]
            share_of_texts = (random["loops"] - 1) / (found["loops"] - 1)
            mixed = f"{found['none'] + share_of_texts * (found['all'] - found['none']):.5f}"
            rows.append([found["model"], f"{random['loops']:.2f}", random["bits_per_byte"], *cells, mixed])
        rows.append([found["model"], f"{found['loops']:.2f}", found["all"], "", "", found["all"]])
    return table(["model", "mean loops", "random tokens", "by entropy", "by the entropy before", "whole texts"], rows)


def copying_table(results: list[dict]) -> str:
    """Copies: tokens that follow the two tokens before them as they did the last time in the row."""
    rows = []
    for found in results:
        parts = []
        for name in ("copies", "others"):
            low, high = found[f"{name}_interval"]
            parts.append(f"{found[name]:.3f} ({low:.3f} … {high:.3f})")
        rows.append([found["model"], f"{found['share']:.1%}", *parts, f"{found['bits_per_byte']:.3f}"])
    head = ["model", "copies among tokens", "nats per copy (95 % over rows)", "per other token", "bits per byte"]
    return table(head, rows)


SETTING = ("task", "length", "pack", "layers", "size", "steps", "rows")
TRACKED = {"three": "three things", "five": "five things", "assignments": "assignments"}


def tracked(runs: list[dict]) -> dict[tuple, dict[Cell, dict[int, dict]]]:
    """Groups runs by setting and number of moves between answers, then by model and seed."""
    groups: dict[tuple, dict[Cell, dict[int, dict]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        setting = tuple(run[name] for name in SETTING)
        for block in run["blocks"]:
            groups[(*setting, tuple(run["blocks"]), block)][cell_of(run)][run["seed"]] = run
    return groups


def tracking_table(runs: list[dict]) -> str:
    """
    The share of texts whose last answer is right, per seed. "trained with": the numbers of moves k between answers.
    """
    rows = []
    groups = tracked(runs)
    for setting in sorted(groups):
        task, length, pack, layers, size, steps, _, blocks, block = setting
        for cell in sorted(groups[setting], key=order):
            found = [run for _, run in sorted(groups[setting][cell].items())]
            shares = [
                " ".join(f"{run['accuracy'][str(block)][str(moves)]:.2f}" for run in found)
                for moves in tested_lengths(length)
            ]
            trained = f"{layers} x {size}, {steps} steps, k in {', '.join(map(str, blocks))}"
            texts = f"{length} moves" + (f", {pack} texts per row" if pack > 1 else "")
            passes = cell.loops * found[0]["tokens_per_text"][str(block)]
            rows.append([TRACKED[task], texts, trained, block, cell, passes, *shares])
    head = ["task", "trained texts", "trained with", "k", "model", "passes per text", "as long", "twice as long"]
    return table(head, rows)


DEEPER = "R = 1, twice the layers"  # costs as much as R = 2
TRACKING_COMPARISONS = [
    ("R = 2, shift", "R = 1"),
    ("R = 4, shift", "R = 1"),
    ("R = 4, shift", "R = 2, shift"),
    ("R = 2, no shift", "R = 1"),
    ("R = 4, no shift", "R = 1"),
    ("R = 4, no shift", "R = 2, no shift"),
    ("R = 2, shift", "R = 2, no shift"),
    ("R = 4, shift", "R = 4, no shift"),
    (DEEPER, "R = 1"),
    (DEEPER, "R = 2, shift"),
]


def tracking_differences(runs: list[dict]) -> str:
    """
    Differences of the accuracy, paired by seed, where at least two seeds have both models. Left out: where every model
    is right in more than 99 % of the texts.
    """
    rows = []
    groups = tracked(runs)
    for setting in sorted(groups):
        task, length, pack, layers, size, *rest, block = setting
        deeper = groups.get((task, length, pack, 2 * layers, size, *rest, block), {})
        models = {**{str(cell): found for cell, found in groups[setting].items()}, DEEPER: deeper.get(Cell(1), {})}
        for moves in tested_lengths(length):
            shares = {
                name: {seed: run["accuracy"][str(block)][str(moves)] for seed, run in found.items()}
                for name, found in models.items()
            }
            if min(share for found in shares.values() for share in found.values()) > 0.99:
                continue
            for name, other in TRACKING_COMPARISONS:
                ours, theirs = shares.get(name, {}), shares.get(other, {})
                seeds = sorted(set(ours) & set(theirs))
                if len(seeds) > 1:
                    mean, low, high = interval(np.array([ours[seed] - theirs[seed] for seed in seeds]))
                    names = [TRACKED[task], layers, block, moves, f"{name} over {other}", len(seeds)]
                    rows.append([*names, f"{mean:+.3f}", f"{low:+.3f} … {high:+.3f}"])
    if not rows:
        return "No two models have two seeds in common."
    return table(["task", "layers", "k", "moves", "difference in accuracy", "seeds", "mean", "95 % over seeds"], rows)


# -- pictures ---------------------------------------------------------------------------------------------------------


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
    left.set(xlabel="loops R", ylabel="held-out bits per byte, over R = 1 of the same seed")
    left.xaxis.get_major_locator().set_params(integer=True)
    for cell in sorted(family.runs, key=order):
        run = next(iter(family.runs[cell].values()))
        if run["losses"]:
            steps, losses = zip(*run["losses"], strict=True)
            right.plot(steps, losses, linewidth=0.8, label=str(cell))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args(argv).folder
    try:
        families = [Family(json.loads((folder / "runs.json").read_text()))]
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    if small := read_results(folder / "runs_small.json"):
        families.append(Family(small))
    sections = {
        f"{title}, {family.size}": table_of(family) for family in families for title, table_of in FAMILY_TABLES.items()
    }
    further = {
        "Contrast of loops, further models": ("contrast.json", given_contrast_table),
        "Copies": ("copying.json", copying_table),
        "Loops per token": ("holes.json", holes_table),
        "State tracking": ("tracking.json", tracking_table),
        "State tracking, differences": ("tracking.json", tracking_differences),
    }
    for title, (name, table_of) in further.items():
        if results := read_results(folder / name):
            sections[title] = table_of(results)
    text = "\n\n".join(f"## {title}\n\n{content}" for title, content in sections.items())
    head = "# All numbers\n\nWritten by `python -m iquest_plt.science.report` from the JSON files here.\n\n"
    (folder / "tables.md").write_text(head + text + "\n")
    for family, name in zip(families, ("losses.png", "losses_small.png"), strict=False):
        try_draw(name, draw_losses, folder / name, family)


if __name__ == "__main__":
    main()
