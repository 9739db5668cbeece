# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Compares numbers of loops on one page: quality, time and memory, for one model run with 1 … N loops, or for several
models, each with its own number.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from ..utils import markdown
from . import bootstrap, interpretation
from .loop_names import loops_text
from .measurements import Curve, Measurements
from .metric_info import METRICS


FORMAT = "iquest-plt sweep"
VERSION = 1
DIAGNOSTICS = ("effective_rank", "refinement", "offset_cost", "angular_change", "step_size", "top1_accuracy")


@dataclass
class Estimate:
    """A mean with its interval. Missing values are None."""

    mean: float | None
    low: float | None = None
    high: float | None = None


@dataclass
class Row:
    """
    One model with one number of loops.

    Attributes:
        model, loops: name of the model and number of loops.
        loss: nats per token.
        bits_per_byte: the loss per byte of text; None where the number of bytes is unknown.
        change: change of bits per byte from the previous row, paired: on the same resamples of the documents.
        lowest_share: share of resamples in which this row has the lowest bits per byte; None for one document.
        seconds_per_token: median over decode steps.
        time_ratio: median over decode steps of the time divided by that of `Sweep.base`, timed in turns.
        kv_bytes_per_token, kv_bytes_per_sequence: size of the cache.
        diagnostics: means of the metrics `DIAGNOSTICS` in the last loop.
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
    """Timing of one row: seconds per token, their ratio to `Sweep.base`, and cache bytes per token and per sequence."""

    seconds_per_token: float
    time_ratio: float
    kv_bytes_per_token: int
    kv_bytes_per_sequence: int


@dataclass
class Sweep:
    """Rows by number of loops, and the `results` they come from: one for all rows, or one for each."""

    rows: list[Row]
    results: list[Measurements]
    length: int
    environment: dict

    @property
    def best(self) -> Row:
        """The row with the lowest bits per byte; on a tie, the one with the fewest loops."""
        return min(self.rows, key=lambda row: (row.bits_per_byte.mean, row.loops))

    @property
    def base(self) -> str:
        """Reference for times: the first row with one loop or, without such a row, the first model with one loop."""
        if len(self.results) == 1:
            return "R = 1"
        return f"{next((row for row in self.rows if row.loops == 1), self.rows[0]).model} with 1 loop"

    def to_dict(self) -> dict:
        """Returns the JSON document."""
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
    Builds a sweep from results, each with a number of loops, and their timings. All results must cover the same
    documents. Rows are compared in bits per byte, so models may have different tokenizers.

    Raises:
        ValueError: if the documents or the context lengths differ, or the bytes of a document are unknown.
    """
    first = results[0][0]
    names = [[(entry["name"], entry["bytes"]) for entry in result.documents] for result, _ in results]
    if any(other != names[0] for other in names):
        raise ValueError("The models were measured on different documents. Measure them on the same ones.")
    lengths = sorted({result.settings["max_length"] for result, _ in results})
    if len(lengths) > 1:
        raise ValueError(
            f"The models were measured with contexts of {' and '.join(map(str, lengths))} tokens. Measure them with "
            "the same `max_length`."
        )
    if first.bytes is None:
        raise ValueError("The bytes of a document are unknown. Make the documents with `encode_documents`.")
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
    """Describes the table."""
    best, first = found.best, found.rows[0]
    sure = "" if best.lowest_share is None else f", in {interpretation.percent(best.lowest_share)} of the resamples"
    said = [f"The loss is lowest with {label(found, best)}: {text(best.bits_per_byte)} bits per byte{sure}."]
    if best is not first:
        cache = best.kv_bytes_per_sequence / first.kv_bytes_per_sequence - 1
        size = "larger" if cache >= 0 else "smaller"
        said.append(
            f"Compared with {label(found, first)}, at {interpretation.number(first.bits_per_byte.mean)} bits per byte, "
            f"a token takes {best.time_ratio / first.time_ratio:.2f} times as long to decode, and a cache of "
            f"{found.length:,} tokens is {100 * abs(cache):.1f} % {size}."
        )
    for before, row in pairwise(found.rows):
        low, high = row.change.low, row.change.high
        if low is not None and low <= 0 <= high:  # type: ignore[operator]
            said.append(
                f"The difference between {label(found, before)} and {label(found, row)} may be chance: "
                f"{text(row.change)} bits per byte."
            )
    if best.lowest_share is None:
        said.append("One document was measured, so the certainty is unknown: measure several.")
    if len(found.results) == 1:
        said += interpretation.recommendation(found.results[0])
    else:
        said.append("Each model runs with its own number of loops, so other differences between the models count too.")
    return said


def label(found: Sweep, row: Row) -> str:
    """Returns a row's name: its loops, and its model if there are several."""
    return loops_text(row.loops) + (f" ({row.model})" if len(found.results) > 1 else "")


def text(estimate: Estimate) -> str:
    return interpretation.estimate(Curve([estimate.mean], [estimate.low], [estimate.high]), 0)


def table(found: Sweep) -> list[list[str]]:
    """Returns the table as text cells: a column per row of the sweep; the first line and column are titles."""
    lines = [
        ["model", *(row.model for row in found.rows)],
        ["loops R", *(str(row.loops) for row in found.rows)],
        ["loss (nats/token)", *(text(row.loss) for row in found.rows)],
        ["bits per byte", *(text(row.bits_per_byte) for row in found.rows)],
        ["change from the previous R", *(text(row.change) for row in found.rows)],
        ["lowest in (share of resamples)", *(_share(row.lowest_share) for row in found.rows)],
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
    """Returns the page: sentences, table, picture and the conditions of the measurement."""
    titles, *rows = table(found)
    first = found.results[0]
    lines = [f"# How many loops: {', '.join(result.model['name'] for result in found.results)}", ""]
    lines += [f"* {sentence}" for sentence in sentences(found)]
    lines += ["", markdown.table(titles, rows), ""]
    lines += [f"![Loss, time, memory, gain and cost of each number of loops]({picture})", ""] if picture else []
    lines += [
        f"The loss was measured on {first.tokens:,} tokens of {interpretation.documents_text(len(first.documents))}, "
        f"in contexts of up to {first.settings['max_length']:,} tokens, with {100 * first.settings['confidence']:g} % "
        "bootstrap intervals. Times are medians over decode steps, with all rows timed in turns; the ratios hold for "
        "this machine. The refinement Δp and the offset cost Ω have no common unit. "
        + " ".join(notes)
        + (" " if notes else "")
        + ", ".join(f"{name} {value}" for name, value in found.environment.items())
        + "."
    ]
    return "\n".join(lines) + "\n"


def to_csv(found: Sweep) -> str:
    """Writes a line for each row, with unrounded numbers."""
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
