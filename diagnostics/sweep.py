# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The choice of the number of loops on one page: quality, time and memory side by side, for one model run with 1 … N
loops, or for several models, each with its own number.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from . import bootstrap, interpretation
from .loop_names import loops_text
from .measurements import Curve, Measurements
from .metric_info import METRICS


FORMAT = "iquest-plt sweep"
VERSION = 1
DIAGNOSTICS = ("effective_rank", "refinement", "offset_cost", "angular_change", "step_size", "top1_accuracy")


@dataclass
class Estimate:
    """A mean with its interval, None where there is none."""

    mean: float | None
    low: float | None = None
    high: float | None = None


@dataclass
class Row:
    """
    One model with one number of loops.

    Attributes:
        model, loops: which.
        loss: nats per token.
        bits_per_byte: the loss, over the bytes of the text; None where these are unknown.
        change: of the bits per byte to the row before, paired: on the same resamples of the documents.
        lowest_share: share of resamples in which this row has the lowest bits per byte; None for one document.
        seconds_per_token: median of decode steps.
        time_ratio: median of each step's time over that of `Sweep.base`, timed in turns.
        kv_bytes_per_token, kv_bytes_per_sequence: of the cache.
        diagnostics: mean of some of `METRICS`, of the last loop.
    """

    model: str
    loops: int
    loss: Estimate
    bits_per_byte: Estimate
    change: Estimate
    lowest_share: float | None
    seconds_per_token: float
    time_ratio: float
    kv_bytes_per_token: int
    kv_bytes_per_sequence: int
    diagnostics: dict[str, float | None]


@dataclass
class Timing:
    """Of one row: seconds per token, their ratio to `Sweep.base`, and bytes of the cache per token and per sequence."""

    seconds_per_token: float
    time_ratio: float
    kv_bytes_per_token: int
    kv_bytes_per_sequence: int


@dataclass
class Sweep:
    """Rows by number of loops. `results` are what they come from: one for all rows, or one for each."""

    rows: list[Row]
    results: list[Measurements]
    length: int
    environment: dict

    @property
    def best(self) -> Row:
        """The row with the lowest bits per byte; of equal ones that with the fewest loops."""
        return min(self.rows, key=lambda row: (row.bits_per_byte.mean, row.loops))

    @property
    def base(self) -> str:
        """What times are given over: one loop, of the first model that has a row of one, or else of the first row's."""
        if len(self.results) == 1:
            return "R = 1"
        return f"{next((row for row in self.rows if row.loops == 1), self.rows[0]).model} with 1 loop"

    def to_dict(self) -> dict:
        """What JSON holds."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "length": self.length,
            "environment": self.environment,
            "rows": [asdict(row) for row in self.rows],
            "results": [result.to_dict() for result in self.results],
        }


def sweep(
    results: Sequence[tuple[Measurements, int]], timings: Sequence[Timing], length: int, environment: dict
) -> Sweep:
    """
    A sweep of `results`, each with the number of loops that is meant, all measured on the same documents, and the
    timings that belong to them. Bits per byte are what is compared: models with different tokenizers have them
    in common.

    Raises:
        ValueError: if the documents or the lengths they were cut to differ, or the bytes of one are unknown.
    """
    first = results[0][0]
    names = [[(entry["name"], entry["bytes"]) for entry in result.documents] for result, _ in results]
    if any(other != names[0] for other in names):
        raise ValueError("The models were measured on different documents: measure them on the same.")
    lengths = sorted({result.settings["max_length"] for result, _ in results})
    if len(lengths) > 1:
        raise ValueError(
            f"The models were measured with contexts of {' and '.join(map(str, lengths))} tokens: measure them with "
            "one `max_length`."
        )
    if first.bytes is None:
        raise ValueError("The bytes of a document are unknown, so bits per byte are: use `encode_documents`.")
    bits = np.array(
        [
            [entry["tokens"] * entry["loss"][loops - 1] / math.log(2) for entry in result.documents]
            for result, loops in results
        ]
    ).T
    sizes = np.tile([[entry["bytes"]] for entry in first.documents], len(results))
    means = bootstrap.ratios(np.ones((1, len(bits))), bits, sizes)[0]
    counts = bootstrap.draws(len(bits), first.settings["resamples"], first.settings["seed"])
    drawn = bootstrap.ratios(counts, bits, sizes) if len(bits) > 1 else None
    lowest = None if drawn is None else np.bincount(drawn.argmin(1), minlength=len(means)) / len(drawn)
    rows = []
    for index, ((result, loops), timing) in enumerate(zip(results, timings, strict=True)):
        confidence = result.settings["confidence"]
        change = Estimate(None)
        if index:
            before = None if drawn is None else drawn[:, [index]] - drawn[:, [index - 1]]
            change = _estimate(means[index] - means[index - 1], before, confidence)
        loss, last = result.metrics["loss"], loops - 1
        rows.append(
            Row(
                model=result.model["name"],
                loops=loops,
                loss=Estimate(loss.mean[last], loss.low[last], loss.high[last]),
                bits_per_byte=_estimate(means[index], None if drawn is None else drawn[:, [index]], confidence),
                change=change,
                lowest_share=None if lowest is None else float(lowest[index]),
                **asdict(timing),
                diagnostics={name: result.metrics[name].mean[last] for name in DIAGNOSTICS},
            )
        )
    distinct = [result for index, (result, _) in enumerate(results) if all(result is not r for r, _ in results[:index])]
    return Sweep(rows, distinct, length, environment)


def sentences(found: Sweep) -> list[str]:
    """What the table says."""
    best, first = found.best, found.rows[0]
    sure = "" if best.lowest_share is None else f", in {interpretation.percent(best.lowest_share)} of the resamples"
    said = [f"The lowest loss is that of {label(found, best)}: {text(best.bits_per_byte)} bits per byte{sure}."]
    if best is not first:
        cache = best.kv_bytes_per_sequence / first.kv_bytes_per_sequence - 1
        size = "larger" if cache >= 0 else "smaller"
        said.append(
            f"Beside {label(found, first)}, with {interpretation.number(first.bits_per_byte.mean)}, a token takes "
            f"{best.time_ratio / first.time_ratio:.2f} times as long to decode, and the cache of {found.length:,} "
            f"tokens is {100 * abs(cache):.1f} % {size}."
        )
    for before, row in pairwise(found.rows):
        low, high = row.change.low, row.change.high
        if low is not None and low <= 0 <= high:  # type: ignore[operator]
            said.append(
                f"Between {label(found, before)} and {label(found, row)} there is no sure difference: "
                f"{text(row.change)} bits per byte."
            )
    if best.lowest_share is None:
        said.append("One document was measured, so nothing can be said of how sure this is: measure several.")
    if len(found.results) == 1:
        said += interpretation.recommendation(found.results[0])
    else:
        said.append("Each model is run with its own number of loops; what else differs between them is not told apart.")
    return said


def label(found: Sweep, row: Row) -> str:
    """A row's name: its loops, and its model where there are several."""
    return loops_text(row.loops) + (f" ({row.model})" if len(found.results) > 1 else "")


def text(estimate: Estimate) -> str:
    return interpretation.estimate(Curve([estimate.mean], [estimate.low], [estimate.high]), 0)


def table(found: Sweep) -> list[list[str]]:
    """Cells, for people: a column for each row of the sweep, the first line and the first column their titles."""
    lines = [
        ["model", *(row.model for row in found.rows)],
        ["loops R", *(str(row.loops) for row in found.rows)],
        ["loss (nats/token)", *(text(row.loss) for row in found.rows)],
        ["bits per byte", *(text(row.bits_per_byte) for row in found.rows)],
        ["change to the R before", *(text(row.change) for row in found.rows)],
        ["lowest, of the resamples", *(_share(row.lowest_share) for row in found.rows)],
        ["tokens per second", *(f"{1 / row.seconds_per_token:,.1f}" for row in found.rows)],
        [f"time per token over {found.base}", *(f"{row.time_ratio:.2f}" for row in found.rows)],
        ["cache bytes per token", *(f"{row.kv_bytes_per_token:,}" for row in found.rows)],
        [f"cache bytes of {found.length:,} tokens", *(f"{row.kv_bytes_per_sequence:,}" for row in found.rows)],
    ]
    for name in DIAGNOSTICS:
        unit = f" ({METRICS[name].unit})" if METRICS[name].unit else ""
        cells = (interpretation.number(row.diagnostics[name]) for row in found.rows)
        lines.append([f"{METRICS[name].title}{unit}", *cells])
    return lines if len(found.results) > 1 else lines[1:]


def _share(share: float | None) -> str:
    return "–" if share is None else interpretation.percent(share)


def to_markdown(found: Sweep, picture: str | None = None, notes: Sequence[str] = ()) -> str:
    """The page: table, picture, what they say, and on what it rests."""
    titles, *rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in table(found)]
    first = found.results[0]
    lines = [f"# How many loops: {', '.join(result.model['name'] for result in found.results)}", ""]
    lines += [f"* {sentence}" for sentence in sentences(found)]
    lines += ["", *("| " + " | ".join(cells) + " |" for cells in (titles, ["---"] * len(titles), *rows)), ""]
    lines += [f"![Loss, time, memory, gain and cost of each number of loops]({picture})", ""] if picture else []
    lines += [
        f"Loss on {first.tokens:,} tokens of {interpretation.documents_text(len(first.documents))}, in contexts of up "
        f"to {first.settings['max_length']:,} tokens, with {100 * first.settings['confidence']:g} % bootstrap "
        "intervals; “lowest in” is the share of resamples of the documents. Times are medians over decode steps of all "
        "rows in turns, so the ratios hold on this machine; the refinement Δp and the offset cost Ω have no common "
        "unit. "
        + " ".join(notes)
        + (" " if notes else "")
        + ", ".join(f"{name} {value}" for name, value in found.environment.items())
        + "."
    ]
    return "\n".join(lines) + "\n"


def to_csv(found: Sweep) -> str:
    """A row for each row, every number in full."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    plain = [_flat(asdict(row)) for row in found.rows]
    writer.writerow(plain[0])
    writer.writerows(row.values() for row in plain)
    return target.getvalue()


def _flat(row: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in row.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _estimate(mean: float, drawn: np.ndarray | None, confidence: float) -> Estimate:
    if drawn is None:
        return Estimate(float(mean))
    low, high = bootstrap.interval(drawn, confidence)
    return Estimate(float(mean), float(low[0]), float(high[0]))
