# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Paired differences, intervals and power, on numbers whose answers are known."""

import math

import numpy as np
import pytest


pytest.importorskip("scipy", reason="the statistics need scipy: pip install '.[training]'")
statistics = pytest.importorskip("iquest_plt.science.statistics")


def test_interval_by_hand():
    """Mean 2, standard deviation 1; Student's t of 2 degrees is 4.303."""
    half = 4.3027 / math.sqrt(3)
    assert statistics.interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-4)
    assert statistics.interval(np.array([5.0])) == (5.0, -math.inf, math.inf)


def test_differences_are_paired():
    """Seeds and rows differ much, but the effect hardly does. Unpaired, it would drown."""
    generator = np.random.default_rng(0)
    theirs = 100 * generator.random((3, 40))
    seeds = np.array([-0.11, -0.10, -0.09])  # nats per row
    found = statistics.paired_difference(theirs + seeds[:, None], theirs, units=0.5)
    assert found.mean == pytest.approx(-0.10 * 40 * 0.5)
    assert found.spread == pytest.approx(0.01 * 40 * 0.5)
    half = 4.3027 * 0.2 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((-2 - half, -2 + half), abs=1e-4)
    assert found.rows == pytest.approx((-2.0, -2.0))  # all rows have the same difference
    assert found.is_clear and found.seeds == 3
    assert found.detectable == pytest.approx(0.2 * statistics.detectable_effect(3))


def test_a_difference_is_clear_only_over_seeds_and_rows():
    rows = np.zeros((3, 40))
    only_one_row = rows.copy()
    only_one_row[:, 0] = [-1.0, -1.1, -0.9]
    found = statistics.paired_difference(only_one_row, rows, units=1.0)
    assert found.high < 0 and found.rows[1] == 0 and not found.is_clear
    unlike_seeds = statistics.paired_difference(rows + np.array([[-1.0], [1.0], [-1.2]]), rows, units=1.0)
    assert unlike_seeds.low < 0 < unlike_seeds.high and unlike_seeds.rows[1] < 0 and not unlike_seeds.is_clear
    one_seed = statistics.paired_difference(rows[:1] - 1, rows[:1], units=1.0)
    assert one_seed.mean == -40 and one_seed.detectable is None and not one_seed.is_clear


def test_rows_interval_covers_as_often_as_it_says():
    """Rows with mean 1 and standard deviation 3: the sum of 60 rows is 60, with a standard error of 3 √60."""
    generator = np.random.default_rng(1)
    covered, widths = 0, []
    for trial in range(200):
        low, high = statistics.rows_interval(generator.normal(1.0, 3.0, size=60), seed=trial, resamples=400)
        covered += low <= 60 <= high
        widths.append(high - low)
    assert 0.90 <= covered / 200 <= 0.98  # the percentile bootstrap of 60 rows is slightly too narrow
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 3 * math.sqrt(60), rel=0.05)


def test_power_agrees_with_simulated_tests():
    generator = np.random.default_rng(2)
    draws = generator.normal(1.5, 1.0, size=(20_000, 4))
    t = draws.mean(axis=1) * 2 / draws.std(axis=1, ddof=1)
    simulated = (np.abs(t) > 3.1824).mean()  # Student's t of 3 degrees
    assert statistics.power(1.5, 4) == pytest.approx(simulated, abs=0.01)
    assert statistics.power(0.0, 4) == pytest.approx(0.05)
    for count in (3, 5):
        assert statistics.power(statistics.detectable_effect(count), count) == pytest.approx(0.8)
    assert statistics.detectable_effect(3) == pytest.approx(3.3, abs=0.1)  # what the plan says


def test_unlike_losses_are_refused():
    with pytest.raises(ValueError, match=r"equal shape, got \(2, 3\) and \(2, 4\)"):
        statistics.paired_difference(np.zeros((2, 3)), np.zeros((2, 4)), 1.0)
    with pytest.raises(ValueError, match="seeds, rows"):
        statistics.paired_difference(np.zeros((0, 3)), np.zeros((0, 3)), 1.0)
