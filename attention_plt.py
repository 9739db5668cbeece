# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Gated sliding-window attention (G-SWA, arXiv 2510.24824), the attention of loops >= 1 of a Parallel Loop Transformer.

    loop 0:     a = causal(q, K⁰, V⁰)                    K⁰, V⁰: loop 0's keys and values, kept in the cache
    loop r:     a = g · causal(q, K⁰, V⁰) + (1 - g) · window(q, k^r, v^r)         g: one gate per query head

Shapes are suffixes, as in `modeling_plt.py`: B batch, N cells, S keys, D hidden_size, H query heads, K key/value heads,
C head_dim. Cells of several loops are concatenated along N, loop by loop.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from .configuration_plt import IQuestPLTCoderConfig
from .kernels_plt import attend, attend_from_one_position, attend_in_tiles, attend_with_row_masks
from .masks_plt import Cells, Window


class IQuestPLTCoderGate(nn.Module):
    """
    The weight `g` of the global branch in loops >= 1: one number in (0, 1) per query head and token.

    All loops share one set of weights per layer. This is not an `nn.Linear`, because quantizers and adapters that
    replace Linears would drop `gate_norm`.
    """

    def __init__(self, config: IQuestPLTCoderConfig, in_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, in_features))
        self.bias = nn.Parameter(torch.empty(config.num_attention_heads))
        self.out_features = config.num_attention_heads  # tensor parallelism splits this dimension

    def reads(self, residual_BND: torch.Tensor, query_BHNC: torch.Tensor) -> torch.Tensor:
        """Returns the input of `forward`. A separate step, because tensor parallelism replicates a module's input."""
        raise NotImplementedError

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the gates (B, N, H)."""
        raise NotImplementedError


class ResidualGate(IQuestPLTCoderGate):
    """`g = sigmoid(W RMSNorm_gate(x) + b)`, where `x` is the residual stream before the layer's own norm."""

    def __init__(self, config: IQuestPLTCoderConfig):
        super().__init__(config, config.hidden_size)
        self.gate_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def reads(self, residual_BND: torch.Tensor, query_BHNC: torch.Tensor) -> torch.Tensor:
        return self.gate_norm(residual_BND)

    def forward(self, states_BND: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(nn.functional.linear(states_BND, self.weight, self.bias))


class QueryGate(IQuestPLTCoderGate):
    """`g_h = sigmoid(<q_h, w_h> + b_h)`, where `q_h` is the rotated query."""

    def __init__(self, config: IQuestPLTCoderConfig):
        super().__init__(config, config.head_dim)

    def reads(self, residual_BND: torch.Tensor, query_BHNC: torch.Tensor) -> torch.Tensor:
        return query_BHNC

    def forward(self, query_BHNC: torch.Tensor) -> torch.Tensor:
        # Tensor parallelism splits all three by heads.
        parts = (query_BHNC, self.weight, self.bias)
        query_BHNC, weight, bias = (part.to_local() if hasattr(part, "to_local") else part for part in parts)
        return torch.sigmoid(torch.einsum("bhnc,hc->bnh", query_BHNC, weight) + bias)


class AttentionTap(nn.Identity):
    """Records the attention weights of the global branch. Called in the last loop, and only when requested."""


class WindowTap(nn.Identity):
    """Records the attention weights of the window branch, as `AttentionTap` does."""


class GateTap(nn.Identity):
    """Records the gates, as `AttentionTap` does."""


class IQuestPLTCoderAttention(nn.Module):
    """Llama's attention for loop 0. Later loops mix it with attention to a window of their own keys."""

    def __init__(self, config: IQuestPLTCoderConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        def projection(in_features: int, out_features: int) -> nn.Linear:
            return nn.Linear(in_features, out_features, bias=config.attention_bias)

        self.q_proj = projection(config.hidden_size, config.num_attention_heads * self.head_dim)
        self.k_proj = projection(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.v_proj = projection(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.o_proj = projection(config.num_attention_heads * self.head_dim, config.hidden_size)
        # CODEPATH: reads the residual in LoopCoder-V2, and the query by default.
        self.plt_gate = ResidualGate(config) if config.plt_gate_use_hidden_states else QueryGate(config)
        self.attention_tap, self.window_tap, self.gate_tap = AttentionTap(), WindowTap(), GateTap()

    def forward(
        self,
        hidden_BND: torch.Tensor,
        residual_BND: torch.Tensor,
        key0_BKSC: torch.Tensor | None,
        value0_BKSC: torch.Tensor | None,
        cells: Cells,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Returns the output (B, N, D) and loop 0's keys and values (B, K, S, C). Later loops take these as `key0` and
        `value0`. `hidden` holds all cells that enter the layer, normed. The output and `residual` hold only the cells
        that leave it.
        """
        query, key, value = self._project(hidden_BND, cells)
        num_loop0 = cells.num_loop0  # these cells have only the global branch
        if cells.loops.start == 0:  # written first, because the cells of other loops read it
            key0_BKSC, value0_BKSC = (states[:, :, :num_loop0] for states in (key, value))
            if cache is not None:
                key0_BKSC, value0_BKSC = cache.update(key0_BKSC, value0_BKSC, self.layer_idx)
        output = self.attend_globally(query, key0_BKSC, value0_BKSC, cells, **kwargs)
        if cells.loops.stop > 1:
            later_query, key, value = (states[:, :, num_loop0:] for states in (query, key, value))
            later = self.attend_later(later_query, key, value, (key0_BKSC, value0_BKSC), cells, cache, **kwargs)
            mixed = self.mix(output[:, num_loop0:], later, residual_BND, query, cells)
            output = torch.cat([output[:, :num_loop0], mixed], dim=1) if num_loop0 else mixed
        return self.o_proj(output.flatten(2).contiguous()), key0_BKSC, value0_BKSC

    def _project(self, hidden_BND: torch.Tensor, cells: Cells) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Returns rotated queries (B, H, N, C) of the cells that leave the layer, and rotated keys and plain values
        (B, K, N, C) of all cells.
        """

        def heads(states: torch.Tensor, projection: nn.Module) -> torch.Tensor:
            return projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        cos, sin = cells.position_embeddings
        num_inputs, num_outputs = cells.num_inputs, cells.num_outputs
        # Both count tokens per loop. Several loops run together for one token only, whose cos and sin are broadcast.
        if num_outputs == num_inputs:
            query, key = heads(hidden_BND, self.q_proj), heads(hidden_BND, self.k_proj)
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
        else:
            query, key = heads(hidden_BND[:, -num_outputs:].contiguous(), self.q_proj), heads(hidden_BND, self.k_proj)
            query, _ = apply_rotary_pos_emb(query, query[:, :0], cos[:, -num_outputs:], sin[:, -num_outputs:])
            _, key = apply_rotary_pos_emb(key[:, :0], key, cos, sin)
        return query, key, heads(hidden_BND, self.v_proj)

    def attend_globally(self, query_BHNC, key0_BKSC, value0_BKSC, cells: Cells, **kwargs) -> torch.Tensor:
        """Returns the attention of all cells to loop 0's keys, (B, N, H, C)."""
        if cells.staircase is not None:
            attention = attend_with_row_masks
        else:
            attention = attend_from_one_position if cells.num_outputs == 1 else attend  # tokens, not cells
        output, weights = attention(self, query_BHNC, key0_BKSC, value0_BKSC, cells.global_mask, **kwargs)
        if cells.is_recorded and weights is not None:
            self.attention_tap(weights)
        return output

    def attend_later(self, query_BHNC, key_BKNC, value_BKNC, shared, cells: Cells, cache, **kwargs) -> torch.Tensor:
        """
        Returns the attention of loops >= 1 to a window of their own keys, (B, N, H, C). `shared`, loop 0's keys and
        values, is only for a control.
        """
        if cells.staircase is not None:
            key, value = cells.staircase.update_window(self.layer_idx, key_BKNC, value_BKNC)
            return attend_with_row_masks(self, query_BHNC, key, value, cells.window.mask, **kwargs)[0]
        loops = range(max(cells.loops.start, 1), cells.loops.stop)
        query, key, value = (_loops_as_rows(states, len(loops)) for states in (query_BHNC, key_BKNC, value_BKNC))
        if cache is not None:
            layer, window = cache.layers[self.layer_idx], cells.window
            key, value = layer.update_window(loops, key, value, window.is_token, window.keep, window.order)
            if cells.is_tail:  # the cached keys do not directly precede these
                key, value = (states[:, :, -cells.num_inputs :] for states in (key, value))
        output = self._attend_in_window(query, key, value, shared, cells, **kwargs)
        return output.unflatten(0, (len(loops), -1)).transpose(0, 1).flatten(1, 2) if len(loops) > 1 else output

    def _attend_in_window(self, query_BHNC, key_BKSC, value_BKSC, shared, cells: Cells, **kwargs) -> torch.Tensor:
        window = cells.window
        if window.tile_size is not None:
            return attend_in_tiles(self, query_BHNC, key_BKSC, value_BKSC, window, **kwargs)
        attention = attend_from_one_position if query_BHNC.shape[2] == 1 else attend
        kwargs["sliding_window"] = window.left + 1  # the library counts the token itself
        output, weights = attention(self, query_BHNC, key_BKSC, value_BKSC, window.mask, **kwargs)
        if cells.is_recorded and weights is not None:
            self.record_window(weights, window)
        return output

    def record_window(self, weights_BHNS: torch.Tensor, window: Window) -> None:
        """Records the weights of the window branch in the order of the text. A single token reads a ring as it is."""
        in_ring = window.order is not None and weights_BHNS.shape[2] == 1
        self.window_tap(weights_BHNS.take_along_dim(window.order[:, None, None], -1) if in_ring else weights_BHNS)

    def mix(self, global_BNHC, local_BNHC, residual_BND, query_BHNC, cells: Cells) -> torch.Tensor:
        """
        Returns `g · global + (1 - g) · local` for the last cells. `residual` and `query` cover all cells: the gate's
        norm then differs from the layer's own only in its weight, so a compiler can fuse the two.
        """
        gate_BNH = self.plt_gate(self.plt_gate.reads(residual_BND, query_BHNC))[:, -global_BNHC.shape[1] :]
        if cells.is_recorded:
            self.gate_tap(gate_BNH.transpose(1, 2))
        return torch.lerp(local_BNHC, global_BNHC, gate_BNH[..., None].to(global_BNHC.dtype))


def _loops_as_rows(states_BHNC: torch.Tensor, num_loops: int) -> torch.Tensor:
    """Turns the cells of several loops into rows of a batch, loops outermost: (loops · B, H, N / loops, C)."""
    if num_loops == 1:
        return states_BHNC
    return states_BHNC.unflatten(2, (num_loops, -1)).permute(2, 0, 1, 3, 4).flatten(0, 1)


__all__ = ["IQuestPLTCoderAttention", "IQuestPLTCoderGate"]
