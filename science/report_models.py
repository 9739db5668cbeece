# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the experiments without training, with a row per given model."""

from ..utils.markdown import table


def contrast_table(results: list[dict]) -> str:
    """ω is chosen on the odd rows and tested on the even ones."""
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
