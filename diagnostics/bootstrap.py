# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Means over documents with bootstrap intervals, and the recommended number of loops.

A mean is the sum of values over the sum of weights (tokens, queries, bytes), both summed over documents, so that every
token counts the same. The bootstrap redraws the documents with replacement and computes the ratio again; an interval
lies between two percentiles of these ratios. All metrics share the draws, so differences are paired.
"""

import numpy as np


def draws(documents: int, resamples: int, seed: int) -> np.ndarray:
    """Returns how often each document is drawn, (resamples, documents). Each row sums to `documents`."""
    shares = np.full(documents, 1 / documents)
    return np.random.default_rng(seed).multinomial(documents, shares, size=resamples)


def ratios(counts: np.ndarray, sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Returns weighted means of resampled documents, (resamples, R), from counts (resamples, documents), and sums and
    weights (documents, R). NaN where no drawn document has a value.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ sums) / (counts @ weights)


def interval(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns the ends of the percentile interval over the first dimension of (resamples, R): two arrays (R,). NaNs are
    ignored; an end is NaN only if all values are.
    """
    tail = 100 * (1 - confidence) / 2
    found = ~np.isnan(values).all(axis=0)
    bounds = np.full((2, values.shape[1]), np.nan)
    bounds[:, found] = np.nanpercentile(values[:, found], [tail, 100 - tail], axis=0)
    return bounds[0], bounds[1]


def recommend(loss: np.ndarray, effective_rank: np.ndarray | None = None) -> np.ndarray:
    """
    Returns the recommended numbers of loops, (...), from two arrays (..., R).

    The rule: add a loop while the effective rank rises and the held-out loss falls. Without ranks, the loss decides.
    """
    worth_it = np.diff(loss) < 0
    if effective_rank is not None:
        worth_it &= np.diff(effective_rank) > 0
    return 1 + np.cumprod(worth_it, axis=-1).sum(axis=-1)
