# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the state-tracking runs."""

from collections import defaultdict

import numpy as np

from ..utils.markdown import table
from .cells import Cell, cell_of, order
from .report_family import shares_table
from .statistics import interval
from .texts import tested_lengths


SETTING = ("task", "length", "pack", "layers", "size", "steps", "rows")
TASK_TITLES = {"three": "three things", "five": "five things", "assignments": "assignments"}


def tracked(runs: list[dict]) -> dict[tuple, dict[Cell, dict[int, dict]]]:
    """Groups runs by setting and number of moves between answers, then by model and seed."""
    groups: dict[tuple, dict[Cell, dict[int, dict]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        setting = tuple(run[name] for name in SETTING)
        for block in run["blocks"]:
            groups[(*setting, tuple(run["blocks"]), block)][cell_of(run)][run["seed"]] = run
    return groups


def accuracy_table(runs: list[dict]) -> str:
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
            rows.append([TASK_TITLES[task], texts, trained, block, cell, passes, *shares])
    head = ["task", "trained texts", "trained with", "k", "model", "passes per text", "as long", "twice as long"]
    return table(head, rows)


DEEPER = "R = 1, twice the layers"  # costs as much as R = 2
COMPARISONS = [
    ("R = 2, shift", "R = 1"),
    ("R = 4, shift", "R = 1"),
    ("R = 4, shift", "R = 2, shift"),
    ("R = 2, no shift", "R = 1"),
    ("R = 4, no shift", "R = 1"),
    ("R = 4, no shift", "R = 2, no shift"),
    ("R = 2, shift", "R = 2, no shift"),
    ("R = 4, shift", "R = 4, no shift"),
    ("R = 2, learned offset", "R = 2, shift"),
    ("R = 2, learned offset", "R = 2, no shift"),
    ("R = 2, learned offset from 50%", "R = 2, no shift"),
    ("R = 2, learned offset from 98%", "R = 2, no shift"),
    ("R = 4, learned offset", "R = 4, shift"),
    ("R = 4, learned offset", "R = 4, no shift"),
    ("R = 4, learned offset from 50%", "R = 4, no shift"),
    ("R = 2, mix of four", "R = 2, shift"),
    ("R = 2, shift, joint attention", "R = 2, shift"),
    ("R = 2, shift, shared attention", "R = 2, shift"),
    ("R = 2, shift, own attention", "R = 2, shift"),
    ("R = 2, no shift, joint attention", "R = 2, no shift"),
    ("R = 4, no shift, joint attention", "R = 4, no shift"),
    (DEEPER, "R = 1"),
    (DEEPER, "R = 2, shift"),
]


def differences_table(runs: list[dict]) -> str:
    """
    Differences of the accuracy, paired by seed, where at least two seeds have both models. Left out: where every model
    is right in more than 99 % of the texts.
    """
    rows = []
    groups = tracked(runs)
    for setting in sorted(groups):
        task, length, pack, layers, size, steps, *rest, block = setting
        deeper = groups.get((task, length, pack, 2 * layers, size, steps, *rest, block), {})
        models = {**{str(cell): found for cell, found in groups[setting].items()}, DEEPER: deeper.get(Cell(1), {})}
        for moves in tested_lengths(length):
            shares = {
                name: {seed: run["accuracy"][str(block)][str(moves)] for seed, run in found.items()}
                for name, found in models.items()
            }
            if min(share for found in shares.values() for share in found.values()) > 0.99:
                continue
            for name, other in COMPARISONS:
                ours, theirs = shares.get(name, {}), shares.get(other, {})
                seeds = sorted(set(ours) & set(theirs))
                if len(seeds) > 1:
                    mean, low, high = interval(np.array([ours[seed] - theirs[seed] for seed in seeds]))
                    names = [TASK_TITLES[task], layers, steps, block, moves, f"{name} over {other}", len(seeds)]
                    rows.append([*names, f"{mean:+.3f}", f"{low:+.3f} … {high:+.3f}"])
    if not rows:
        return "No two models have two seeds in common."
    head = ["task", "layers", "steps", "k", "moves", "difference in accuracy", "seeds", "mean", "95 % over seeds"]
    return table(head, rows)


def offsets_table(runs: list[dict]) -> str:
    ordered = sorted(runs, key=lambda run: (run["task"], order(cell_of(run)), run["seed"]))
    labels = ([TASK_TITLES[run["task"]], cell_of(run), run["seed"]] for run in ordered)
    shares = (run.get("offset_shares") for run in ordered)  # older runs did not record them
    return shares_table(["task", "model", "seed"], zip(labels, shares, strict=True))
