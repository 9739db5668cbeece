# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
PLT for vLLM: vLLM's Llama, with layers that run R times per token (`modeling_plt.py` defines what they compute).

Rows are the new tokens of all requests, concatenated. The first pass through the layers runs all loops of the rows that
may run them together, and loop 0 of the other rows. The other rows' later loops follow, one by one.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from vllm._custom_ops import rms_norm
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.attention import unified_kv_cache_update
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.utils import WeightsMapper, extract_layer_index, maybe_prefix
from vllm.model_executor.utils import set_weight_attrs
from vllm.platforms import current_platform
from vllm.utils.torch_utils import LayerNameType, _encode_layer_name, _resolve_layer_name, direct_register_custom_op

from . import packed_weights  # noqa: F401  registers a kernel
from .adapters import Adapters
from .carry import Carry
from .checks import check
from .schedule import Part, in_parts, split, tail_lengths


SEGMENTS = "plt_segments"  # in the forward context: the segments of the rows in the current pass


@dataclass(frozen=True)
class Segment:
    """
    Rows that go through the layers together: the rows of a part, repeated for each of `loops`. `inputs` (rows,
    hidden_size) is the input of the first layer.
    """

    part: Part
    loops: range
    positions: torch.Tensor
    inputs: torch.Tensor


class HiddenGate(ColumnParallelLinear):
    """The gate that reads the residual stream: one logit per query head, with the checkpoint's weight names."""

    def __init__(self, config, prefix: str):
        super().__init__(config.hidden_size, config.num_attention_heads, return_bias=False, prefix=prefix)
        self.gate_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, residual: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        if not current_platform.is_cpu():
            return super().forward(self.gate_norm(residual))
        normed = torch.empty_like(residual)  # on a CPU, the norm layer makes eight calls, which is slow in a short step
        rms_norm(normed, residual, self.gate_norm.weight, self.gate_norm.variance_epsilon)
        return super().forward(normed)


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


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Like `torch.cat`, but does not copy a single tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def loops_per_call(num_loops: int, group_size: int, backend: str) -> int:
    """
    Returns the number of loops whose queries go to attention in one call, a divisor of `num_loops`. `group_size` query
    heads share a key/value head.
    """
    # The CPU kernel handles eight such heads at a time; with more it is slower than separate calls. Backends not listed
    # cannot share a cache (FlexAttention) or plan in buffers sized for the model's own heads (FlashInfer).
    limit = {"CPU_ATTN": 8, "FLASH_ATTN": math.inf, "TRITON_ATTN": math.inf}.get(backend, 0)
    return max(
        loops
        for loops in range(1, num_loops + 1)
        if num_loops % loops == 0 and (loops == 1 or loops * group_size <= limit)
    )


class IQuestPLTCoderAttention(LlamaAttention):
    """Llama's attention. In loops >= 1 it reads loop 0's keys and is mixed with a window of the loop's own keys."""

    def __init__(self, *, config, cache_config, prefix: str, **kwargs):
        super().__init__(config=config, cache_config=cache_config, prefix=prefix, **kwargs)
        gate = f"{prefix}.plt_gate"
        self.plt_gate = HiddenGate(config, gate) if config.plt_gate_use_hidden_states else QueryGate(config)
        self.num_loops, self.group_size = config.plt_num_loops, self.num_heads // self.num_kv_heads
        self.name = prefix
        get_current_vllm_config().compilation_config.static_forward_context[prefix] = self  # for `plt_attention`
        if self.num_loops == 1:
            return
        layer = extract_layer_index(prefix)
        before, after = prefix.split(f".{layer}.")

        def attention(num_heads: int, index: int, **options) -> Attention:
            name = f"{before}.{index * config.num_hidden_layers + layer}.{after}.attn"
            options.update(num_kv_heads=self.num_kv_heads, cache_config=cache_config, prefix=name)
            return Attention(num_heads, self.head_dim, self.scaling, **options)

        window = config.plt_window_size[0] + 1
        self.windows = nn.ModuleList(
            attention(self.num_heads, loop, per_layer_sliding_window=window) for loop in range(1, self.num_loops)
        )
        branches = [self.attn, *self.windows]
        self.loops_per_call = loops_per_call(self.num_loops, self.group_size, self.attn.attn_backend.get_name())
        if self.loops_per_call > 1:
            heads, target = self.loops_per_call * self.num_heads, self.attn.layer_name
            self.attn_together = attention(heads, self.num_loops, kv_sharing_target_layer_name=target)
            branches.append(self.attn_together)
        lengths = tail_lengths(get_current_vllm_config())
        for branch in branches:
            branch.attn_backend = in_parts(branch.attn_backend, lengths)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """`residual` is `hidden_states` before its norm."""
        query, key, value = self.qkv_proj(hidden_states)[0].split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        query, key = self.rotary_emb(positions, query, key)
        if torch.compiler.is_compiling():
            output = torch.ops.vllm.plt_attention(query, key, value, residual, _encode_layer_name(self.name))
        else:
            output = self.attend(query, key, value, residual)
        return self.o_proj(output)[0]

    def attend(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Returns the attention of all segments, (rows, heads * head_dim), from queries, keys, values and residual."""
        segments = get_forward_context().additional_kwargs[SEGMENTS]
        sizes = [len(segment.inputs) for segment in segments]
        outputs = []
        for segment, *rows in zip(segments, *(tensor.split(sizes) for tensor in inputs), strict=True):
            with override_forward_context(segment.part.context):
                outputs.append(self._attend(segment.loops, *rows))
        return joined(outputs)

    def _attend(self, loops: range, query, key, value, residual) -> torch.Tensor:
        """Returns the attention of one segment, (rows, heads * head_dim)."""
        if loops == range(1):
            return self.attn(query, key, value)
        if len(loops) > 1:
            return self._attend_together(query, key, value, residual)
        shared = self.attn(query, None, None)  # loop 0's keys were written by an earlier pass
        own = self.windows[loops[0] - 1](query, key, value)
        return self._mix(shared.view(-1, self.num_heads, self.head_dim), own, query, residual).flatten(1)

    def _attend_together(self, query, key, value, residual) -> torch.Tensor:
        """
        Computes all loops at once. For loop 0's keys, the loops of a token become additional heads, so the keys are
        read once for `loops_per_call` loops.
        """
        (first_key, *keys), (first_value, *values) = key.chunk(self.num_loops), value.chunk(self.num_loops)
        tokens, kv_heads = len(first_key), (-1, self.num_kv_heads, self.head_dim)
        unified_kv_cache_update(first_key.view(kv_heads), first_value.view(kv_heads), self.attn.layer_name)
        of_loops = query.view(-1, self.loops_per_call, tokens, self.num_kv_heads, self.group_size, self.head_dim)
        calls = of_loops.permute(0, 2, 3, 1, 4, 5)  # (calls, tokens, kv_heads, loops, group_size, head_dim)
        attention = self.attn_together if self.loops_per_call > 1 else self.attn
        shared = joined([attention(heads, None, None) for heads in calls.flatten(2)])
        shared = shared.view(calls.shape).permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
        query, residual = query[tokens:], residual[tokens:]
        own = [window(*rows) for window, *rows in zip(self.windows, query.split(tokens), keys, values, strict=True)]
        mixed = self._mix(shared[1:], joined(own), query, residual)
        return torch.cat([shared[:1], mixed]).flatten(2).flatten(0, 1)

    def _mix(self, shared, own, query, residual) -> torch.Tensor:
        """Returns `g · shared + (1 - g) · own` in the shape of `shared`, (..., heads, head_dim)."""
        gate = torch.sigmoid(self.plt_gate(residual, query)).view(*shared.shape[:-1], 1)
        return torch.lerp(own.view(shared.shape), shared, gate)


def plt_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, residual: torch.Tensor, layer_name: LayerNameType
) -> torch.Tensor:
    """The attention of one layer as one operation, so that a compiled graph contains neither segments nor caches."""
    layer = get_forward_context().no_compile_layers[_resolve_layer_name(layer_name)]
    return layer.attend(query, key, value, residual)


def plt_attention_fake(query, key, value, residual, layer_name) -> torch.Tensor:
    return query.new_empty(query.shape)


direct_register_custom_op("plt_attention", plt_attention, fake_impl=plt_attention_fake)


class IQuestPLTCoderDecoderLayer(LlamaDecoderLayer):
    def __init__(self, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config, prefix, attn_layer_type=IQuestPLTCoderAttention)

    def forward(self, positions, hidden_states, residual):
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states, residual)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class IQuestPLTCoderModel(LlamaModel):
    """One pass through the layers, which vLLM can compile: what depends on the segments is in `plt_attention`."""

    hf_to_vllm_mapper = LlamaModel.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_substr={".loop_gate_proj.": ".plt_gate."}  # the gate's name in training exports
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", layer_type=IQuestPLTCoderDecoderLayer):
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
        # On a GPU, vLLM cuts the graph at the attention operations it knows, and would have to know `plt_attention`.
        if not current_platform.is_cpu():
            self.do_not_compile = True

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        """Returns the states after the last layer, normed and not, (rows, hidden_size) each."""
        hidden_states, residual = inputs_embeds, None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        return self.norm(hidden_states, residual)


class IQuestPLTCoderForCausalLM(LlamaForCausalLM):
    hf_to_vllm_mapper = IQuestPLTCoderModel.hf_to_vllm_mapper
    embedding_modules = {}  # rejects LoRA adapters of the embeddings and the output layer
    supports_pp = False
    supports_eagle = False
    supports_eagle3 = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        check(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.adapters: Adapters | None = None
        if self.config.plt_num_loops > 1:
            windows = [window for layer in self.model.layers for window in layer.self_attn.windows]
            self.carry = Carry(windows, maybe_prefix(maybe_prefix(prefix, "model"), "layers"), vllm_config)

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", layer_type=None):
        return IQuestPLTCoderModel(vllm_config=vllm_config, prefix=prefix)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        """Returns `H^{R-1}` of every row, (rows, hidden_size); NaN for rows without logits (`schedule.TAIL`)."""
        embeds = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        num_loops = self.config.plt_num_loops
        together, rest = split(self.carry.layer_name if num_loops > 1 else None, len(embeds))
        segments = []
        if together is not None:
            inputs, at = [together.of(embeds)], together.of(positions)
            for loop in range(1, num_loops):
                inputs.append(self._loop_input(inputs[0], self.carry.read_before(loop - 1, at, together)))
            segments.append(Segment(together, range(num_loops), at.repeat(num_loops), torch.cat(inputs)))
        if rest is not None:
            embeds, positions = rest.of(embeds), rest.of(positions)
            segments.append(Segment(rest, range(1), positions, embeds))
        states = self._run_layers(segments)
        if rest is None:
            return states[-1]
        *done, state = states
        for loop in range(1, num_loops):
            inputs = self._loop_input(embeds, self.carry.shift(loop - 1, state, positions, rest))
            loops = range(loop, loop + 1)
            if not rest.tails:
                (state,) = self._run_layers([Segment(rest, loops, positions, inputs)])
                continue
            tail = rest.tails[loop - 1]
            (found,) = self._run_layers([Segment(tail, loops, tail.of(positions), tail.of(inputs))])
            state = torch.full_like(state, torch.nan).index_copy_(0, tail.rows, found)
        return torch.cat([*done, state])

    def _loop_input(self, embeds: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Returns `x^r_i = emb_scale · E_i + hidden_scale · H^{r-1}_{i-1}`. `before` is the shifted `H^{r-1}`."""
        emb_scale, hidden_scale = self.config.plt_emb_scale, self.config.plt_hidden_scale
        embeds = embeds if emb_scale is None else emb_scale * embeds
        return embeds + (before if hidden_scale is None else hidden_scale * before)

    def _run_layers(self, segments: list[Segment]) -> list[torch.Tensor]:
        """Returns `H^r` of each segment's last loop. Stores the states of all loops but the model's last."""
        positions = torch.cat([segment.positions for segment in segments])
        hidden_states = torch.cat([segment.inputs for segment in segments])  # a copy that the norms may overwrite
        if self.adapters is not None:
            self.adapters.prepare([(segment.part, len(segment.loops)) for segment in segments])
        get_forward_context().additional_kwargs[SEGMENTS] = segments
        blocks = self.model(None, positions, None, hidden_states)
        states = []
        sizes = [len(segment.inputs) for segment in segments]
        last_loop = self.config.plt_num_loops - 1
        for segment, *block in zip(segments, *(rows.split(sizes) for rows in blocks), strict=True):
            for loop, normed, plain in zip(
                segment.loops, *(rows.chunk(len(segment.loops)) for rows in block), strict=True
            ):
                state = normed if loop == last_loop or self.config.plt_normalize_per_loop else plain
                if loop != last_loop:
                    self.carry.write(loop, state, segment.part)
            states.append(state)
        return states

    @property
    def lora_manager(self):
        """vLLM's manager of LoRA adapters, which sets itself here after wrapping the layers."""
        return self._lora_manager

    @lora_manager.setter
    def lora_manager(self, manager) -> None:
        self._lora_manager = manager
        self.adapters = Adapters(manager, self.config.plt_num_loops)

    def load_weights(self, weights):
        """Loads only model weights. vLLM reads all safetensors files of the folder, even test values."""
        return super().load_weights(
            (name, tensor) for name, tensor in weights if name.startswith(("model.", "lm_head."))
        )
