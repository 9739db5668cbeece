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
PLT for vLLM: its Llama, whose layers run R times per token (`modeling_plt.py` of this package says what is computed).

Rows are the new tokens of all requests, one after the other. A pass through the layers takes segments of rows, each of
one loop: first loop 0 of all rows, and with it the other loops of the rows that may run them together; then, of the
rest, one loop after the other.
"""

from dataclasses import dataclass

import torch
from torch import nn
from vllm.compilation.decorators import ignore_torch_compile
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import override_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.utils import WeightsMapper, extract_layer_index, maybe_prefix
from vllm.model_executor.utils import set_weight_attrs

from .carry import Carry
from .checks import check
from .schedule import Part, in_parts, split, tail_lengths


@dataclass(frozen=True)
class Segment:
    """Rows that go through the layers in one loop: what the first layer takes, (rows, hidden_size), and where."""

    loop: int
    part: Part
    positions: torch.Tensor
    inputs: torch.Tensor


class HiddenGate(ColumnParallelLinear):
    """The gate that reads the residual stream: one logit per query head. Its weights are named as in the checkpoint."""

    def __init__(self, config, prefix: str):
        super().__init__(config.hidden_size, config.num_attention_heads, return_bias=False, prefix=prefix)
        self.gate_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, residual: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return super().forward(self.gate_norm(residual))


class QueryGate(nn.Module):
    """The gate that reads the rotated query, head by head."""

    def __init__(self, config):
        super().__init__()
        heads = config.num_attention_heads // get_tensor_model_parallel_world_size()
        self.weight = nn.Parameter(torch.empty(heads, config.head_dim))
        self.bias = nn.Parameter(torch.empty(heads))
        for parameter in (self.weight, self.bias):
            set_weight_attrs(parameter, {"weight_loader": sharded_weight_loader(0)})

    def forward(self, residual: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return (query.unflatten(-1, self.weight.shape) * self.weight).sum(-1) + self.bias


class IQuestPLTCoderAttention(LlamaAttention):
    """Llama's attention; in loops >= 1 it reads loop 0's keys, and is mixed with a window of the loop's own."""

    def __init__(self, *, config, cache_config, prefix: str, **kwargs):
        super().__init__(config=config, cache_config=cache_config, prefix=prefix, **kwargs)
        layer = extract_layer_index(prefix)
        before, after = prefix.split(f".{layer}.")
        self.windows = nn.ModuleList(
            Attention(
                self.num_heads,
                self.head_dim,
                self.scaling,
                num_kv_heads=self.num_kv_heads,
                cache_config=cache_config,
                per_layer_sliding_window=config.plt_window_size[0] + 1,
                prefix=f"{before}.{loop * config.num_hidden_layers + layer}.{after}.attn",
            )
            for loop in range(1, config.plt_num_loops)
        )
        if self.windows:
            lengths = tail_lengths(get_current_vllm_config())
            for attention in (self.attn, *self.windows):
                attention.attn_backend = in_parts(attention.attn_backend, lengths)
        gate = f"{prefix}.plt_gate"
        self.plt_gate = HiddenGate(config, gate) if config.plt_gate_use_hidden_states else QueryGate(config)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor, segments: list[Segment]
    ) -> torch.Tensor:
        """`residual` is what `hidden_states` was before its norm."""
        query, key, value = self.qkv_proj(hidden_states)[0].split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        query, key = self.rotary_emb(positions, query, key)
        sizes = [len(segment.inputs) for segment in segments]
        outputs, own = [], []
        for segment, q, k, v in zip(segments, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
            with override_forward_context(segment.part.context):
                if segment.loop == 0:
                    outputs.append(self.attn(q, k, v))
                else:
                    outputs.append(self.attn(q, None, None))  # to loop 0's keys, which are written by now
                    own.append(self.windows[segment.loop - 1](q, k, v))
        output = torch.cat(outputs)
        if own:  # loop 0 stands in front, if it is there
            looped = sum(map(len, own))
            gate = torch.sigmoid(self.plt_gate(residual[-looped:], query[-looped:]))[..., None]
            heads = (self.num_heads, self.head_dim)
            mixed = torch.lerp(torch.cat(own).unflatten(-1, heads), output[-looped:].unflatten(-1, heads), gate)
            output[-looped:] = mixed.flatten(1)
        return self.o_proj(output)[0]


class IQuestPLTCoderDecoderLayer(LlamaDecoderLayer):
    def __init__(self, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config, prefix, attn_layer_type=IQuestPLTCoderAttention)

    def forward(self, positions, hidden_states, residual, segments: list[Segment]):
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states, residual, segments)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


@ignore_torch_compile  # nothing in a graph would keep loop 0's writes before the other loops' reads
class IQuestPLTCoderModel(LlamaModel):
    hf_to_vllm_mapper = LlamaModel.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_substr={".loop_gate_proj.": ".plt_gate."}  # as training exports name the gate
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", layer_type=IQuestPLTCoderDecoderLayer):
        check(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
        if self.config.plt_num_loops > 1:
            windows = [window for layer in self.layers for window in layer.self_attn.windows]
            self.carry = Carry(windows, maybe_prefix(prefix, "layers"), vllm_config)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        """`H^{R-1}` of every row, (rows, hidden_size); NaN for those of which no logits are asked (`schedule.TAIL`)."""
        embeds = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        num_loops = self.config.plt_num_loops
        whole, together, rest = split(self.carry.layer_name if num_loops > 1 else None, len(embeds))
        segments = [Segment(0, whole, positions, embeds)]
        if together is not None:
            at = together.of(positions)
            for loop in range(1, num_loops):
                before = self.carry.read_before(loop - 1, at, together)
                segments.append(Segment(loop, together, at, self._loop_input(together.of(embeds), before)))
        states = self._run_layers(segments)
        done = [] if together is None else [states[-1]]
        if rest is None:
            return states[-1]
        state, embeds, positions = (rest.of(rows) for rows in (states[0], embeds, positions))
        for loop in range(1, num_loops):
            inputs = self._loop_input(embeds, self.carry.shift(loop - 1, state, positions, rest))
            if not rest.tails:
                (state,) = self._run_layers([Segment(loop, rest, positions, inputs)])
                continue
            tail = rest.tails[loop - 1]
            (found,) = self._run_layers([Segment(loop, tail, tail.of(positions), tail.of(inputs))])
            state = torch.full_like(state, torch.nan).index_copy_(0, tail.rows, found)
        return torch.cat([*done, state])

    def _loop_input(self, embeds: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """`x^r_i = emb_scale · E_i + hidden_scale · H^{r-1}_{i-1}`; `before` is `H^{r-1}`, already shifted."""
        emb_scale, hidden_scale = self.config.plt_emb_scale, self.config.plt_hidden_scale
        embeds = embeds if emb_scale is None else emb_scale * embeds
        return embeds + (before if hidden_scale is None else hidden_scale * before)

    def _run_layers(self, segments: list[Segment]) -> list[torch.Tensor]:
        """`H^r` of each segment. All but the last loop's are handed on to the next token."""
        positions = torch.cat([segment.positions for segment in segments])
        hidden_states = torch.cat([segment.inputs for segment in segments])  # a copy, which the norms may overwrite
        residual = None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual, segments)
        states = []
        sizes = [len(segment.inputs) for segment in segments]
        last_loop = self.config.plt_num_loops - 1
        for segment, *block in zip(segments, hidden_states.split(sizes), residual.split(sizes), strict=True):
            is_last = segment.loop == last_loop
            is_normed = is_last or self.config.plt_normalize_per_loop
            states.append(self.norm(*block)[0] if is_normed else sum(block))
            if not is_last:
                self.carry.write(segment.loop, states[-1], segment.part)
        return states


class IQuestPLTCoderForCausalLM(LlamaForCausalLM):
    hf_to_vllm_mapper = IQuestPLTCoderModel.hf_to_vllm_mapper
    supports_lora = False
    supports_pp = False
    supports_eagle = False
    supports_eagle3 = False

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", layer_type=None):
        return IQuestPLTCoderModel(vllm_config=vllm_config, prefix=prefix)

    def load_weights(self, weights):
        """vLLM reads every safetensors file of the folder; one may hold something else, such as values for tests."""
        return super().load_weights(
            (name, tensor) for name, tensor in weights if name.startswith(("model.", "lm_head."))
        )
