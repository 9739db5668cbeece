# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Gated sliding-window attention (G-SWA, arXiv 2510.24824): what loops ≥ 1 of a Parallel Loop Transformer see.

Shapes are suffixes, as in `modeling_plt.py`: B batch, N rows (loops × batch), T tokens, S keys, W keys of a window,
D hidden_size, H query heads, K key/value heads, C head_dim.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb, eager_attention_forward

from .configuration_plt import IQuestPLTCoderConfig


class IQuestPLTCoderGate(nn.Module):
    """
    `g`, one number in (0, 1) per query head and token: the weight of the global branch in loops ≥ 1.

    One set of weights per layer serves all loops. A plain module, not a Linear: quantizers and adapters that swap
    Linears would drop `gate_norm`.
    """

    def __init__(self, config: IQuestPLTCoderConfig):
        super().__init__()
        # CODEPATH: True in LoopCoder-V2, False by default.
        self.use_hidden_states = config.plt_gate_use_hidden_states
        in_features = config.hidden_size if self.use_hidden_states else config.head_dim
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, in_features))
        self.bias = nn.Parameter(torch.empty(config.num_attention_heads))
        self.out_features = config.num_attention_heads  # what tensor parallelism splits
        if self.use_hidden_states:
            self.gate_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """
        The gates (N, T, H) of `gate_norm(residual)` (N, T, D), or of the rotated queries (N, H, T, C). The caller
        applies the norm: tensor parallelism replicates its input.
        """
        if self.use_hidden_states:
            logits_NTH = nn.functional.linear(states, self.weight, self.bias)
        else:  # tensor parallelism splits the heads of all three
            parts = (states, self.weight, self.bias)
            query_NHTC, weight, bias = (p.to_local() if hasattr(p, "to_local") else p for p in parts)
            logits_NTH = torch.einsum("nhtc,hc->nth", query_NHTC, weight) + bias
        return torch.sigmoid(logits_NTH)


class _FoldedQueries:
    """
    Stands for the attention module when queries that share keys, over loops and heads, are grouped in another way.

    Those of one token stand at one position and see the same keys. As rows of one query matrix per key/value head
    (eager, SDPA) they read these keys once, in a matrix product; as further query heads (the other kernels, which would
    take rows for positions) they are one query of length 1. Either way no mask is needed among them, and no key is
    repeated. The heads of a block of the window branch are rows as well, each with the block's mask.
    """

    is_causal = False

    def __init__(self, attention: "IQuestPLTCoderAttention", num_key_value_groups: int):
        self.config = attention.config
        self.layer_idx = attention.layer_idx
        self.training = attention.training
        self.modules = attention.modules
        self.num_key_value_groups = num_key_value_groups


class IQuestPLTCoderAttention(nn.Module):
    """Gated sliding-window attention (G-SWA): loops ≥ 1 mix loop 0's keys with a window of their own."""

    def __init__(self, config: IQuestPLTCoderConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        def projection(in_features, out_features):
            return nn.Linear(in_features, out_features, bias=config.attention_bias)

        self.q_proj = projection(config.hidden_size, config.num_attention_heads * self.head_dim)
        self.k_proj = projection(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.v_proj = projection(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.o_proj = projection(config.num_attention_heads * self.head_dim, config.hidden_size)
        self.plt_gate = IQuestPLTCoderGate(config)

    def forward(
        self,
        hidden_NTD: torch.Tensor,
        residual_NTD: torch.Tensor,
        loops: range,
        key0_BKSC: torch.Tensor | None,
        value0_BKSC: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        global_mask: torch.Tensor | None,
        window_mask: torch.Tensor | None,
        window_block: int | None,
        window_kernel: str | None,
        window_tokens: torch.Tensor | None,
        window_keep: torch.Tensor | None,
        cache: Cache | None = None,
        is_last_loop: bool = False,
        queries: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor | None, ...]:
        """
        Returns the output (N, T, D), what is recorded of the last loop (the attention weights of the global branch
        (B, H, T, S) and of the window branch (B, H, T, W) if the kernel gives them, the gate (B, H, T)), and loop 0's
        keys and values (B, K, S, C), which later loops take as `key0_BKSC` and `value0_BKSC`. Of `hidden`, which may be
        the end of a chunk, the last `queries` tokens are answered, all by default; `residual` is theirs.
        """
        rows, given = hidden_NTD.shape[:2]
        queries = given if queries is None else queries
        batch = rows // len(loops)

        def heads(states, projection):
            return projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        query = heads(hidden_NTD if queries == given else hidden_NTD[:, -queries:], self.q_proj)
        key, value = heads(hidden_NTD, self.k_proj), heads(hidden_NTD, self.v_proj)
        time = position_embeddings[0].shape[1]
        if queries == time:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        else:
            query, _ = apply_rotary_pos_emb(query, query[:, :0], *(e[:, -queries:] for e in position_embeddings))
            _, key = apply_rotary_pos_emb(key[:, :0], key, *(e[:, -given:] for e in position_embeddings))
            global_mask = None if global_mask is None else global_mask[..., -queries:, :]

        if loops.start == 0:  # written before the block's other rows read it
            key0_BKSC, value0_BKSC = key[:batch], value[:batch]
            if cache is not None:
                key0_BKSC, value0_BKSC = cache.update(key0_BKSC, value0_BKSC, self.layer_idx)

        first = batch if loops.start == 0 else 0  # loop 0's rows, if here, have only the global branch
        # CODEPATH: "gated" in LoopCoder-V2 and by default, the others are controls for research.
        kind = self.config.plt_loop_attention
        weights = window_weights = gate_NTH = None
        output = query_global = query[:first] if kind == "own" else query
        if len(query_global):
            output, weights = self._attend(query_global, key0_BKSC, value0_BKSC, global_mask, **kwargs)
        if loops.stop > 1 and kind != "shared":
            window = (key[first:], value[first:])
            if cache is not None:
                further = range(max(loops.start, 1), loops.stop)
                layer = cache.layers[self.layer_idx]
                window = layer.update_window(further, *window, window_tokens, window_keep)
                if given < time:  # the keys before these do not join on to those in the cache
                    window = tuple(states[..., -given:, :] for states in window)
            if window_block is None:
                local_size = self.config.loop_window + 1  # the library counts the token itself
                local_output, window_weights = self._attend(
                    query[first:], *window, window_mask, sliding_window=local_size, **kwargs
                )
            else:
                local_output = self._attend_in_blocks(
                    query, *window, window_mask, window_block, window_kernel, **kwargs
                )
            mixed = local_output
            if kind == "gated":
                use_hidden_states = self.plt_gate.use_hidden_states
                gate_NTH = self.plt_gate(
                    self.plt_gate.gate_norm(residual_NTD[first:]) if use_hidden_states else query[first:]
                )
                output_global = output[first:]
                mixed = torch.lerp(local_output, output_global, gate_NTH[..., None].to(output_global.dtype))
            output = torch.cat([output[:first], mixed]) if first else mixed

        output = output.reshape(rows, queries, -1).contiguous()
        recorded = (None, None, None)
        if is_last_loop:
            recorded = (weights, window_weights, None if gate_NTH is None else gate_NTH.transpose(1, 2))
        return self.o_proj(output), *recorded, key0_BKSC, value0_BKSC

    def _attend(self, query_NHTC, key_BKSC, value_BKSC, mask, block_kernel: str | None = None, **kwargs):
        """
        Causal attention of all rows to `key_BKSC`, (N, T, H, C), in one call whatever the number of loops. With
        `block_kernel` the rows are blocks of queries, whose masks repeat for the heads that share keys.
        """
        kernel = block_kernel or self.config._attn_implementation
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager_attention_forward)
        batch, kv_heads = key_BKSC.shape[:2]
        rows, heads, time, head_dim = query_NHTC.shape
        loops, module = rows // batch, self
        # One loop under eager attention stays Llama to the bit. Under SDPA this is many times faster on a CPU.
        as_rows = block_kernel is not None or (time == 1 and (kernel == "sdpa" or (kernel == "eager" and loops > 1)))
        is_folded = as_rows or loops > 1
        if is_folded:
            query_NHTC = query_NHTC.reshape(loops, batch, kv_heads, -1, time, head_dim).permute(1, 2, 0, 3, 4, 5)
            query_NHTC = query_NHTC.flatten(2, 4) if as_rows else query_NHTC.flatten(1, 3)
            module = _FoldedQueries(self, 1 if as_rows else query_NHTC.shape[1] // kv_heads)
        if as_rows:
            kwargs["is_causal"] = False  # a caller's flag would take them for positions
        output, weights = attention(
            module,
            query_NHTC,
            key_BKSC,
            value_BKSC,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        if is_folded:
            output = output.transpose(1, 2) if as_rows else output
            output = output.reshape(batch, kv_heads, loops, -1, time, head_dim).permute(2, 0, 4, 1, 3, 5)
            output = output.reshape(rows, time, heads, head_dim)
        return output, weights

    def _attend_in_blocks(self, query_NHTC, key_NKSC, value_NKSC, mask, block: int, kernel: str, **kwargs):
        """
        The window branch in O(T · w), (N, T, H, C): blocks of queries, as rows of a batch, each with the keys it may
        see. Blocks are counted from the last, so that fewer queries are the last of the same blocks.
        """
        rows, heads, time, head_dim = query_NHTC.shape
        left, blocks = self.config.loop_window, -(-time // block)
        front = blocks * block - time

        def in_blocks(states, length, size):
            """The last `length` columns in pieces of `size` that begin every `block`: (N · blocks, heads, size, C)."""
            states = nn.functional.pad(states, (0, 0, max(length - states.shape[2], 0), 0))[:, :, -length:]
            return states.unfold(2, size, block).permute(0, 2, 1, 4, 3).flatten(0, 1)

        key, value = (in_blocks(states, blocks * block + left, block + left) for states in (key_NKSC, value_NKSC))
        query = in_blocks(query_NHTC, blocks * block, block)
        mask = mask[:, -blocks:].expand(rows, -1, -1, -1, -1).flatten(0, 1)
        output, _ = self._attend(query, key, value, mask, block_kernel=kernel, **kwargs)
        return output.reshape(rows, blocks * block, heads, head_dim)[:, front:]


__all__ = ["IQuestPLTCoderAttention", "IQuestPLTCoderGate"]
