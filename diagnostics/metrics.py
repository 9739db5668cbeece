# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The gain–cost metrics as functions of tensors, from LoopCoder-v2 (arXiv 2606.18023) unless stated otherwise.

`h^(n)` is the state after n loops and `h^(0)` the embedding: loop r, counted from 0, turns `h^(r)` into `h^(r+1)`. Each
function returns one number per token, query or matrix; the caller averages. Shapes: T tokens, D hidden size, H heads,
Q queries, S keys, V vocabulary. Half precision is computed in float32. Distances and norms are in units of the states,
entropies and divergences in nats; everything else is a pure number.

Attention weights and predictions are passed as logarithms, `-inf` where a key is hidden. No epsilon is needed: a
softmax that underflows still has a finite logarithm.
"""

import torch


TIE = 1e-5  # nats: about the error of float32


def step_size(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Returns `‖h^(n)_i − h^(n−1)_i‖₂`, (T,), for two (T, D)."""
    return torch.linalg.vector_norm(_float(after) - _float(before), dim=-1)


def aligned_step(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Returns `‖h^(n)_i − h^(n−1)_{i−1}‖₂`, (T − 1,), for two (T, D): the step from the shifted state (our metric)."""
    return step_size(after[1:], before[:-1])


def offset_cost(states: torch.Tensor) -> torch.Tensor:
    """Returns `‖h_i − h_{i−1}‖₂`, (T − 1,), for (T, D): the distance to the previous token's state. Its mean is Ω."""
    return step_size(states[1:], states[:-1])


def angular_change(after: torch.Tensor, before: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """
    Returns the cosine between the step `after − before` and the previous one, `before − earlier`; (T,), for three
    (T, D). Below 0 the loops oscillate. NaN where a step has length 0.
    """
    after, before, earlier = _float(after), _float(before), _float(earlier)
    step, last = after - before, before - earlier
    lengths = torch.linalg.vector_norm(step, dim=-1) * torch.linalg.vector_norm(last, dim=-1)
    return (step * last).sum(-1) / lengths


def effective_rank(matrix: torch.Tensor) -> torch.Tensor:
    """
    Returns exp of the entropy of the singular values (not squared), normalized to sum 1; (...), for
    (..., rows, columns). It lies between 1 and min(rows, columns). NaN for a matrix of zeros.
    """
    matrix = matrix.double()
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mT
    if matrix.shape[-2] > matrix.shape[-1]:  # many times faster, and R has the same singular values
        matrix = torch.linalg.qr(matrix, mode="r").R
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum(-1, keepdim=True)
    return torch.exp(-torch.xlogy(shares, shares).sum(-1))


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Returns log-probabilities over the last dimension, as the functions below take them."""
    return _float(logits).log_softmax(-1)


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor, p: torch.Tensor | None = None) -> torch.Tensor:
    """
    Returns `KL(p ‖ q)` in nats over the last dimension: attention change and refinement. Infinite where p > 0 = q. Pass
    `p`, `exp(log_p)`, if it is already computed.
    """
    log_p, log_q = _float(log_p), _float(log_q)
    p = log_p.exp() if p is None else p
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def entropy(log_p: torch.Tensor, p: torch.Tensor | None = None) -> torch.Tensor:
    """Returns `−Σ p log p` in nats over the last dimension; `p` as in `kl_divergence`."""
    log_p = _float(log_p)
    p = log_p.exp() if p is None else p
    return -torch.where(p > 0, p * log_p, 0.0).sum(-1)


def mixture(log_global: torch.Tensor, log_window: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """
    Returns the logarithm of `g · global + (1 − g) · window`, (H, Q, S), for weights (H, Q, S) on the same keys and a
    gate (H, Q). A gate rounded to 0 counts as the smallest positive number, so that keys of the global branch keep a
    positive weight.
    """
    gate = _float(gate)[..., None]
    log_gate = gate.clamp(min=torch.finfo(gate.dtype).tiny).log()
    return torch.logaddexp(log_gate + _float(log_global), torch.log1p(-gate) + _float(log_window))


def head_similarity(weights: torch.Tensor) -> torch.Tensor:
    """Returns the mean cosine between different heads' weights, (Q,), for (H, Q, S). NaN for one head."""
    heads = len(weights)
    unit = torch.nn.functional.normalize(_float(weights), dim=-1)
    return (unit.sum(0).square().sum(-1) - heads) / (heads * (heads - 1) or torch.nan)


def head_rank(weights: torch.Tensor) -> torch.Tensor:
    """Returns the effective rank of each query's heads × keys matrix, (Q,), for (H, Q, S)."""
    return effective_rank(weights.transpose(0, 1))


def gate_histogram(gate: torch.Tensor, bins: int) -> torch.Tensor:
    """Returns a histogram of gates of any shape over `bins` equal parts of [0, 1]; (bins,) integers."""
    return torch.histc(_float(gate), bins, 0.0, 1.0).long()


def token_loss(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns `−log p(target)` in nats, (T,), for (T, V) and (T,)."""
    return -_float(log_p).gather(-1, targets[:, None])[:, 0]


def true_rank(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the target's rank, 1 for the likeliest, (T,), for (T, V) and (T,). Ties share the better rank."""
    return (log_p > log_p.gather(-1, targets[:, None])).sum(-1) + 1


def best_loop(refinements: torch.Tensor) -> torch.Tensor:
    """
    Returns r*, the loop that changed each token's prediction most, (T,), for the refinements of loops 1 … R − 1,
    (R − 1, T). Among loops equal up to `TIE`, the first wins: a text's first token has the same state in all loops of
    some models.
    """
    is_largest = refinements >= refinements.amax(0) - TIE
    return is_largest.int().argmax(0) + 1


def _float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
