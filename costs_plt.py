# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The serving costs of a PLT model, computed from its configuration."""

from typing import Any

import torch


class PLTCosts:
    """Cache size and operations per decode step of a model with `config`, `dtype` and `base_model`."""

    config: Any
    dtype: torch.dtype
    base_model: Any

    def kv_bytes_per_token(self, num_loops: int | None = None) -> int:
        """
        Returns the cache bytes per additional token of context, in the model's dtype. The number of loops matters only
        if each loop keeps all of its own keys (`plt_loop_attention="own"`).
        """
        config = self.config
        # CODEPATH: "gated" in LoopCoder-V2 and by default.
        num_loops = config.check_num_loops(num_loops) if config.plt_loop_attention == "own" else 1
        layers = num_loops * config.num_hidden_layers
        return 2 * layers * config.num_key_value_heads * config.head_dim * self.dtype.itemsize

    def kv_bytes_per_sequence(self, length: int, num_loops: int | None = None) -> int:
        """Returns the cache bytes of a sequence of `length` tokens: the shared part, and window and carry per loop."""
        further_loops = self.config.check_num_loops(num_loops) - 1
        shared = self.kv_bytes_per_token(1)
        window = shared * min(length, self.config.loop_window)
        carry = self.config.hidden_size * self.dtype.itemsize * (length > 0) * self.config.loop_reach
        return shared * length + further_loops * (window + carry)

    def decode_flops(self, length: int, num_loops: int | None = None) -> int:
        """
        Returns the floating-point operations (a multiply-add counts as two) of one decode step that attends to `length`
        tokens including its own. Counts matrix products and attention, but no element-wise operations. The head runs
        once.
        """
        config, num_loops = self.config, self.config.check_num_loops(num_loops)
        attention_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        weights = config.hidden_size * (2 * attention_size + 2 * kv_size + 3 * config.intermediate_size)
        gate = self.base_model.layers[0].self_attn.plt_gate.weight.numel()
        # The number of loops with a branch on loop 0's keys, with one on their own keys, and with a gate.
        kind, further_loops = config.plt_loop_attention, num_loops - 1
        global_loops = {"own": 1}.get(kind, num_loops)
        local_loops, gated_loops = {"shared": 0}.get(kind, further_loops), {"gated": further_loops}.get(kind, 0)
        keys = global_loops * length + local_loops * min(length, config.loop_window + 1)
        per_layer = 2 * (num_loops * weights + gated_loops * gate) + 4 * attention_size * keys
        return config.num_hidden_layers * per_layer + 2 * config.hidden_size * config.vocab_size


__all__ = ["PLTCosts"]
