# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The Parallel Loop Transformer for mlx-lm. `iquest-plt convert --to mlx` copies this file into the model's folder, where
mlx-lm runs it as the folder's `model_file`. It therefore imports only mlx and mlx_lm.

    loop 0:    x = E_i                                              a = causal(q, K⁰, V⁰)
    loop r:    x = emb_scale · E_i + hidden_scale · H^{r-1}_{i-1}   a = g · causal(q, K⁰, V⁰) + (1 - g) · window(q)

One new token runs all loops in one pass over the weights: they are rows of the batch, loop by loop. The tokens of a
prompt depend on each other, so their loops run one after another.

The cache consists of mlx-lm's own classes, so that its commands can save, load, merge and split it. Each layer has a
`CacheList` of loop 0's keys and values (`KVCache`) and a window for each later loop (`RotatingKVCache`). The list of
layer 0 also holds the carries, an `ArraysCache`: the state `H^r` of the last token for every loop but the last. With
one loop, each layer has a plain `KVCache`.

Source: arXiv 2510.24824, arXiv 2606.18023. Shapes: B batch, R loops, N cells (tokens of a loop), D hidden_size, H query
heads, K key/value heads, S keys, C head_dim.
"""

import copy
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import (
    BaseModelArgs,
    create_attention_mask,
    create_causal_mask,
    scaled_dot_product_attention,
)
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache
from mlx_lm.models.rope_utils import initialize_rope


# Fields of each kind of rotary scaling that mlx-lm computes as Transformers does.
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
    ),
    "llama3": (
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    ),
}


@dataclass
class ModelArgs(BaseModelArgs):
    """
    The fields of `config.json`. The defaults are those of the released checkpoint's configuration class.

    Raises ValueError for a model that this file cannot compute.
    """

    model_type: str = "iquestpltcoder"
    vocab_size: int = 75904
    hidden_size: int = 5120
    intermediate_size: int = 27648
    num_hidden_layers: int = 14
    num_attention_heads: int = 40
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    plt_num_loops: int = 2
    plt_window_size: list = field(default_factory=lambda: [64, 0])
    plt_emb_scale: float | None = None
    plt_hidden_scale: float | None = None
    plt_normalize_per_loop: bool = True
    plt_gate_use_hidden_states: bool = False
    plt_cross_loop_shift: bool | str = True
    plt_loop_attention: str = "gated"

    def __post_init__(self):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if type(self.plt_num_loops) is not int or self.plt_num_loops < 1:
            raise ValueError(f"`plt_num_loops` must be an integer >= 1, got {self.plt_num_loops!r}.")
        # With one loop, no shift is needed. The learned ones have a tensor that this model does not read.
        if isinstance(self.plt_cross_loop_shift, str) or (self.plt_num_loops > 1 and not self.plt_cross_loop_shift):
            raise ValueError(
                f"MLX cannot run a PLT without the shift (`plt_cross_loop_shift={self.plt_cross_loop_shift!r}`), only "
                "the released kind (True). Use Transformers."
            )
        if self.plt_num_loops > 1 and self.plt_loop_attention != "gated":
            raise ValueError(
                f"MLX cannot run a PLT with `plt_loop_attention={self.plt_loop_attention!r}`, only the released kind "
                '("gated"). Use Transformers.'
            )
        if self.hidden_act != "silu":
            raise ValueError(f"MLX cannot run a PLT with `hidden_act={self.hidden_act!r}`. Use Transformers.")
        self.rope = self._read_rope()

    @property
    def window(self) -> int:
        """The number of earlier keys of its own loop that a token sees in loops >= 1, besides its own."""
        return self.plt_window_size[0]

    def _read_rope(self) -> dict:
        """Returns the arguments of `initialize_rope`. Refuses settings that mlx-lm would ignore."""
        given = {**(self.rope_scaling or {}), **(self.rope_parameters or {})}
        given = {name: value for name, value in given.items() if value is not None}
        theta = given.pop("rope_theta", self.rope_theta)
        kind = given.pop("rope_type", given.pop("type", "default"))
        given.pop("type", None)
        if given.pop("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError("MLX cannot run a PLT with a `partial_rotary_factor`. Use Transformers.")
        if given.get("truncate") is True:
            del given["truncate"]
        if kind == "yarn" and not (given.get("mscale") and given.get("mscale_all_dim")):
            given.pop("mscale", None)  # Transformers reads them only if both are given
            given.pop("mscale_all_dim", None)
        if kind not in ROPE_FIELDS:
            raise ValueError(f"MLX cannot run a PLT with {kind!r} rotary embeddings. Use Transformers.")
        # Other kinds need no original length, but some configurations state it anyway.
        ignored = given.keys() - {*ROPE_FIELDS[kind], "original_max_position_embeddings"}
        if ignored and kind != "default":
            raise ValueError(f"MLX ignores {', '.join(sorted(ignored))} in `rope_parameters`. Use Transformers.")
        if kind in ("yarn", "llama3"):
            given.setdefault("original_max_position_embeddings", self.max_position_embeddings)
        scaling = {"rope_type": kind, **{name: given[name] for name in ROPE_FIELDS[kind] if name in given}}
        return {
            "dims": self.head_dim,
            "base": theta,
            "traditional": False,
            "scaling_config": scaling,
            "max_position_embeddings": self.max_position_embeddings,
        }


class LoopCaches(CacheList):
    """One layer's caches, with clear errors for what they cannot do."""

    @property
    def offset(self) -> int:
        """Makes mlx-lm call `to_quantized` right away, whatever its `quantized_kv_start` is."""
        return sys.maxsize

    def to_quantized(self, group_size: int = 64, bits: int = 4):
        raise ValueError(
            "The cache of a PLT with several loops cannot be quantized. Leave out `--kv-bits` (`kv_bits`)."
        )

    def is_trimmable(self) -> bool:
        return False

    def trim(self, n: int):
        raise ValueError(
            "The cache of a PLT with several loops cannot be trimmed: it holds only the last keys of each loop. "
            "Process the text again with a new cache."
        )

    def extract(self, idx: int) -> "LoopCaches":
        return LoopCaches(*(cache.extract(idx) for cache in self.caches))


LoopCaches.__name__ = "CacheList"  # saved caches name their class, and mlx-lm loads only its own


class LayerCache(NamedTuple):
    """One layer's caches: loop 0's keys and values, and a window for each loop r >= 1 at index r - 1."""

    shared: Any = None
    windows: tuple = ()


@dataclass
class Cells:
    """
    The cells that go through the layers together: the tokens of one loop, or one token in all loops.

    Attributes:
        loops: the loops of the cells. The batch holds their rows loop by loop, (len(loops) · B, N, D).
        offset: the position of the first token: an integer, or an array (B,).
        global_mask, window_mask: as mlx-lm makes them, for all N tokens.
        window: the number of earlier tokens that the windows reach.
        starts: the first token that enters each layer, then the first that leaves the last one. None if all do.
    """

    loops: range
    offset: Any
    global_mask: Any
    window_mask: Any
    window: int
    starts: list | None = None

    def span(self, layer: int) -> tuple[int, int]:
        """Returns the first token that enters the layer, and the first that leaves it."""
        return (0, 0) if self.starts is None else (self.starts[layer], self.starts[layer + 1])


class Gate(nn.Module):
    """
    The weight `g` of the global branch in loops >= 1: one number in (0, 1) per query head and token. Not an
    `nn.Linear`, so that quantization and LoRA leave it alone.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        reads_residual = args.plt_gate_use_hidden_states
        self.weight = mx.zeros((args.num_attention_heads, args.hidden_size if reads_residual else args.head_dim))
        self.bias = mx.zeros((args.num_attention_heads,))
        if reads_residual:
            self.gate_norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, residual: mx.array, queries: mx.array) -> mx.array:
        """Returns the gates (B, H, N, 1) for residuals (B, N, D) and rotated queries (B, H, N, C)."""
        if "gate_norm" in self:
            scores = self.gate_norm(residual) @ self.weight.T + self.bias
            return mx.sigmoid(scores).transpose(0, 2, 1)[..., None]
        return mx.sigmoid(queries @ self.weight[:, :, None] + self.bias[:, None, None])


class Attention(nn.Module):
    """Attention of loop 0, and gated sliding-window attention of loops >= 1."""

    def __init__(self, args: ModelArgs, index: int):
        super().__init__()
        self.index = index
        self.n_heads, self.n_kv_heads, self.head_dim = (
            args.num_attention_heads,
            args.num_key_value_heads,
            args.head_dim,
        )
        self.scale = args.head_dim**-0.5
        width, kv_width = self.n_heads * args.head_dim, self.n_kv_heads * args.head_dim
        self.q_proj = nn.Linear(args.hidden_size, width, bias=args.attention_bias)
        self.k_proj = nn.Linear(args.hidden_size, kv_width, bias=args.attention_bias)
        self.v_proj = nn.Linear(args.hidden_size, kv_width, bias=args.attention_bias)
        self.o_proj = nn.Linear(width, args.hidden_size, bias=args.attention_bias)
        self.plt_gate = Gate(args)
        self.rope = initialize_rope(**args.rope)

    def __call__(self, x, residual, keys0, values0, cells: Cells, cache: LayerCache):
        """
        Returns the output (B, N', D) of the cells that leave the layer, and loop 0's keys and values (B, K, S, C).
        `x` (B, N, D) is the normed input, `residual` (B, N', D) the residual stream of the cells that leave.
        """
        start, end = cells.span(self.index)
        queries = self._rotate(self._heads(self.q_proj(x[:, end - start :]), self.n_heads), cells, end)
        keys = self._rotate(self._heads(self.k_proj(x), self.n_kv_heads), cells, start)
        values = self._heads(self.v_proj(x), self.n_kv_heads)
        rows = x.shape[0] // len(cells.loops)
        if cells.loops.start == 0:
            keys0, values0 = keys[:rows], values[:rows]
            if cache.shared is not None:
                keys0, values0 = cache.shared.update_and_fetch(keys0, values0)
        output = self._attend_globally(queries, keys0, values0, cells, cache)
        if cells.loops.stop > 1:
            first = rows if cells.loops.start == 0 else 0  # the first row of a later loop
            local = self._attend_locally(queries[first:], keys[first:], values[first:], cells, cache)
            gate = self.plt_gate(residual[first:], queries[first:])
            mixed = gate * output[first:] + (1 - gate) * local
            output = mx.concatenate([output[:first], mixed]) if first else mixed
        output = output.transpose(0, 2, 1, 3).reshape(*residual.shape[:2], -1)
        return self.o_proj(output), keys0, values0

    def _heads(self, states: mx.array, num_heads: int) -> mx.array:
        batch, length, _ = states.shape
        return states.reshape(batch, length, num_heads, self.head_dim).transpose(0, 2, 1, 3)

    def _rotate(self, states: mx.array, cells: Cells, start: int) -> mx.array:
        """Rotates the heads of tokens from `start` on. A token has the same position in all loops."""
        offset = cells.offset
        if isinstance(offset, mx.array) and len(cells.loops) > 1:
            offset = mx.tile(offset, len(cells.loops))
        return self.rope(states, offset=offset + start)

    def _attend_globally(self, queries, keys, values, cells: Cells, cache: LayerCache) -> mx.array:
        """
        Attends to loop 0's keys. The loops of one token become heads, which read the keys once. MLX has a fused kernel
        for up to 32 queries per key head.
        """
        loops, mask = len(cells.loops), last_rows(cells.global_mask, queries.shape[2])
        if loops > 1:
            batch, groups = keys.shape[0], self.n_heads // self.n_kv_heads
            queries = queries.reshape(loops, batch, self.n_kv_heads, groups, 1, self.head_dim)
            queries = queries.transpose(1, 2, 0, 3, 4, 5).reshape(batch, -1, 1, self.head_dim)
        output = scaled_dot_product_attention(queries, keys, values, cache=cache.shared, scale=self.scale, mask=mask)
        if loops > 1:
            output = output.reshape(batch, self.n_kv_heads, loops, groups, 1, self.head_dim)
            output = output.transpose(2, 0, 1, 3, 4, 5).reshape(loops * batch, self.n_heads, 1, self.head_dim)
        return output

    def _attend_locally(self, queries, keys, values, cells: Cells, cache: LayerCache) -> mx.array:
        """Attends to the windows of loops >= 1, whose rows these are."""
        loops = [loop for loop in cells.loops if loop]
        start, end = cells.span(self.index)
        if start:
            mask = create_causal_mask(queries.shape[2], end - start, window_size=cells.window + 1)
        else:
            mask = last_rows(cells.window_mask, queries.shape[2])
        outputs = []
        for loop, *parts in zip(loops, *(mx.split(part, len(loops)) for part in (queries, keys, values)), strict=True):
            query, key, value = parts
            window = cache.windows[loop - 1] if cache.windows else None
            if start:  # the cells see only keys of this pass
                append_end(window, key, value, start)
            elif window is not None:
                key, value = window.update_and_fetch(key, value)
            outputs.append(mx.fast.scaled_dot_product_attention(query, key, value, scale=self.scale, mask=mask))
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs)


def last_rows(mask, count: int):
    """Returns the mask of the last `count` queries. The strings of mlx-lm already mean the last queries."""
    return mask[..., -count:, :] if isinstance(mask, mx.array) else mask


def append_end(window, keys: mx.array, values: mx.array, skipped: int) -> None:
    """
    Appends the last keys of a chunk to a window. The `skipped` tokens before the given ones were not computed. Nothing
    sees the gap, because the appended keys fill the window.
    """
    size = window.max_size
    window.update_and_fetch(keys[:, :, -size:], values[:, :, -size:])
    window.offset = window.offset + skipped + keys.shape[2] - size


class MLP(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.gate_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=args.mlp_bias)
        self.up_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=args.mlp_bias)
        self.down_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=args.mlp_bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Module):
    """A decoder layer. Loop 0's keys and values are arguments, because gradient checkpointing tracks only those."""

    def __init__(self, args: ModelArgs, index: int):
        super().__init__()
        self.self_attn = Attention(args, index)
        self.mlp = MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, x, keys0, values0, cells: Cells, cache: LayerCache):
        """Returns the cells that leave the layer (B, N', D), and loop 0's keys and values (B, K, S, C)."""
        start, end = cells.span(self.self_attn.index)
        residual = x[:, end - start :]
        output, keys0, values0 = self.self_attn(self.input_layernorm(x), residual, keys0, values0, cells, cache)
        x = residual + output
        return x + self.mlp(self.post_attention_layernorm(x)), keys0, values0


class PLTModel(nn.Module):
    """The decoder without the language-model head."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Layer(args, index) for index in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, inputs: mx.array, cache=None, input_embeddings: mx.array | None = None) -> mx.array:
        """Returns the last loop's states (B, T, D) of the new tokens (B, T), and updates the cache."""
        embeds = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        if embeds.shape[1] == 0:
            return embeds
        caches, carries = self._read_cache(cache)
        self._check_rope(caches[0])
        if carries is None:
            return self._in_sequence(embeds, caches, None)
        if embeds.shape[1] == 1 and carries.lengths is None:
            return self._together(embeds, caches, carries)
        return self._in_sequence(embeds, caches, carries)

    def _read_cache(self, cache) -> tuple[list[LayerCache], ArraysCache | None]:
        """Returns the caches of every layer, and the cache of the carries."""
        loops = self.args.plt_num_loops
        if cache is None or cache[0] is None:
            return [LayerCache()] * len(self.layers), None
        found = 1
        if isinstance(cache[0], CacheList):
            found = len(cache[0].caches) - 1
        if found != loops or len(cache) != len(self.layers):
            raise ValueError(
                f"This cache is for {len(cache)} layers and {found} loops, but the model has {len(self.layers)} layers "
                f"and {loops} loops. Make a new cache with this model."
            )
        if loops == 1:
            return [LayerCache(one) for one in cache], None
        for index, one in enumerate(cache):  # mlx-lm loads saved caches as its own class
            cache[index] = one if isinstance(one, LoopCaches) else LoopCaches(*one.caches)
        return [LayerCache(one[0], tuple(one.caches[1:loops])) for one in cache], cache[0].caches[-1]

    def _check_rope(self, cache: LayerCache) -> None:
        is_dynamic = self.args.rope["scaling_config"]["rope_type"] == "dynamic"
        if is_dynamic and isinstance(getattr(cache.shared, "offset", 0), mx.array):
            raise ValueError(
                "mlx-lm cannot run dynamic rotary embeddings in a batch, so not in its server either. Use "
                "`iquest-plt mlx generate`, which runs one text at a time."
            )

    def _cells(self, loops: range, embeds: mx.array, cache: LayerCache) -> Cells:
        window = self.args.window
        offset = 0 if cache.shared is None else cache.shared.offset
        window_mask = None
        if self.args.plt_num_loops > 1:
            own = cache.windows[0] if cache.windows else None
            window_mask = create_attention_mask(embeds, own, window_size=window + 1)
        return Cells(loops, offset, create_attention_mask(embeds, cache.shared), window_mask, window)

    def _input(self, embeds: mx.array, states: mx.array) -> mx.array:
        """Returns the input of loops >= 1 from embeddings and the states of the tokens before them, (B, N, D)."""
        emb_scale, hidden_scale = self.args.plt_emb_scale, self.args.plt_hidden_scale
        embeds = embeds if emb_scale is None else emb_scale * embeds
        return embeds + (states if hidden_scale is None else hidden_scale * states)

    def _run(self, x: mx.array, shared: list, cells: Cells, caches: list[LayerCache]) -> mx.array:
        """Runs all layers. `shared` holds each layer's keys and values of loop 0, and is updated."""
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            keys0, values0 = shared[index]
            x, keys0, values0 = layer(x, keys0, values0, cells, cache)
            shared[index] = (keys0, values0)
        return x

    def _finish(self, x: mx.array, loop: int) -> mx.array:
        """Returns the states `H^loop` of a loop's outputs. The last loop's are always normed."""
        is_last = loop == self.args.plt_num_loops - 1
        return self.norm(x) if self.args.plt_normalize_per_loop or is_last else x

    def _together(self, embeds: mx.array, caches: list[LayerCache], carries: ArraysCache) -> mx.array:
        """Runs all loops of one token (B, 1, D) in one pass over the weights."""
        loops = self.args.plt_num_loops
        states = [self._carry(carries, loop, embeds) for loop in range(loops - 1)]
        x = mx.concatenate([embeds, *(self._input(embeds, state) for state in states)])
        x = self._run(x, [(None, None)] * len(self.layers), self._cells(range(loops), embeds, caches[0]), caches)
        outputs = mx.split(self.norm(x) if self.args.plt_normalize_per_loop else x, loops)
        for loop, state in enumerate(outputs[:-1]):
            carries[loop] = state[:, 0]
        return outputs[-1] if self.args.plt_normalize_per_loop else self.norm(outputs[-1])

    def _carry(self, carries: ArraysCache | None, loop: int, embeds: mx.array) -> mx.array:
        """Returns the state of the token before the first new one, (B, 1, D): zeros at the start of a text."""
        if carries is None or carries[loop] is None:
            return mx.zeros_like(embeds[:, :1])
        return carries[loop][:, None]

    def _in_sequence(self, embeds: mx.array, caches: list[LayerCache], carries: ArraysCache | None) -> mx.array:
        """Runs the loops of many tokens (B, T, D) one after another."""
        shared = [(None, None)] * len(self.layers)
        cells = self._cells(range(1), embeds, caches[0])
        state0 = self._finish(self._run(embeds, shared, cells, caches), 0)
        before = [self._carry(carries, loop, embeds) for loop in range(self.args.plt_num_loops - 1)]
        if carries is None:
            return self._later_loops(embeds, state0, before, shared, cells, caches)[-1]
        starts = self._tails(embeds.shape[1]) if carries.lengths is None else {}
        if starts:
            # mlx-lm evaluates the caches of a prompt's chunk, but not its logits. So the caches get a graph of their
            # own over the end of the chunk. The graph of the logits runs all tokens, if anything reads them.
            copies = [cache._replace(windows=copy.deepcopy(cache.windows)) for cache in caches]
            output = self._later_loops(embeds, state0, before, shared, cells, copies)[-1]
        states = self._later_loops(embeds, state0, before, shared, cells, caches, starts)
        self._keep_carries(carries, before, states, embeds.shape[1])
        return output if starts else states[-1]

    def _later_loops(self, embeds, state0, before, shared, cells, caches, starts=None) -> list[mx.array]:
        """Returns the states of every loop, (B, <= T, D). `starts` has the `Cells.starts` of loops with a tail."""
        states, length = [state0], embeds.shape[1]
        for loop in range(1, self.args.plt_num_loops):
            own_starts = (starts or {}).get(loop)
            count = length - own_starts[0] if own_starts else length
            shifted = mx.concatenate([before[loop - 1], states[-1]], axis=1)[:, -count - 1 : -1]
            own = Cells(
                range(loop, loop + 1), cells.offset, cells.global_mask, cells.window_mask, cells.window, own_starts
            )
            x = self._run(self._input(embeds[:, length - count :], shifted), list(shared), own, caches)
            states.append(self._finish(x, loop))
        return states

    def _tails(self, length: int) -> dict[int, list[int]]:
        """
        Returns, by loop, the first token that enters each layer, then the first that leaves the last one, so that the
        caches get all they need: a full window, and the last state of all loops but the last. A state depends on the
        window before it in each layer, and on one token before it in the previous loop. Only loops that may leave out
        tokens are in the result.
        """
        layers, window, needed, tails = len(self.layers), self.args.window, 1, {}
        for loop in range(self.args.plt_num_loops - 1, 0, -1):
            starts = [max(length - needed - window * (layers - layer), 0) for layer in range(layers + 1)]
            if not any(starts):
                break
            tails[loop] = starts
            needed = length - starts[0] + 1
        return tails

    def _keep_carries(self, carries: ArraysCache, before: list, states: list, length: int) -> None:
        """Stores each loop's state of the last token. In right-padded rows, that is the last real token."""
        lengths = carries.lengths
        for loop, (first, state) in enumerate(zip(before, states[:-1], strict=True)):
            if lengths is None:
                carries[loop] = state[:, -1]
            else:
                index = mx.clip(lengths, 0, length)[:, None, None]
                carries[loop] = mx.take_along_axis(mx.concatenate([first, state], axis=1), index, axis=1)[:, 0]
        if lengths is not None:
            carries.advance(length)


class Model(nn.Module):
    """The model as mlx-lm loads it."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = PLTModel(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache=None, input_embeddings: mx.array | None = None) -> mx.array:
        """Returns the logits (B, T, vocab_size) of the new tokens (B, T), and updates the cache."""
        states = self.model(inputs, cache, input_embeddings)
        if self.args.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(states)
        return self.lm_head(states)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Returns the weights under this model's names. Training exports call the gate `loop_gate_proj`."""
        renamed = {name.replace(".loop_gate_proj.", ".plt_gate."): weight for name, weight in weights.items()}
        tied = {"lm_head.weight"} if self.args.tie_word_embeddings else set()
        return {
            name: weight
            for name, weight in renamed.items()
            if name not in tied and not name.endswith("rotary_emb.inv_freq")
        }

    @property
    def layers(self) -> list[Layer]:
        return self.model.layers

    def make_cache(self) -> list:
        """Returns an empty cache for one text, with one entry per layer."""
        loops, size = self.args.plt_num_loops, self.args.window + 1
        if loops == 1:
            return [KVCache() for _ in self.layers]
        layers = [[KVCache(), *(RotatingKVCache(size) for _ in range(loops - 1))] for _ in self.layers]
        layers[0].append(ArraysCache(loops - 1))
        return [LoopCaches(*layer) for layer in layers]
