# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Fast training on a CPU: attention by matrix products, and a loss that never materializes all logits.

Both compute the same values as the model, in another order. On a CPU, bf16 matrix products are several times faster
than the fused attention kernel, especially in the backward pass.
"""

from functools import lru_cache

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface


CHUNK = 256  # queries per block of causal attention; later keys are skipped


@lru_cache
def _bias(queries: int, keys: int, groups: int, window: int | None, like: tuple) -> torch.Tensor:
    """Returns a bias (groups · queries, keys): 0 for visible keys, else -inf. The last query is at the last key."""
    distance = torch.arange(queries)[:, None] + (keys - queries) - torch.arange(keys)[None]
    allowed = (distance >= 0) if window is None else (distance >= 0) & (distance <= window)
    bias = torch.zeros(queries, keys).masked_fill(~allowed, float("-inf"))
    return bias.repeat(groups, 1).to(*like)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scaling: float):
    """Attention: (M, Q, C), (M, S, C), (M, S, C), bias broadcast to (M, Q, S) -> (M, Q, C)."""
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scaling)
    return torch.bmm(scores.softmax(-1), value)


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """
    Causal attention: (N, H, T, C), (N, K, T, C), (N, K, T, C) -> (N, H, T, C). The H / K queries of a key head share
    one product.
    """
    rows, heads, time, size = query.shape
    kv_heads = key.shape[1]
    groups, like = heads // kv_heads, (query.device, query.dtype)
    query = query.reshape(rows * kv_heads, groups, time, size)
    key, value = key.reshape(-1, time, size), value.reshape(-1, time, size)
    blocks = []
    for start in range(0, time, CHUNK):
        stop = min(start + CHUNK, time)
        block = query[:, :, start:stop].reshape(rows * kv_heads, -1, size)
        bias = _bias(stop - start, stop, groups, None, like)
        blocks.append(
            _attend(block, key[:, :stop], value[:, :stop], bias, scaling).view(-1, groups, stop - start, size)
        )
    return torch.cat(blocks, dim=2).view(rows, heads, time, size)


def window_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, left: int
) -> torch.Tensor:
    """Window attention, shapes as above. Blocks of `left` queries see their own block and the previous one."""
    rows, heads, time, size = query.shape
    kv_heads = key.shape[1]
    groups, padding = heads // kv_heads, -time % left
    count = (time + padding) // left

    def two_blocks(x):  # (N·K·blocks, 2·left, C)
        x = F.pad(x, (0, 0, left, padding)).reshape(rows * kv_heads, count + 1, left, size)
        return torch.cat([x[:, :-1], x[:, 1:]], dim=2).view(-1, 2 * left, size)

    query = F.pad(query, (0, 0, 0, padding)).reshape(rows * kv_heads, groups, count, left, size)
    query = query.transpose(1, 2).reshape(-1, groups * left, size)
    bias = _window_bias(count, groups, left, (query.device, query.dtype)).repeat(rows * kv_heads, 1, 1)
    output = _attend(query, two_blocks(key), two_blocks(value), bias, scaling)
    output = output.view(-1, count, groups, left, size).transpose(1, 2)
    return output.reshape(rows, heads, count * left, size)[:, :, :time]


@lru_cache
def _window_bias(count: int, groups: int, left: int, like: tuple) -> torch.Tensor:
    """Returns the bias (blocks, groups · left, 2 · left); the first block has no previous block."""
    bias = _bias(left, 2 * left, groups, left, like).repeat(count, 1, 1)
    bias[0, :, :left] = float("-inf")
    return bias


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, sliding_window=None, **kwargs):
    """An attention function for Transformers: (N, H, T, C) -> (N, T, H, C), without weights."""
    if attention_mask is not None or dropout or query.shape[2] != key.shape[2]:
        raise ValueError("Attention 'matmul' only trains on full rows: it supports no mask, no cache and no dropout.")
    if sliding_window is None:
        output = causal_attention(query, key, value, scaling)
    else:
        output = window_attention(query, key, value, scaling, sliding_window - 1)
    return output.transpose(1, 2), None


def register_attention() -> str:
    """Registers `attn_implementation="matmul"` with Transformers and returns that name."""
    AttentionInterface.register("matmul", _attention)
    AttentionMaskInterface.register("matmul", lambda *args, **kwargs: None)
    return "matmul"


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of `states @ weight.T`. The forward pass computes the gradients, chunk by chunk."""

    @staticmethod
    def forward(ctx, states, weight, labels, chunk):
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        grad_states, grad_weight = torch.empty_like(states), torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(states), chunk):
            part, targets = states[start : start + chunk], labels[start : start + chunk, None]
            logits = (part @ weight.T).float()
            normalizer = logits.logsumexp(-1, keepdim=True)
            total += (normalizer - logits.gather(-1, targets)).sum()
            logits.sub_(normalizer).exp_()
            logits.scatter_add_(-1, targets, -torch.ones_like(targets, dtype=logits.dtype))
            grad_logits = logits.to(states.dtype)
            grad_states[start : start + chunk] = grad_logits @ weight
            grad_weight += grad_logits.T @ part
        ctx.save_for_backward(grad_states, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad_total):
        grad_states, grad_weight = ctx.saved_tensors
        return grad_states * grad_total, (grad_weight * grad_total).to(ctx.weight_dtype), None, None


def chunked_cross_entropy(
    states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int = 512
) -> torch.Tensor:
    """Returns the sum over rows of -log softmax(states @ weight.T)[label] in nats: (M, D), (V, D), (M,) -> float32."""
    return _ChunkedCrossEntropy.apply(states, weight, labels, chunk)
