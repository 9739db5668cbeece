# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Paired differences between models: intervals over seeds, intervals over held-out rows, and power."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


CONFIDENCE = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """
    A mean paired difference over seeds.

    Attributes:
        mean, low, high: with Student's interval. One seed has an infinite one.
        spread: the standard deviation over seeds; None for one seed.
        detectable: the smallest true difference that a two-sided paired t test of this many seeds finds with a power of
            80 %, if the spread is the measured one. None for one seed.
        rows: an interval for the mean over resampled held-out rows, with the seeds as they are. None if only the sum
            over all rows is known.
    """

    mean: float
    low: float
    high: float
    seeds: int
    spread: float | None
    detectable: float | None
    rows: tuple[float, float] | None

    @property
    def is_clear(self) -> bool:
        """Whether no known interval contains 0."""
        return self.low * self.high > 0 and (self.rows is None or self.rows[0] * self.rows[1] > 0)


def paired_difference(ours: np.ndarray, theirs: np.ndarray, units: float, seed: int = 0) -> Difference:
    """
    Compares losses (seeds, rows), in nats per row, of two models with the same seeds and rows.

    Args:
        units: the factor from nats summed over all rows to the reported unit, such as bits per byte.

    Raises:
        ValueError: if the shapes differ, or there is nothing to compare.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if ours.shape != theirs.shape or ours.ndim != 2 or not ours.size:
        raise ValueError(f"Expected losses (seeds, rows) of equal shape, got {ours.shape} and {theirs.shape}.")
    differences = (ours - theirs) * units
    values = differences.sum(axis=1)
    mean, low, high = interval(values)
    count = len(values)
    spread = float(values.std(ddof=1)) if count > 1 else None
    detectable = spread * detectable_effect(count) if spread is not None else None
    rows = rows_interval(differences.mean(axis=0), seed) if differences.shape[1] > 1 else None
    return Difference(mean, low, high, count, spread, detectable, rows)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean and the ends of its 95 % interval by Student's t; infinite for one value."""
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return mean, mean - half, mean + half


def rows_interval(values: np.ndarray, seed: int = 0, resamples: int = 4000) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the sum of `values` (rows,), which are resampled with replacement."""
    draws = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    low, high = np.percentile(draws @ values, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def power(effect: float, count: int) -> float:
    """Returns the power of a two-sided paired t test of `count` pairs for a true mean of `effect` spreads."""
    limit, shift = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1), effect * math.sqrt(count)
    return float(stats.nct.sf(limit, count - 1, shift) + stats.nct.cdf(-limit, count - 1, shift))


def detectable_effect(count: int) -> float:
    """Returns the true mean, in spreads, that `count` pairs find with a power of 80 %."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, count) < POWER else (low, middle)
    return high
