# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The gain–cost measurements as functions of tensors, after LoopCoder-v2 (arXiv 2606.18023) where not said otherwise.

`h^(n)` is the state after n loops, `h^(0)` the embedding: loop r, counted from 0, turns `h^(r)` into `h^(r+1)`. Each
function returns one number per token, per query or per matrix: what is averaged, and over what, is the caller's.
Shapes: T tokens, D hidden size, H heads, Q queries, S keys, V vocabulary. Half precision is computed in float32;
distances and norms have the unit of the states, entropies and divergences are in nats, the rest are pure numbers.

Attention weights and predictions are given as logarithms, `-inf` where a key is not seen. So no epsilon is needed: a
softmax that underflows still has a finite logarithm.
"""

import torch


TIE = 1e-5  # nats: about what float32 leaves open


def step_size(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """`‖h^(n)_i − h^(n−1)_i‖₂`: of two (T, D), (T,)."""
    return torch.linalg.vector_norm(_float(after) - _float(before), dim=-1)


def aligned_step(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """`‖h^(n)_i − h^(n−1)_{i−1}‖₂` (ours): the step from the state the shift hands on; of two (T, D), (T − 1,)."""
    return step_size(after[1:], before[:-1])


def offset_cost(states: torch.Tensor) -> torch.Tensor:
    """`‖h_i − h_{i−1}‖₂`, how far off the state of the token before is; of (T, D), (T − 1,). Its mean is Ω."""
    return step_size(states[1:], states[:-1])


def angular_change(after: torch.Tensor, before: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """
    Cosine between the step `after − before` and the one before it, `before − earlier`; of three (T, D), (T,). Below 0
    the loops oscillate. NaN where a step has no length.
    """
    after, before, earlier = _float(after), _float(before), _float(earlier)
    step, last = after - before, before - earlier
    lengths = torch.linalg.vector_norm(step, dim=-1) * torch.linalg.vector_norm(last, dim=-1)
    return (step * last).sum(-1) / lengths


def effective_rank(matrix: torch.Tensor) -> torch.Tensor:
    """
    exp of the entropy of the singular values, unsquared and divided by their sum; of (..., rows, columns), (...),
    between 1 and min(rows, columns). NaN for a matrix of zeros.
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
    """Logarithms of the probabilities over the last dimension: what the functions below take."""
    return _float(logits).log_softmax(-1)


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor, p: torch.Tensor | None = None) -> torch.Tensor:
    """
    `KL(p ‖ q)` in nats over the last dimension: attention change and refinement. Infinite where p > 0 = q. `p` is
    `exp(log_p)`, where that is known already.
    """
    log_p, log_q = _float(log_p), _float(log_q)
    p = log_p.exp() if p is None else p
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def entropy(log_p: torch.Tensor, p: torch.Tensor | None = None) -> torch.Tensor:
    """`−Σ p log p` in nats over the last dimension; `p` as of `kl_divergence`."""
    log_p = _float(log_p)
    p = log_p.exp() if p is None else p
    return -torch.where(p > 0, p * log_p, 0.0).sum(-1)


def mixture(log_global: torch.Tensor, log_window: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """
    Logarithm of `g · global + (1 − g) · window`, all (H, Q, S) on the same keys but the gate (H, Q). A gate that was
    rounded to 0 counts as the smallest positive number, so that no key the global branch sees has weight 0.
    """
    gate = _float(gate)[..., None]
    log_gate = gate.clamp(min=torch.finfo(gate.dtype).tiny).log()
    return torch.logaddexp(log_gate + _float(log_global), torch.log1p(-gate) + _float(log_window))


def head_similarity(weights: torch.Tensor) -> torch.Tensor:
    """Mean cosine between two different heads' weights on the keys; of (H, Q, S), (Q,). NaN for one head."""
    heads = len(weights)
    unit = torch.nn.functional.normalize(_float(weights), dim=-1)
    return (unit.sum(0).square().sum(-1) - heads) / (heads * (heads - 1) or torch.nan)


def head_rank(weights: torch.Tensor) -> torch.Tensor:
    """Effective rank of each query's matrix of heads × keys; of (H, Q, S), (Q,)."""
    return effective_rank(weights.transpose(0, 1))


def gate_histogram(gate: torch.Tensor, bins: int) -> torch.Tensor:
    """How many gates, of any shape, fall into each of `bins` equal parts of [0, 1]; (bins,) integers."""
    return torch.histc(_float(gate), bins, 0.0, 1.0).long()


def token_loss(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`−log p(target)` in nats; of (T, V) and (T,), (T,)."""
    return -_float(log_p).gather(-1, targets[:, None])[:, 0]


def true_rank(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Place of the target among all predictions, 1 the likeliest; of (T, V) and (T,), (T,). Ties share the better."""
    return (log_p > log_p.gather(-1, targets[:, None])).sum(-1) + 1


def best_loop(refinements: torch.Tensor) -> torch.Tensor:
    """
    r*, the loop that changed each token's prediction most; of the refinements of loops 1 … R − 1, (R − 1, T), (T,). Of
    loops that are equal up to `TIE` the first: a text's first token has the same state in all loops of some models.
    """
    is_largest = refinements >= refinements.amax(0) - TIE
    return is_largest.int().argmax(0) + 1


def _float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
