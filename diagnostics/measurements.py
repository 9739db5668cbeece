# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The results of the diagnostics, and their JSON file."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .loop_names import loop_name, loops_text
from .metric_info import LAYER_METRICS, METRICS
from .trace import KNOWN_ATTENTIONS


FORMAT = "iquest-plt gain-cost"
VERSION = 1
MODEL = {
    "name": str,
    "num_loops": int,
    "hidden_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "window": int,
    "cross_loop_shift": bool,
    "loop_attention": str,
    "normalize_per_loop": bool,
    "dtype": str,
}
SETTINGS = {"max_loops": int, "max_length": int, "seed": int, "resamples": int, "confidence": float}
DOCUMENT = {"name": str, "tokens": int, "bytes": int | None, "pieces": int}


@dataclass
class Curve:
    """A metric over loops: mean and interval. None where it has no value; ends are None for a single document."""

    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]


@dataclass
class Recommendation:
    """
    Attributes:
        loops: number of loops that the rule recommends.
        limit: number of loops measured. If `loops` equals it, more may be worth it.
        share: for 1 … `limit` loops, the share of bootstrap resamples in which the rule recommends that number: its
            certainty. None for one document.
        loops_by_loss, share_by_loss: the same for the loss alone.
    """

    loops: int
    limit: int
    share: list[float] | None
    loops_by_loss: int
    share_by_loss: list[float] | None

    @property
    def rule(self) -> str:
        return "Add a loop while the effective rank of the states still rises and the held-out loss still falls."


@dataclass
class Measurements:
    """
    Gains and costs of each loop of one model on some documents. `METRICS` describes the metrics.

    Attributes:
        model: name, num_loops, hidden_size, num_hidden_layers, num_attention_heads, window, cross_loop_shift,
            loop_attention, normalize_per_loop, dtype (`MODEL`).
        settings: max_loops, max_length, seed, resamples, confidence (`SETTINGS`).
        documents: name, predicted tokens, bytes (None if unknown), pieces and loss per loop of each document.
        metrics: a curve over loops for each metric.
        layers: for each attention metric, [loop][layer]; None for a loop without it.
        gate_histogram: edges (bins + 1) and counts [loop][layer][bin], None for loop 0. None for models without gates.
        recommendation: the recommended number of loops.
    """

    model: dict
    settings: dict
    documents: list[dict]
    metrics: dict[str, Curve]
    layers: dict[str, list[list[float | None] | None]]
    gate_histogram: dict | None
    recommendation: Recommendation

    @property
    def max_loops(self) -> int:
        return self.settings["max_loops"]

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return sum(document["tokens"] for document in self.documents)

    @property
    def bytes(self) -> int | None:
        """Bytes of all documents; None if those of any document are unknown."""
        sizes = [document["bytes"] for document in self.documents]
        return None if None in sizes else sum(sizes)

    @property
    def reason(self) -> str:
        """The reason for the recommendation, in one sentence with this model's numbers."""
        advice = self.recommendation
        loops = advice.loops  # also the index of the next loop
        if advice.limit == 1:
            return "Only one loop was measured, which allows no recommendation: measure at least two."
        if loops == advice.limit:
            return f"The rule did not stop within the {loops_text(loops)} measured: more may be worth it."
        rank, loss = self.metrics["effective_rank_change"], self.metrics["loss_change"]
        reason = (
            f"{loop_name(loops).capitalize()} changes the effective rank by {_number(rank, loops, '.2f')} and the loss "
            f"by {_number(loss, loops, '.4f')} nats per token, so the rule stops at {loops_text(loops)}"
        )
        if advice.loops_by_loss != loops:
            reason += f"; the loss alone falls up to {loops_text(advice.loops_by_loss)}"
        return reason + "."

    def to_dict(self) -> dict:
        """Returns the JSON document."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, document: dict) -> Self:
        """Raises ValueError if `document` is not what `to_dict` returns."""
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f'This is not a diagnostics result: its "format" is not "{FORMAT}".')
        if document.get("version") != VERSION:
            raise ValueError(
                f"The result has version {document.get('version')!r}, but this iquest-plt reads version {VERSION}. "
                "Measure again, or use the iquest-plt that wrote it."
            )
        names = {field.name for field in dataclasses.fields(cls)}
        missing = sorted(names - document.keys())
        if missing:
            raise ValueError(f"The result is damaged (missing: {', '.join(missing)}). Measure again.")
        fields = {name: document[name] for name in names}
        try:
            fields["metrics"] = {name: Curve(**curve) for name, curve in fields["metrics"].items()}
            fields["recommendation"] = Recommendation(**fields["recommendation"])
            result = cls(**fields)
            result._check()
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"The result is damaged ({error}). Measure again.") from error
        return result

    def to_json(self) -> str:
        """Returns the text that `save` writes."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """
        Reads what `save` wrote.

        Raises:
            ValueError: if the file is not a result, is damaged, or has another version.
            OSError: if the file cannot be read.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:  # includes JSONDecodeError and UnicodeDecodeError
            raise ValueError(f"{path} cannot be loaded as a diagnostics result: {error}") from error

    def _check(self) -> None:
        """Raises TypeError or KeyError if a part is missing, has the wrong type, or does not match the others."""
        _check_types("model", self.model, MODEL)
        _check_types("settings", self.settings, SETTINGS)
        if self.model["loop_attention"] not in KNOWN_ATTENTIONS:
            raise TypeError(f"loop_attention of the model is {self.model['loop_attention']!r}")
        loops, layers = self.max_loops, self.model["num_hidden_layers"]
        if not self.documents:
            raise TypeError("there are no documents")
        for document in self.documents:
            _check_types("document", document, DOCUMENT)
            _check_numbers("a document's loss", document["loss"], loops, "loops")
        for name in [*METRICS, *self.metrics]:
            if name not in METRICS:
                raise TypeError(f"{name} is not a metric")
            if name == "bits_per_byte" and name not in self.metrics:
                continue
            for part, points in vars(self.metrics[name]).items():
                _check_numbers(f"{part} of {name}", points, loops, "loops", optional=name != "loss" or part != "mean")
        for name in LAYER_METRICS:
            _check_length(f"the layers' {name}", self.layers[name], loops, "loops")
            for of_loop in self.layers[name]:
                if of_loop is not None:
                    _check_numbers(f"the layers' {name}", of_loop, layers, "layers")
        if self.gate_histogram is not None:
            self._check_histogram()
        advice = self.recommendation
        if advice.limit != loops:
            raise TypeError("the recommendation is for another number of loops")
        for choice, share in ((advice.loops, advice.share), (advice.loops_by_loss, advice.share_by_loss)):
            if not isinstance(choice, int) or not 1 <= choice <= loops:
                raise TypeError(f"the recommendation is {choice!r} loops")
            if share is not None:
                _check_numbers("the recommendation's share", share, loops, "loops")

    def _check_histogram(self) -> None:
        """Does the same for the histogram. Exactly the loops with a mean gate must have one, and at least one loop."""
        edges, counts = self.gate_histogram["edges"], self.gate_histogram["counts"]  # type: ignore[index]
        _check_numbers("the edges of the gates' histogram", edges, len(edges), "numbers")
        _check_length("the gates' histogram", counts, self.max_loops, "loops")
        for of_loop in filter(None, counts):
            _check_length("the gates' histogram", of_loop, self.model["num_hidden_layers"], "layers")
            for bins in of_loop:
                _check_numbers("the gates' histogram", bins, len(edges) - 1, "bins")
        known = [[value is not None for value in values] for values in (counts, self.layers["gate"])]
        known.append([value is not None for value in self.metrics["gate"].mean])
        if not any(known[0]) or known[0] != known[1] or known[0] != known[2]:
            raise TypeError("the gates' histogram covers other loops than their means")


def _check_types(part: str, values: dict, kinds: dict) -> None:
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} of the {part} is {values[name]!r}")


def _check_length(part: str, values: list, count: int, unit: str) -> None:
    if not isinstance(values, list) or len(values) != count:
        raise TypeError(f"{part} does not have {count} {unit}")


def _check_numbers(part: str, values: list, count: int, unit: str, optional: bool = False) -> None:
    """Raises TypeError unless `values` has `count` finite numbers. With `optional`, None is allowed."""
    _check_length(part, values, count, unit)
    for value in values:
        if not (optional and value is None) and not (isinstance(value, int | float) and math.isfinite(value)):
            raise TypeError(f"{part} holds {value!r}")


def without_nan(values: Any) -> Any:
    """Replaces NaN by None in nested lists of floats."""
    if isinstance(values, float):
        return None if math.isnan(values) else values
    return [without_nan(value) for value in values]


def _number(curve: Curve, index: int, style: str) -> str:
    low, high = curve.low[index], curve.high[index]
    text = format(curve.mean[index], "+" + style)
    return text if low is None else f"{text} ({low:+{style}} to {high:+{style}})"
