# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The gain–cost metrics in float64 NumPy, from their definitions and the oracle's states, to compare with.

Every attention matrix and every prediction is held in memory at once, so texts must be short.
"""

import itertools
from collections import defaultdict

import numpy as np
from reference import Reference, rotate


class Observed(Reference):
    """The oracle, recording attention: `seen[r][layer]` is (queries, keys, gate), with r from 0."""

    def __call__(self, token_ids, num_loops=None, initial_carry=None):
        self.seen = defaultdict(list)
        return super().__call__(token_ids, num_loops, initial_carry)

    def attention(self, layer, r, x, keys_values):
        output = super().attention(layer, r, x, keys_values)
        config = self.config
        y = self.norm(f"model.layers.{layer}.input_layernorm", x)
        q = self.linear(f"model.layers.{layer}.self_attn.q_proj", y)
        q = q.reshape(len(x), config.num_attention_heads, config.head_dim).swapaxes(0, 1)
        q = rotate(q, np.arange(len(x)), self.theta)
        self.seen[r].append((q, keys_values[r][layer][0], self.gate(layer, x, y, q)[..., 0]))
        return output


def weights_of(q, k, window=None):
    """Returns attention weights (H, T, T) of queries (H, T, C) on keys (K, T, C), the last `window` + 1 if given."""
    heads, time, size = q.shape
    weights = np.zeros((heads, time, time))
    for h in range(heads):
        for i in range(time):
            first = 0 if window is None else max(0, i - window)
            scores = k[h // (heads // len(k)), first : i + 1] @ q[h, i] / np.sqrt(size)
            e = np.exp(scores - scores.max())
            weights[h, i, first : i + 1] = e / e.sum()
    return weights


def rank_of(matrices):
    """Returns the effective rank, (...), of (..., rows, columns)."""
    s = np.linalg.svd(matrices, compute_uv=False)
    return np.exp(entropy(s / s.sum(-1, keepdims=True)))


def kl(p, q):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0).sum(-1)


def entropy(p):
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def length(vectors):
    return np.sqrt((vectors**2).sum(-1))


class Values:
    """Sums of weighted values by name, loop and layer; layer None is the total over layers."""

    def __init__(self):
        self.sums, self.weights = defaultdict(float), defaultdict(float)

    def add(self, name, loop, values, weight=1.0, layer=None):
        values = np.asarray(values)
        for key in {(name, loop, None), (name, loop, layer)}:
            self.sums[key] += weight * values.sum()
            self.weights[key] += weight * values.size

    def curve(self, name, loops, layer=None):
        keys = [(name, loop, layer) for loop in range(loops)]
        return [self.sums[key] / self.weights[key] if self.weights[key] else None for key in keys]


def measure_piece(values: Values, oracle: Observed, inputs, targets, loops: int) -> None:
    config = oracle.config
    _, states = oracle(inputs, loops + 2)  # so that the states of loop `loops` are fed back too
    embeddings = oracle.weights["model.embed_tokens.weight"][np.asarray(inputs)]
    h = [embeddings, *states[: loops + 1]]
    normed = h if config.plt_normalize_per_loop else [None, *(oracle.norm("model.norm", state) for state in h[1:])]
    time, size = embeddings.shape
    for r in range(loops):  # loop r turns h[r] into h[r + 1]
        step = h[r + 1] - h[r]
        values.add("step_size", r, length(step))
        values.add("fixed_point_gap", r, length(h[r + 2] - h[r + 1]))
        values.add("effective_rank", r, rank_of(normed[r + 1]), weight=time)
        if r > 0:
            last = h[r] - h[r - 1]
            moved = (length(step) > 0) & (length(last) > 0)
            cosine = (step * last).sum(-1)[moved] / (length(step) * length(last))[moved]
            values.add("angular_change", r, cosine)
            given = np.roll(h[r], 1, axis=0)  # loop r gives token i the state of token i − 1
            cost = length(h[r] - given)[1:]
            values.add("aligned_step", r, length(h[r + 1] - given)[1:] if config.plt_cross_loop_shift else length(step))
            values.add("offset_cost", r, cost)
            values.add("offset_cost_per_sqrt_d", r, cost / np.sqrt(size))
    measure_attention(values, oracle, loops)
    measure_predictions(values, oracle, normed, targets, loops)


def measure_attention(values: Values, oracle: Observed, loops: int) -> None:
    kind = oracle.config.plt_loop_attention
    for layer in range(oracle.config.num_hidden_layers):
        before = {}
        first_keys = oracle.seen[0][layer][1]
        for r in range(loops):
            q, k, g = oracle.seen[r][layer]
            now = {"global": weights_of(q, first_keys)}
            now["mixture"] = now["global"]
            if r > 0 and kind == "gated":
                now["window"] = weights_of(q, k, oracle.config.plt_window_size[0])
                now["mixture"] = g[..., None] * now["global"] + (1 - g[..., None]) * now["window"]
                values.add("gate", r, g, layer=layer)
            elif r > 0 and kind == "own":
                now = dict.fromkeys(("window", "mixture"), weights_of(q, k))
            for branch, weights in now.items():
                heads = len(weights)
                values.add(f"attention_entropy_{branch}", r, entropy(weights), layer=layer)
                if branch in before:
                    values.add(f"attention_change_{branch}", r, kl(weights, before[branch]), layer=layer)
                for of_query in weights.swapaxes(0, 1):
                    cosines = of_query @ of_query.T / np.outer(length(of_query), length(of_query))
                    if heads > 1:
                        similarity = cosines[~np.eye(heads, dtype=bool)].mean()
                        values.add(f"head_similarity_{branch}", r, similarity, layer=layer)
                    values.add(f"head_rank_{branch}", r, rank_of(of_query), layer=layer)
            before = now


def measure_predictions(values: Values, oracle: Observed, normed, targets, loops: int) -> None:
    name = "model.embed_tokens" if oracle.config.tie_word_embeddings else "lm_head"
    logits = np.stack([oracle.linear(name, state) for state in normed[1 : loops + 1]])
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)  # (R, T, V)
    changes = np.stack([kl(after, before) for before, after in itertools.pairwise(p)]) if loops > 1 else None
    for r in range(loops):
        of_target = p[r][np.arange(len(targets)), targets]
        rank = 1 + (p[r] > of_target[:, None]).sum(-1)
        values.add("loss", r, -np.log(of_target))
        values.add("true_rank", r, rank)
        values.add("top1_accuracy", r, rank == 1)
        values.add("entropy", r, entropy(p[r]))
        values.add("agreement", r, p[r].argmax(-1) == p[-1].argmax(-1))
        if r > 0:
            values.add("refinement", r, changes[r - 1])
            near = changes.max(0) - changes <= 1e-5  # the first of the loops near the largest
            values.add("refinement_share", r, near[r - 1] & ~near[: r - 1].any(0))


def measure(model, documents: list[list[int]], loops: int, max_length: int) -> Values:
    """Measures documents of token ids, cut like `diagnostics.documents.pieces`."""
    oracle, values = Observed(model.config, model.state_dict()), Values()
    for ids in documents:
        count = -(-(len(ids) - 1) // max_length)
        short, longer = divmod(len(ids) - 1, count)
        start = 0
        for index in range(count):
            stop = start + short + (index < longer)
            measure_piece(values, oracle, ids[start:stop], ids[start + 1 : stop + 1], loops)
            start = stop
    return values
