# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The Parallel Loop Transformer in float64 NumPy: the test suite's oracle, and the best definition to read first.

It handles one sequence, without cache, padding or shortened tails: every loop runs over all T tokens, in order.

    x_i^0 = E_i                                                     loop 0 reads the plain embedding
    x_i^r = emb_scale * E_i + hidden_scale * H^{r-1}_{i-1}          r >= 1, with H_{-1} = 0
    attention in loop 0:     causal(q, K0, V0)
    attention in loop r:     g * causal(q, K0, V0) + (1 - g) * window(q, K^r, V^r)
    H^r = RMSNorm_final(x^r),   logits = lm_head(H^{R-1})

The controls change two parts. plt_cross_loop_shift replaces H^{r-1}_{i-1} in the input of loop r, per channel, by

    False        H^{r-1}_i
    "learned"    m H^{r-1}_{i-1} + (1 - m) H^{r-1}_i                    m = sigmoid(4 + logits)
    "mixed"      p_1 H^{r-1}_{i-1} + ... + p_4 H^{r-1}_{i-4}            p = softmax((5, 0, 0, 0) + logits)

plt_loop_attention = "shared" means g = 1, and "own" means g = 0 with a window of all earlier tokens. "joint" is one
softmax over the scores of loop 0's keys up to i and of its own loop's keys in the window, without g.

Everything else (RMSNorm, RoPE, grouped-query attention, SwiGLU, residuals) is Llama, and R = 1 is exactly Llama.
Sources: arXiv 2510.24824 (PLT), arXiv 2606.18023 (LoopCoder-v2). Where the papers differ from the released checkpoint's
inference code, this follows the code. Shapes: T tokens, R loops, D hidden, N query heads, K key/value heads,
d head_dim, V vocabulary; i is a query position, j a key position.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


# Mistakes that still give plausible text. `Reference(..., wrong=name)` makes one of them, so that a test can prove that
# its inputs would expose it. All except scale_loop0 and gate_loop0 need R >= 2; some need more, as noted. RMSNorm
# weights should differ from 1, because a second norm with unit weights changes almost nothing.
WRONG: dict[str, str] = {
    "no_shift": "loop r reads H^{r-1} of its own token i instead of token i-1",
    "shift_wraps": "the shift is a roll: the first token reads H^{r-1} of the last one instead of zero",
    "shift_by_loop": "loop r reads H^{r-1}_{i-r} instead of H^{r-1}_{i-1} (needs R >= 3)",
    "shift_embedding": "the embedding is shifted along with the carry: E_{i-1} in loops >= 1",
    "rope_shifted": "loop r rotates queries and keys to position i-r instead of i",
    "zero_carry": "the previous loop's state is dropped: x^r = emb_scale * E",
    "carry_not_normed": "the fed-back state skips the final norm (needs plt_normalize_per_loop)",
    "carry_always_normed": "the fed-back state is normed although plt_normalize_per_loop is False (needs False)",
    "scale_loop0": "emb_scale is applied to the embedding of loop 0 too (needs emb_scale != 1)",
    "no_emb_scale": "emb_scale is ignored (needs emb_scale != 1)",
    "no_hidden_scale": "hidden_scale is ignored (needs hidden_scale != 1)",
    "window_short": "the window holds w keys instead of w + 1 (needs 1 <= w < T)",
    "window_long": "the window holds w + 2 keys instead of w + 1 (needs w + 1 < T)",
    "window_unlimited": "the local branch sees all earlier keys of its loop (needs w + 1 < T)",
    "local_shared_keys": "the local branch reads the keys and values of loop 0 instead of its own loop's",
    "global_own_keys": "the global branch reads its own loop's keys and values instead of loop 0's",
    "global_last_keys": "the global branch reads the keys and values of loop r-1 instead of loop 0 (needs R >= 3)",
    "global_without_self": "the global branch misses position i, as if loop 0 wrote its cache too late",
    "global_only": "no local branch and no gate",
    "gate_loop0": "loop 0 also mixes in its own window (needs w + 1 < T)",
    "gate_swapped": "the gate weights the local branch instead of the global one",
    "gate_half": "the gate is left at its initial value 0.5",
    "gate_no_bias": "the gate bias is ignored",
    "gate_on_normed": "the gate is fed RMSNorm_in(x) instead of the residual x (needs plt_gate_use_hidden_states)",
    "gate_no_norm": "the gate skips its own norm (needs plt_gate_use_hidden_states)",
    "gate_before_rope": "the gate is fed the query before RoPE (needs plt_gate_use_hidden_states = False)",
}

# The same for the controls. The first word names what they need: plt_cross_loop_shift, or plt_loop_attention = "joint".
WRONG_CONTROLS: dict[str, str] = {
    "learned_swapped": "m weights the token's own state instead of the previous one's",
    "learned_no_start": "m starts at 1/2 instead of at the shift",
    "learned_mean": "the logits are averaged over channels",
    "mixed_own": "the mix begins with the token's own state: i … i-3",
    "mixed_five": "a fifth state has a share too",
    "mixed_three": "the fourth state is left out",
    "mixed_reversed": "the first logit weights the most distant state",
    "mixed_mean": "the logits are averaged over channels",
    "mixed_wraps": "states are rolled: the first tokens read those of the last ones",
    "joint_two_softmaxes": "the mean of two softmaxes",
    "joint_self_once": "the window leaves out the token itself, as loop 0's keys hold it",
    "joint_window_once": "loop 0's keys leave out the tokens in the window, so no token counts twice",
    "joint_unlimited": "the own loop's keys are not limited to the window",
    "joint_values": "the own loop's keys select loop 0's values",
}


def sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # this form cannot overflow


def rotate(x, positions, theta):
    """RoPE as in Llama (`rotate_half`): component c of a head is paired with component c + d/2. x is [heads, T, d]."""
    d = x.shape[-1]
    angles = positions[:, None] * theta ** (-np.arange(0, d, 2) / d)  # [T, d/2]
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., : d // 2], x[..., d // 2 :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(q, k, v, mask):
    """Softmax attention. q is [N, T, d]; k and v are [K, T, d], one per N/K query heads; mask[i, j]: i sees j."""
    k, v = (np.repeat(a, q.shape[0] // a.shape[0], axis=0) for a in (k, v))
    scores = np.where(mask, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


def earlier(states, distance):
    """Returns the states [T, D] of the tokens `distance` before, with zeros where there is none."""
    return np.concatenate([np.zeros_like(states[:distance]), states])[: len(states)]


class Reference:
    """
    The reference model.

    Args:
        config: any object with the fields of `IQuestPLTCoderConfig`. Only default RoPE and SiLU are supported.
        state_dict: NumPy arrays or torch tensors under the names of `IQuestPLTCoderForCausalLM.state_dict()`.
            Biases are used if present. One loop does not need the gate weights.
        wrong: a key of `WRONG` or `WRONG_CONTROLS`, to compute that mistake instead of the correct model.
    """

    def __init__(self, config: Any, state_dict: Mapping[str, Any], *, wrong: str | None = None):
        if wrong is not None and wrong not in WRONG | WRONG_CONTROLS:
            raise ValueError(f"unknown wrong variant {wrong!r}; known: {', '.join(WRONG | WRONG_CONTROLS)}")
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ValueError(f"the reference supports only default RoPE, got {rope}")
        self.theta = float(rope.get("rope_theta") or config.rope_theta)
        self.config, self.wrong = config, wrong
        self.weights = {
            name: np.asarray(w.detach().cpu().double() if hasattr(w, "detach") else w, dtype=np.float64)
            for name, w in state_dict.items()
        }
        self.emb_scale = 1.0 if config.plt_emb_scale is None else config.plt_emb_scale
        self.hidden_scale = 1.0 if config.plt_hidden_scale is None else config.plt_hidden_scale
        if wrong == "no_emb_scale":
            self.emb_scale = 1.0
        if wrong == "no_hidden_scale":
            self.hidden_scale = 1.0

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name, x):
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return self.weights[f"{name}.weight"] * x / np.sqrt(mean_square + self.config.rms_norm_eps)

    def __call__(
        self, token_ids: Sequence[int], num_loops: int | None = None, initial_carry: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            token_ids: one sequence of T tokens.
            num_loops: R, by default `config.plt_num_loops`.
            initial_carry: [R-1, D], the states that loops 1 … R-1 read at the first token. The model uses zeros;
                other values emulate a shift that leaks from padding or the previous document
                (`loop_states[:-1, -1]`).

        Returns:
            logits [T, V] of the last loop, and loop_states [R, T, D]: the states H^r that loop r feeds to loop r+1.
            The last one is always normed, the others only with `plt_normalize_per_loop`.
        """
        config, wrong = self.config, self.wrong
        R = config.plt_num_loops if num_loops is None else num_loops
        E = self.weights["model.embed_tokens.weight"][np.asarray(token_ids, dtype=np.int64)]  # [T, D]
        carry = np.zeros((R - 1, E.shape[1])) if initial_carry is None else np.asarray(initial_carry, dtype=np.float64)
        if carry.shape != (R - 1, E.shape[1]):
            raise ValueError(f"initial_carry must be {(R - 1, E.shape[1])}, got {carry.shape}")

        loop_states = []  # H^0 … H^{R-1}, each [T, D]
        keys_values = []  # keys_values[r][layer] = (K^r, V^r), each [K, T, d]
        for r in range(R):
            if r == 0:
                x = self.emb_scale * E if wrong == "scale_loop0" else E
            else:
                H = loop_states[r - 1]
                shifted = np.concatenate([carry[r - 1 : r], H[:-1]])  # row i holds H^{r-1}_{i-1}
                if wrong == "no_shift" or not config.plt_cross_loop_shift:
                    shifted = H
                elif config.plt_cross_loop_shift == "learned":
                    m = self.learned_share()
                    shifted = m * shifted + (1.0 - m) * H
                elif config.plt_cross_loop_shift == "mixed":
                    shifted = self.mixed_states(H)
                elif wrong == "shift_wraps":
                    shifted = np.roll(H, 1, axis=0)
                elif wrong == "shift_by_loop":
                    shifted = np.concatenate([np.zeros_like(H[:r]), H[:-r]])[: len(H)]
                elif wrong == "zero_carry":
                    shifted = np.zeros_like(H)
                embedding = np.concatenate([np.zeros_like(E[:1]), E[:-1]]) if wrong == "shift_embedding" else E
                x = self.emb_scale * embedding + self.hidden_scale * shifted

            keys_values.append([])
            for layer in range(config.num_hidden_layers):
                x = x + self.attention(layer, r, x, keys_values)
                x = x + self.mlp(layer, x)

            normed = config.plt_normalize_per_loop
            normed = {"carry_not_normed": False, "carry_always_normed": True}.get(wrong, normed)
            loop_states.append(self.norm("model.norm", x) if normed or r == R - 1 else x)

        if config.tie_word_embeddings:
            logits = loop_states[-1] @ self.weights["model.embed_tokens.weight"].T
        else:
            logits = self.linear("lm_head", loop_states[-1])
        return logits, np.stack(loop_states)

    def learned_share(self):
        """Returns m [D], the share of the previous token's state."""
        logits = self.weights["model.shift_mix.logits"][0]
        logits = np.full_like(logits, logits.mean()) if self.wrong == "learned_mean" else logits
        m = sigmoid(logits if self.wrong == "learned_no_start" else 4.0 + logits)
        return 1.0 - m if self.wrong == "learned_swapped" else m

    def mixed_states(self, H):
        """Returns the mean [T, D] of the last four tokens' states H [T, D]."""
        wrong = self.wrong
        logits = np.array([5.0, 0.0, 0.0, 0.0])[:, None] + self.weights["model.shift_mix.logits"]  # [4, D]
        logits = np.broadcast_to(logits.mean(axis=1, keepdims=True), logits.shape) if wrong == "mixed_mean" else logits
        distances = [0, 1, 2, 3] if wrong == "mixed_own" else [1, 2, 3, 4]
        if wrong == "mixed_five":
            logits, distances = np.concatenate([logits, np.zeros_like(logits[:1])]), [1, 2, 3, 4, 5]
        if wrong == "mixed_three":
            logits, distances = logits[:3], [1, 2, 3]
        if wrong == "mixed_reversed":
            distances = distances[::-1]
        p = np.exp(logits) / np.exp(logits).sum(axis=0)
        states = [np.roll(H, n, axis=0) if wrong == "mixed_wraps" else earlier(H, n) for n in distances]
        return sum(share * state for share, state in zip(p, states, strict=True))

    def attention(self, layer, r, x, keys_values):
        """Returns W_o a for one layer of loop r. x is the residual [T, D]. Appends this loop's keys and values."""
        config, wrong = self.config, self.wrong
        name = f"model.layers.{layer}.self_attn"
        T, N, K, d = len(x), config.num_attention_heads, config.num_key_value_heads, config.head_dim
        w_left = config.plt_window_size[0]
        positions = np.arange(T)
        distance = positions[:, None] - positions[None, :]  # i - j
        causal = distance >= 0
        w = w_left + {"window_short": -1, "window_long": 1, "window_unlimited": T}.get(wrong, 0)
        window = causal & (distance <= max(w, 0))  # w + 1 keys, including position i
        if config.plt_loop_attention == "own":
            window = causal

        y = self.norm(f"model.layers.{layer}.input_layernorm", x)
        q, k, v = (
            self.linear(f"{name}.{proj}", y).reshape(T, heads, d).swapaxes(0, 1)  # [heads, T, d]
            for proj, heads in (("q_proj", N), ("k_proj", K), ("v_proj", K))
        )
        unrotated_q = q
        rope_positions = positions - r if wrong == "rope_shifted" else positions  # position i in every loop
        q, k = rotate(q, rope_positions, self.theta), rotate(k, rope_positions, self.theta)
        keys_values[r].append((k, v))

        if r == 0 and wrong != "gate_loop0":
            a = attend(q, k, v, causal)
        else:
            source = {"global_own_keys": r, "global_last_keys": r - 1}.get(wrong, 0)
            k_shared, v_shared = keys_values[source][layer]
            visible = causal
            if wrong == "global_without_self":
                visible = (distance > 0) | ((distance == 0) & (positions[:, None] == 0))  # token 0 sees only itself
            a_global = attend(q, k_shared, v_shared, visible)

            k_own, v_own = keys_values[0 if wrong == "local_shared_keys" else r][layer]
            a_local = attend(q, k_own, v_own, window)

            if config.plt_loop_attention == "joint":
                a = self.joint(q, keys_values[0][layer], keys_values[r][layer], causal, window)
                return self.linear(f"{name}.o_proj", a.swapaxes(0, 1).reshape(T, -1))

            g = self.gate(layer, x, y, unrotated_q if wrong == "gate_before_rope" else q)  # [N, T, 1]
            if wrong == "gate_swapped":
                g = 1.0 - g
            elif wrong == "gate_half":
                g = 0.5
            elif wrong == "global_only":
                g = 1.0
            g = {"gated": g, "shared": 1.0, "own": 0.0}[config.plt_loop_attention]
            a = g * a_global + (1.0 - g) * a_local

        return self.linear(f"{name}.o_proj", a.swapaxes(0, 1).reshape(T, -1))

    def joint(self, q, shared, own, causal, window):
        """Returns [N, T, d]: one softmax over loop 0's keys up to i, and the own loop's in the window."""
        (k_shared, v_shared), (k_own, v_own) = shared, own
        wrong = self.wrong
        if wrong == "joint_two_softmaxes":
            return 0.5 * (attend(q, k_shared, v_shared, causal) + attend(q, k_own, v_own, window))
        if wrong == "joint_self_once":
            window = window & ~np.eye(len(window), dtype=bool)
        if wrong == "joint_window_once":
            causal = causal & ~window
        if wrong == "joint_unlimited":
            window = causal
        keys = np.concatenate([k_shared, k_own], axis=1)
        values = np.concatenate([v_shared, v_shared if wrong == "joint_values" else v_own], axis=1)
        return attend(q, keys, values, np.concatenate([causal, window], axis=1))

    def gate(self, layer, x, y, q):
        """Returns the weight of the global branch, [N, T, 1]. All loops >= 1 share its parameters."""
        name = f"model.layers.{layer}.self_attn.plt_gate"
        weight = self.weights[f"{name}.weight"]
        bias = 0.0 if self.wrong == "gate_no_bias" else self.weights.get(f"{name}.bias", 0.0)
        if self.config.plt_gate_use_hidden_states:  # weight is [N, D]; x is the residual before the input norm
            h = y if self.wrong == "gate_on_normed" else x
            h = h if self.wrong == "gate_no_norm" else self.norm(f"{name}.gate_norm", h)
            scores = h @ weight.T + bias  # [T, N]
        else:  # weight is [N, d]: head n scores its own query, after RoPE
            scores = np.stack([q_n @ w_n for q_n, w_n in zip(q, weight, strict=True)], axis=1) + bias  # [T, N]
        return sigmoid(scores).T[:, :, None]

    def mlp(self, layer, x):
        """Returns the SwiGLU of the normed residual."""
        name = f"model.layers.{layer}.mlp"
        y = self.norm(f"model.layers.{layer}.post_attention_layernorm", x)
        gate = self.linear(f"{name}.gate_proj", y)
        return self.linear(f"{name}.down_proj", gate * sigmoid(gate) * self.linear(f"{name}.up_proj", y))
