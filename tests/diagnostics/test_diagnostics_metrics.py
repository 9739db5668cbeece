# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The functions of the diagnostics: known answers and invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iquest_plt.diagnostics import bootstrap, metrics
from iquest_plt.diagnostics.trace import log_attention


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def states(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected).double(), rtol=1e-12, atol=1e-12)


def test_step_size():
    before = torch.tensor([[0.0, 0, 0], [1, 1, 1], [2, 0, 0]])
    after = torch.tensor([[3.0, 4, 0], [1, 1, 1], [2, 0, -7]])
    close(metrics.step_size(after, before), [5, 0, 7])


def test_the_aligned_step_starts_from_the_previous_token():
    before = torch.tensor([[1.0, 0], [5, 5], [9, 9]])
    after = torch.tensor([[100.0, 100], [1, 2], [5, 8]])
    close(metrics.aligned_step(after, before), [2, 3])
    moved = torch.cat([before[:1], before[:-1]])
    close(metrics.aligned_step(moved, before), [0, 0])  # only shifted


def test_shifting_constant_states_costs_nothing():
    close(metrics.offset_cost(torch.ones(5, 3)), [0] * 4)
    close(metrics.offset_cost(torch.tensor([[0.0, 0], [3, 4], [3, 4], [0, 0]])), [5, 0, 5])
    assert metrics.offset_cost(torch.ones(1, 3)).numel() == 0


def test_loops_that_turn_back_have_a_cosine_of_minus_one():
    a, b = states(4, 3), states(4, 3, seed=1)
    close(metrics.angular_change(a, b, a), [-1] * 4)
    close(metrics.angular_change(a + 3 * b, a + 2 * b, a), [1] * 4)
    right_angle = metrics.angular_change(torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 0]]))
    close(right_angle, [0])
    assert metrics.angular_change(a, a, b).isnan().all()


@pytest.mark.parametrize("shape", [(4, 4), (4, 9), (9, 4)])
def test_orthogonal_rows_have_full_effective_rank(shape):
    matrix = torch.eye(*shape)
    close(metrics.effective_rank(matrix), 4)
    close(metrics.effective_rank(-5 * matrix.flip(1)), 4)


def test_effective_rank_of_known_singular_values():
    close(metrics.effective_rank(torch.ones(7, 3)), 1)
    close(metrics.effective_rank(torch.diag(torch.tensor([1.0, 1, 0, 0]))), 2)
    p = torch.tensor([3 / 4, 1 / 4])  # unsquared: squares would be 9/10 and 1/10
    close(metrics.effective_rank(torch.diag(torch.tensor([3.0, 1]))), math.exp(-(p * p.log()).sum()))
    assert metrics.effective_rank(torch.zeros(3, 3)).isnan()


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_effective_rank_ignores_scale_order_and_rotation(rows, columns, seed, scale):
    matrix = states(rows, columns, seed=seed)
    rank = metrics.effective_rank(matrix)
    assert 1 - 1e-9 <= rank <= min(rows, columns) + 1e-9
    rotation = torch.linalg.qr(states(columns, columns, seed=seed + 1)).Q
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(metrics.effective_rank(scale * matrix[order] @ rotation), rank)
    torch.testing.assert_close(metrics.effective_rank(torch.stack([matrix, 2 * matrix])), rank.expand(2))


def test_divergences_of_known_distributions():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
    q = torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5], [0.25, 0.25, 0.5]])
    close(metrics.kl_divergence(p.log(), q.log()), [math.log(2), math.log(4), 0])
    close(metrics.kl_divergence(p.log(), p.log()), [0] * 3)
    assert metrics.kl_divergence(q.log(), p.log())[0].isinf()


def test_entropy_is_the_log_of_the_number_of_equal_keys():
    p = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    close(metrics.entropy(p.log()), [0, math.log(2), math.log(4)])


@given(seed=st.integers(0, 99), size=st.integers(2, 30), scale=st.floats(0, 300))
@settings(max_examples=40, deadline=None)
def test_divergence_is_nonnegative_and_equals_cross_entropy_minus_entropy(seed, size, scale):
    log_p, log_q = (scale * states(size, seed=seed + i) for i in range(2))
    log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
    divergence = metrics.kl_divergence(log_p, log_q)
    assert divergence >= -1e-12
    cross = -(log_p.exp() * log_q).sum()
    torch.testing.assert_close(divergence, cross - metrics.entropy(log_p), rtol=1e-9, atol=1e-9)


def test_a_distribution_that_underflows_has_a_finite_divergence():
    logits = torch.tensor([[0.0, -1000.0]])
    other = metrics.log_softmax(torch.tensor([[0.0, 0.0]]))
    assert metrics.log_softmax(logits).exp()[0, 1] == 0
    found = metrics.kl_divergence(other, metrics.log_softmax(logits))
    torch.testing.assert_close(found, torch.tensor([500 - math.log(2)]))


def test_the_mixture_is_weighted_by_the_gate():
    spread = torch.tensor([[[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0]]])
    window = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0, 0]]])
    gate = torch.tensor([[0.5, 0.25]])
    expected = [[[0.125, 0.125, 0.375, 0.375], [0.625, 0.375, 0, 0]]]
    close(metrics.mixture(spread.log(), window.log(), gate).exp(), expected)
    close(metrics.mixture(spread.log(), window.log(), torch.ones(1, 2)).exp(), spread)
    shut = metrics.mixture(spread.log(), window.log(), torch.zeros(1, 2))
    close(shut.exp(), window)
    assert shut[0, 0].isfinite().all()  # keys of the global branch keep a weight above 0


def test_heads_that_attend_to_the_same_or_to_different_keys():
    same = torch.tensor([0.5, 0.5, 0]).expand(3, 2, 3)
    close(metrics.head_similarity(same), [1, 1])
    close(metrics.head_rank(same), [1, 1])
    different = torch.eye(3)[:, None].expand(3, 2, 3)
    close(metrics.head_similarity(different), [0, 0])
    close(metrics.head_rank(different), [3, 3])
    half = torch.tensor([[[1.0, 0, 0]], [[1.0, 0, 0]], [[0, 1.0, 0]]])  # one pair out of three agrees
    close(metrics.head_similarity(half), [1 / 3])
    assert metrics.head_similarity(same[:1]).isnan().all()
    close(metrics.head_rank(same[:1]), [1, 1])


def test_gates_fall_into_their_bins():
    gates = torch.tensor([[0.0, 0.1, 0.25, 0.49], [0.5, 0.99, 1.0, 1.0]])
    assert metrics.gate_histogram(gates, 4).tolist() == [2, 2, 1, 3]
    assert metrics.gate_histogram(gates.bfloat16(), 1).tolist() == [8]


def test_lens_metrics_of_known_predictions():
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])
    targets = torch.tensor([2, 3])
    close(metrics.token_loss(p.log(), targets), [math.log(8), -math.log(0.4)])
    assert metrics.true_rank(p.log(), targets).tolist() == [3, 1]  # ties share the better rank
    assert metrics.best_loop(torch.tensor([[0.1, 0, 0.5, 1e-8], [0.2, 0, 0.4, 2e-8]])).tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    a, b, c = (states(6, 8, seed=seed).to(dtype) for seed in range(3))
    for function, arguments in (
        (metrics.step_size, (a, b)),
        (metrics.angular_change, (a, b, c)),
        (metrics.offset_cost, (a,)),
        (metrics.log_softmax, (a,)),
        (metrics.head_similarity, (a.reshape(2, 3, 8),)),
    ):
        found = function(*arguments)
        assert found.dtype == torch.float32
        close_to = function(*(argument.double() for argument in arguments))
        torch.testing.assert_close(found.double(), close_to, rtol=1e-5, atol=1e-5)


def test_causal_attention_on_equal_keys_is_uniform():
    query, key = torch.zeros(2, 4, 8), torch.randn(1, 4, 8)
    weights = log_attention(query, key, 0.3, 0).exp()
    expected = torch.ones(4, 4).tril()
    close(weights[0], expected / expected.sum(-1, keepdim=True))
    windowed = log_attention(query, key, 0.3, 0, window=1).exp()[1]
    close(windowed, [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]])


@given(start=st.integers(0, 9), count=st.integers(1, 9), window=st.none() | st.integers(0, 12))
@settings(max_examples=30, deadline=None)
def test_attention_of_some_queries_equals_that_part_of_all(start, count, window):
    query, key = states(4, 10, 8), states(2, 10, 8, seed=1)
    whole = log_attention(query, key, 0.5, 0, window)
    part = log_attention(query[:, start : start + count], key, 0.5, start, window)
    torch.testing.assert_close(part, whole[:, start : start + count])


def test_the_mean_weights_every_token_equally():
    sums, weights = torch.tensor([[10.0], [2.0]]).numpy(), torch.tensor([[1.0], [3.0]]).numpy()
    one_each = torch.ones(1, 2).numpy()
    assert bootstrap.ratios(one_each, sums, weights) == 3
    assert bootstrap.ratios(torch.tensor([[2.0, 0.0]]).numpy(), sums, weights) == 10


def test_draws_are_seeded_and_match_the_number_of_documents():
    counts = bootstrap.draws(7, 500, seed=3)
    assert counts.shape == (500, 7)
    assert (counts.sum(1) == 7).all()
    assert (counts == bootstrap.draws(7, 500, seed=3)).all()
    assert (counts != bootstrap.draws(7, 500, seed=4)).any()
    assert abs(counts.mean() - 1) < 1e-9
    assert (counts.mean(0) > 0.8).all()


def test_the_interval_covers_the_mean_of_normal_documents():
    """About 95 % of the intervals over 40 documents contain the true mean, 0."""
    held = 0
    for seed in range(200):
        values = states(40, 1, seed=seed).numpy()
        low, high = bootstrap.interval(bootstrap.ratios(bootstrap.draws(40, 300, seed), values, values**0), 0.95)
        held += low[0] <= 0 <= high[0]
    assert 180 <= held <= 198


def test_an_interval_without_values_is_nan():
    values = torch.tensor([[1.0, math.nan, math.nan], [3.0, math.nan, 5.0]]).numpy()
    low, high = bootstrap.interval(values, 0.5)
    assert (low[0], high[0], low[2], high[2]) == (1.5, 2.5, 5, 5)
    assert math.isnan(low[1]) and math.isnan(high[1])


@pytest.mark.parametrize(
    "rank, loss, by_both, by_loss",
    [
        ([10, 12, 13, 14], [3, 2, 1, 0.5], 4, 4),
        ([10, 12, 11, 14], [3, 2, 1, 0.5], 2, 4),
        ([10, 12, 13, 14], [3, 2, 2.5, 0.5], 2, 2),
        ([10, 9, 13, 14], [3, 2, 1, 0.5], 1, 4),
        ([10, 10, 11, 12], [3, 2, 1, 0.5], 1, 4),  # equal is not higher
        ([10, 12, 13, 14], [3, 3, 1, 0.5], 1, 1),
        ([10], [3], 1, 1),
    ],
)
def test_the_rule_stops_at_the_first_loop_that_fails(rank, loss, by_both, by_loss):
    rank, loss = (torch.tensor(values, dtype=torch.float64).numpy() for values in (rank, loss))
    assert bootstrap.recommend(loss, rank) == by_both
    assert bootstrap.recommend(loss) == by_loss
