# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Means over documents with bootstrap intervals, and how many loops they recommend.

A mean is a ratio: sums over sums of weights (tokens, queries, bytes), each summed over documents, so that every token
counts the same. The bootstrap draws as many documents as there are, with replacement, and takes the ratio anew; an
interval is what lies between two percentiles of these. All metrics share the draws, so differences are paired.
"""

import numpy as np


def draws(documents: int, resamples: int, seed: int) -> np.ndarray:
    """How often each document is drawn: (resamples, documents), each row of sum `documents`."""
    shares = np.full(documents, 1 / documents)
    return np.random.default_rng(seed).multinomial(documents, shares, size=resamples)


def ratios(counts: np.ndarray, sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Weighted means of resampled documents, (resamples, R): counts (resamples, documents), sums, weights (documents, R).
    NaN where no document that was drawn has a value.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ sums) / (counts @ weights)


def interval(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the first dimension of (resamples, R), NaN left out; two (R,), NaN where all are."""
    tail = 100 * (1 - confidence) / 2
    found = ~np.isnan(values).all(axis=0)
    bounds = np.full((2, values.shape[1]), np.nan)
    bounds[:, found] = np.nanpercentile(values[:, found], [tail, 100 - tail], axis=0)
    return bounds[0], bounds[1]


def recommend(loss: np.ndarray, effective_rank: np.ndarray | None = None) -> np.ndarray:
    """
    The rule: add a loop while the effective rank still rises and the held-out loss falls; without ranks, while the loss
    falls. Of two (..., R): the number of loops, (...).
    """
    worth_it = np.diff(loss) < 0
    if effective_rank is not None:
        worth_it &= np.diff(effective_rank) > 0
    return 1 + np.cumprod(worth_it, axis=-1).sum(axis=-1)
