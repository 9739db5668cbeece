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
The Parallel Loop Transformer (PLT): a Llama whose layers run R times per token, at about the price of once.

A forward pass fills a grid of (loop × time). State `H^r_i` of token i after loop r needs the loop before it *one token
earlier* (the shift, "cross-loop parallelism") and, inside attention, loop 0 up to token i:

                  i-2    i-1     i
        loop 0     ■      ■      ■        x^0_i = E_i
                     ╲      ╲
        loop 1     ■      ■      ■        x^r_i = emb_scale · E_i + hidden_scale · H^{r-1}_{i-1}
                     ╲      ╲
        loop 2     ■      ■      ■        H^r_i = norm(layers(x^r_i)),   logits_i = lm_head(H^{R-1}_i)

No state of a column needs another of the same column but for loop 0's keys and values, and those are written first in
every layer. So the whole last column is one block: at decode, all loops of a token go through each layer together and
every weight is read once. A chunk of tokens (prompt, training) goes row by row, one loop after the other. Either way
the layers see a block of rows × time, with rows = loops × batch, loops outermost.

Shapes are suffixes: B batch, R loops in the block, N = R·B rows, T tokens in the block, S keys, W keys of a window,
D hidden_size, H query heads, K key/value heads, G = H/K, C head_dim.

Sources: PLT (arXiv 2510.24824), LoopCoder-v2 (arXiv 2606.18023). Where they differ from the code that serves the
released checkpoint, that code decides: g weights the global branch, the gate reads the residual, the fed-back state is
normed.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_plt import IQuestPLTCoderAttention, IQuestPLTCoderGate
from .cache_plt import check_cache, prepare_cache
from .compat_plt import (
    CACHE_NAME,
    CACHE_NAMES,
    BothCacheNames,
    accepts_both_cache_names,
    slice_logits_to_keep,
)
from .configuration_plt import IQuestPLTCoderConfig
from .generation_plt import PLTGenerationMixin
from .inputs_plt import check_keywords
from .loops_plt import Family, share_parts
from .masks_plt import (
    check_mask,
    create_layout,
    create_tail_mask,
    has_gaps,
    is_packed,
    normalize_mask,
    packed_positions,
)


logger = logging.get_logger(__name__)


@dataclass
class PLTModelOutputWithPast(BothCacheNames, BaseModelOutputWithPast):
    """
    `last_hidden_state` (batch, time, hidden_size) is `H^{R-1}`. The rest if asked for:

    * `loop_states`: `H^0 … H^{R-1}`, R tensors (batch, time, hidden_size), as fed back (`H^{R-1}`: as given to
      `lm_head`).
    * `hidden_states`: the embeddings and the outputs of the layers, in the last loop.
    * `attentions`: the weights of the last loop's global branch, a layer (batch, heads, time, keys).
    * `window_attentions`: those of its window branch, (batch, heads, time, window + time); the newest key is the last.
      None of them for one loop.
    * `gates`: its weight on the global branch, a layer (batch, heads, time).
    """

    loop_states: tuple[torch.FloatTensor, ...] | None = None
    window_attentions: tuple[torch.FloatTensor, ...] | None = None
    gates: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class PLTCausalLMOutputWithPast(BothCacheNames, CausalLMOutputWithPast):
    """As the library's, with the further fields of [`PLTModelOutputWithPast`]."""

    loop_states: tuple[torch.FloatTensor, ...] | None = None
    window_attentions: tuple[torch.FloatTensor, ...] | None = None
    gates: tuple[torch.FloatTensor, ...] | None = None


class IQuestPLTCoderDecoderLayer(GradientCheckpointingLayer):
    """A Llama layer on a block of the grid. What differs between its calls is positional: checkpointing tracks that."""

    def __init__(self, config: IQuestPLTCoderConfig, layer_idx: int):
        super().__init__()
        self.self_attn = IQuestPLTCoderAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_NTD: torch.Tensor,
        loops: range,
        key0_BKSC: torch.Tensor | None,
        value0_BKSC: torch.Tensor | None,
        is_last_loop: bool,
        queries: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        Returns the block (N, T, D), or what becomes of its last `queries` tokens, loop 0's keys and values, and the
        block again if it is to be recorded.
        """
        residual = hidden_NTD if queries in (None, hidden_NTD.shape[1]) else hidden_NTD[:, -queries:]
        hidden_NTD, _, _, _, key0_BKSC, value0_BKSC = self.self_attn(
            self.input_layernorm(hidden_NTD),
            residual,
            loops,
            key0_BKSC,
            value0_BKSC,
            is_last_loop=is_last_loop,
            queries=queries,
            **kwargs,
        )
        hidden_NTD = residual + hidden_NTD
        hidden_NTD = hidden_NTD + self.mlp(self.post_attention_layernorm(hidden_NTD))
        return hidden_NTD, key0_BKSC, value0_BKSC, hidden_NTD if is_last_loop else None


class IQuestPLTCoderPreTrainedModel(PreTrainedModel):
    """Weight initialisation, the library's switches, and what a model of this shape costs to serve."""

    config_class = IQuestPLTCoderConfig
    config: IQuestPLTCoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["IQuestPLTCoderDecoderLayer"]
    _skip_keys_device_placement = [*CACHE_NAMES]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(IQuestPLTCoderDecoderLayer, index=3),
        "attentions": OutputRecorder(IQuestPLTCoderAttention, index=1),
        "window_attentions": OutputRecorder(IQuestPLTCoderAttention, index=2),
        "gates": OutputRecorder(IQuestPLTCoderAttention, index=3),
    }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, key_mapping: dict | None = None, **kwargs):
        """As the library's. Training exports name the gate `loop_gate_proj`: both names load."""
        key_mapping = {"self_attn.loop_gate_proj": "self_attn.plt_gate"} | (key_mapping or {})
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, key_mapping=key_mapping, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:  # a folder's name may mean another one, or none, by and by
            folder = Path(pretrained_model_name_or_path)
            model._source = folder.absolute() if folder.is_dir() else str(pretrained_model_name_or_path)
        return loaded

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs):
        """As the library's, but always with the released tensor names: Trainer reads them back as they are."""
        return super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """
        As the library's, whose card of a pushed model leaves open what is filled in here: the task, and licence and
        base model as the card has them of what the model was loaded from. From the Hub, that itself is the base.
        """
        path, source = Path(working_dir, "README.md"), getattr(self, "_source", None)
        known = {"pipeline_tag": "text-generation"}
        if source is not None:
            is_folder = isinstance(source, Path)
            try:
                card = ModelCard.load(source / "README.md" if is_folder else source, ignore_metadata_errors=True)
                names = ("license", "license_name", "license_link", "base_model")
                known |= {name: card.data.get(name) for name in names}
            except Exception as error:  # whatever is wrong with that card, this push does not depend on it
                logger.warning(f"The card of {source} cannot be read, so its licence is left open: {error}")
            if not is_folder and source != repo_id:
                known["base_model"] = source
        card = ModelCard.load(path)
        for name, value in known.items():
            if card.data.get(name) is None:
                card.data[name] = value
        card.save(path)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @classmethod
    def prepare_distribute_model(cls, distributed_config, *args, **kwargs):
        """As the library's. Raises ValueError for pipeline parallelism."""
        is_dict = isinstance(distributed_config, dict)
        pp_size = distributed_config.get("pp_size") if is_dict else getattr(distributed_config, "pp_size", None)
        if (pp_size or 1) > 1:
            raise ValueError(
                "Pipeline parallelism is not available for PLT models: it sends a token once through the devices, and "
                'the loops come round again. Use tensor parallelism (`tp_plan="auto"`) or `device_map="auto"`.'
            )
        return super().prepare_distribute_model(distributed_config, *args, **kwargs)

    @classmethod
    def maybe_distribute_model(cls, model, distributed_config, *args, **kwargs):
        """As the library's. Raises ValueError for tensor parallelism that would split a key/value head."""
        heads, processes = model.config.num_key_value_heads, getattr(distributed_config, "tp_size", None) or 1
        if heads % processes and not isinstance(distributed_config.tp_plan, dict):
            raise ValueError(
                f"Tensor parallelism gives each process whole heads, and {processes} processes cannot share "
                f'{heads} key/value heads evenly: use a number that divides {heads}, or `device_map="auto"`.'
            )
        return super().maybe_distribute_model(model, distributed_config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, IQuestPLTCoderGate):  # g = 0.5: training starts from the plain mean of the branches
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    def kv_bytes_per_token(self, num_loops: int | None = None) -> int:
        """
        Cache bytes that one more token of context costs, in the model's dtype: the same for any number of loops, unless
        each has keys of its own (`plt_loop_attention="own"`).
        """
        config = self.config
        # CODEPATH: "gated" in LoopCoder-V2 and by default.
        num_loops = config.check_num_loops(num_loops) if config.plt_loop_attention == "own" else 1
        layers = num_loops * config.num_hidden_layers
        return 2 * layers * config.num_key_value_heads * config.head_dim * self.dtype.itemsize

    def kv_bytes_per_sequence(self, length: int, num_loops: int | None = None) -> int:
        """Cache bytes of one sequence of `length` tokens: the shared part, a window and a carry per further loop."""
        further_loops = self.config.check_num_loops(num_loops) - 1
        shared = self.kv_bytes_per_token(1)
        window = shared * min(length, self.config.loop_window)
        carry = self.config.hidden_size * self.dtype.itemsize * (length > 0) * self.config.plt_cross_loop_shift
        return shared * length + further_loops * (window + carry)

    def decode_flops(self, length: int, num_loops: int | None = None) -> int:
        """
        Floating-point operations (a multiply-add is two) of one decode step that attends to `length` tokens, itself
        included: all matrix products and attention, without the element-wise rest. The head runs once.
        """
        config, num_loops = self.config, self.config.check_num_loops(num_loops)
        attention_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        weights = config.hidden_size * (2 * attention_size + 2 * kv_size + 3 * config.intermediate_size)
        gate = self.base_model.layers[0].self_attn.plt_gate.weight.numel()
        # How many loops have a branch on loop 0's keys, one on their own, and a gate.
        kind, further_loops = config.plt_loop_attention, num_loops - 1
        global_loops = {"own": 1}.get(kind, num_loops)
        local_loops, gated_loops = {"shared": 0}.get(kind, further_loops), {"gated": further_loops}.get(kind, 0)
        keys = global_loops * length + local_loops * min(length, config.loop_window + 1)
        per_layer = 2 * (num_loops * weights + gated_loops * gate) + 4 * attention_size * keys
        return config.num_hidden_layers * per_layer + 2 * config.hidden_size * config.vocab_size


class IQuestPLTCoderModel(IQuestPLTCoderPreTrainedModel):
    """The decoder without the language-model head."""

    def __init__(self, config: IQuestPLTCoderConfig):
        config.validate()  # again: `from_pretrained(..., plt_num_loops=R)` sets fields after the config was made
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [IQuestPLTCoderDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def _output_capturing_hooks_installed(self) -> bool:
        """The library's mark that the layers have their hooks. On the layers, since two models may share them."""
        return vars(self.layers).get("_output_capturing_hooks_installed", False)

    @_output_capturing_hooks_installed.setter
    def _output_capturing_hooks_installed(self, installed: bool):
        vars(self.layers)["_output_capturing_hooks_installed"] = installed

    @accepts_both_cache_names
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        num_loops: int | None = None,
        loop_schedule: str = "together",
        output_loop_states: bool = False,
        states_to_keep: int | None = None,
        **kwargs,
    ) -> PLTModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, time)`): the new tokens; or `inputs_embeds`, one of the two.
            attention_mask (`torch.Tensor` of shape `(batch, past + time)`, *optional*): 0 on padding, which may stand
                anywhere: the loops' shift and windows pass over it. Or, without a cache, of shape
                `(batch, 1, time, time)`, boolean or additive: which tokens each token's text consists of.
            position_ids (`torch.LongTensor` of shape `(batch, time)`, *optional*): counted from a row's first real
                token, as `generate()` does. Without a mask, any step other than +1 starts a new document: the loops'
                shift, both branches of attention and the window start anew there, and no cache is made.
            cache ([`~transformers.Cache`], *optional*): a [`PLTCache`] or `DynamicCache(config=config)`. The older
                name `past_key_values` works too.
            num_loops (`int`, *optional*): loops to run, any `R >= 1`; by default `config.plt_num_loops`.
            loop_schedule (`str`): `"together"` runs all loops of a single new token in one pass over the weights,
                `"sequence"` one after the other. The result is the same up to rounding. Several new tokens always go
                in sequence, and so does a pass that records `output_hidden_states` or `output_attentions`.
            output_loop_states (`bool`): whether to return `loop_states`.
            states_to_keep (`int`, *optional*): how many of the last positions the caller wants. Loops >= 1 then run
                over the end of the chunk only, and `last_hidden_state` may have as few positions.

        Raises:
            ValueError: for a cache, mask or number of loops the model cannot serve.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        check_keywords(kwargs, self.config._attn_implementation, tuple(self._can_record_outputs))
        if loop_schedule not in ("together", "sequence"):
            raise ValueError(f'`loop_schedule` must be "together" or "sequence", got {loop_schedule!r}.')
        num_loops = self.config.check_num_loops(num_loops)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        # The layers' flags: of two models that share them, `train()` and the like set the other's decoder.
        layer = self.layers[0]
        if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
            use_cache, cache = False, None  # the layers would not fill it
        if cache is not None:
            check_cache(cache, self.config, num_loops, len(inputs_embeds), attention_mask is not None)
        time = inputs_embeds.shape[1]
        past_length = cache.get_seq_length() if cache is not None else 0
        if kwargs.get("cu_seq_lens_q") is not None:
            position_ids = packed_positions(kwargs["cu_seq_lens_q"], position_ids, time)
        is_prepared = isinstance(attention_mask, dict) and "global_mask" in attention_mask
        if is_prepared and position_ids is None:
            raise ValueError("A prepared mask does not say where the tokens stand: pass `position_ids` with it.")
        if not is_prepared:
            attention_mask = normalize_mask(attention_mask, self.config._attn_implementation, inputs_embeds.dtype)
            if num_loops > 1:
                check_mask(attention_mask, past_length, time, cache is not None)
            if is_packed(position_ids, attention_mask, time, cache is not None):
                if cache is not None:
                    raise ValueError("Packed documents have no common cache: leave out `cache`.")
                use_cache = False  # with a cache the library's masks do not keep documents apart
            if num_loops > 1 and attention_mask is not None and attention_mask.ndim == 4:
                use_cache = False
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None:
            prepare_cache(cache, self.config, num_loops)
        records = self._records(kwargs)
        together = time == 1 and loop_schedule == "together" and not records
        # CODEPATH: always shifted in LoopCoder-V2 and by default.
        if together and num_loops > 1 and not self.config.plt_cross_loop_shift:
            together = False
            logger.warning_once(
                "Without the shift (`plt_cross_loop_shift=False`) a token's loops wait for each other: decoding runs "
                "them in sequence."
            )
        looped_rows = num_loops - 1 if together else 1
        layout = create_layout(
            self.config,
            inputs_embeds,
            attention_mask,
            position_ids,
            cache,
            num_loops,
            looped_rows,
            in_blocks=not records,
        )
        if position_ids is None:
            position_ids = (torch.arange(time, device=inputs_embeds.device) + past_length).unsqueeze(0)
            # Counted in tokens: the gate on the query knows absolute positions. One loop counts columns, as Llama does,
            # unless padding stands between tokens.
            is_2d = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
            if is_2d and (num_loops > 1 or has_gaps(attention_mask)):
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -time:]
        block = {
            "position_embeddings": self.rotary_emb(inputs_embeds, position_ids),
            "global_mask": layout.global_mask,
            "window_mask": layout.window_mask,
            "window_block": layout.window_block,
            "window_kernel": layout.window_kernel,
            "window_tokens": layout.window_tokens,
            "window_keep": layout.window_keep,
            "cache": cache,
            **kwargs,
        }
        if not together:
            block["position_ids"] = position_ids
        if cache is not None and layout.previous is not None:
            cache.layers[0].has_padding = True
        if together:
            loop_states = self._loops_together(inputs_embeds, layout.previous, num_loops, block)
        else:
            keeps_all = records or output_loop_states or layout.window_block is None
            if keeps_all or (cache is not None and cache.layers[0].record_past):
                states_to_keep = None
            loop_states = self._loops_in_sequence(inputs_embeds, layout.previous, num_loops, block, states_to_keep)
        return PLTModelOutputWithPast(
            last_hidden_state=loop_states[-1],
            **{CACHE_NAME: cache},
            loop_states=tuple(loop_states) if output_loop_states else None,
        )

    def _records(self, kwargs: dict) -> bool:
        """Whether layer outputs are recorded, by argument or by configuration: then they must be those of one loop."""
        names = [f"output_{name}" for name in self._can_record_outputs]
        return any(kwargs.get(name, getattr(self.config, name, False)) for name in names)

    def _loops_together(
        self, embeds_B1D: torch.Tensor, previous_BT: torch.Tensor | None, num_loops: int, block: dict
    ) -> list[torch.Tensor]:
        """One token, all loops: one block of R·B rows, each layer called once. Returns `H^r` for every loop."""
        cache, hidden_NTD = block["cache"], embeds_B1D
        if num_loops > 1:
            carries = self._carries(cache, num_loops, embeds_B1D)
            inputs = self._loop_input(embeds_B1D.repeat(num_loops - 1, 1, 1), carries.flatten(0, 1))
            hidden_NTD = torch.cat([embeds_B1D, inputs])
        cos, sin = block["position_embeddings"]
        if cos.shape[0] > 1:  # else all rows stand at the same position
            block["position_embeddings"] = cos.repeat(num_loops, 1, 1), sin.repeat(num_loops, 1, 1)
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_NTD, *_ = layer(hidden_NTD, range(num_loops), None, None, False, **block)
        loop_states = self._loop_states(hidden_NTD, range(num_loops), num_loops)
        if cache is not None and num_loops > 1:
            after = loop_states[:-1]
            if previous_BT is not None:
                after = [
                    _states_before(carry, state, previous_BT)[:, 1:]
                    for carry, state in zip(carries, after, strict=True)
                ]
            cache.layers[0].update_carries(after)
        return loop_states

    def _loops_in_sequence(
        self,
        embeds_BTD: torch.Tensor,
        previous_BT: torch.Tensor | None,
        num_loops: int,
        block: dict,
        states_to_keep: int | None = None,
    ) -> list[torch.Tensor]:
        """
        Any number of tokens, one loop after the other: R blocks of B rows. Returns `H^r` for every loop, of the tokens
        that what follows needs.
        """
        cache, time = block["cache"], embeds_BTD.shape[1]
        carries = self._carries(cache, num_loops, embeds_BTD[:, :1])
        lengths = self._needed_lengths(time, num_loops, states_to_keep or time)
        fewer = [length for per_layer in lengths for length in per_layer[1:] if length < time]
        tail_mask = (
            create_tail_mask(self.config, embeds_BTD, block["global_mask"], cache, max(fewer)) if fewer else None
        )
        shared = [(None, None)] * len(self.layers)
        loop_states, handed_on = [], []
        for loop, (taken, *answered) in enumerate(lengths):
            loops = range(loop, loop + 1)
            hidden_BTD = embeds_BTD
            if loop > 0:
                fed_back = loop_states[-1].to(embeds_BTD.device)
                # CODEPATH: always True in LoopCoder-V2 and by default.
                if self.config.plt_cross_loop_shift:
                    before = _states_before(carries[loop - 1], fed_back, previous_BT)
                    fed_back = before[:, :-1]
                    if cache is not None:
                        handed_on.append(before[:, 1:])
                hidden_BTD = self._loop_input(embeds_BTD[:, -taken:], fed_back[:, -taken:])
            for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
                queries = answered[index]
                masks = {"global_mask": tail_mask} if queries < time else {}
                is_last = loop == num_loops - 1
                hidden_BTD, *key_value, _ = layer(
                    hidden_BTD, loops, *shared[index], is_last, queries, **{**block, **masks}
                )
                shared[index] = None if is_last else key_value
            loop_states += self._loop_states(hidden_BTD, loops, num_loops)
        if handed_on:
            cache.layers[0].update_carries(handed_on)
        return loop_states

    def _needed_lengths(self, time: int, num_loops: int, states_to_keep: int) -> list[list[int]]:
        """
        How many of the last tokens each layer of each loop takes, and at last gives: (R, L + 1).

        A token's state in a layer of loop r >= 1 rests on loop 0, whose keys are all there, on the window of the w
        tokens before it in the layer below, and, at the bottom, on one token before it in the loop before. So the ends
        of the loops are all that the end of the last one rests on. What the cache keeps lies within.
        """
        window, layers = self.config.loop_window, self.config.num_hidden_layers
        lengths, needed = [], states_to_keep
        for _ in range(num_loops - 1):
            lengths.append([min(time, needed + window * (layers - layer)) for layer in range(layers + 1)])
            needed = min(time, lengths[-1][0] + self.config.plt_cross_loop_shift)
        return [[time] * (layers + 1), *reversed(lengths)]

    def _loop_states(self, hidden_NTD: torch.Tensor, loops: range, num_loops: int) -> list[torch.Tensor]:
        """`H^r` (B, T, D) of each loop in the block: normed if it is fed back so, and always after the last loop."""
        # CODEPATH: True in LoopCoder-V2 and by default.
        if self.config.plt_normalize_per_loop:
            return list(self.norm(hidden_NTD).chunk(len(loops)))
        states = list(hidden_NTD.chunk(len(loops)))
        if loops.stop == num_loops:
            states[-1] = self.norm(states[-1])
        return states

    def _loop_input(self, embeds_NTD: torch.Tensor, before_NTD: torch.Tensor) -> torch.Tensor:
        """`x^r_i = emb_scale · E_i + hidden_scale · H^{r-1}_{i-1}`; `before_NTD` is `H^{r-1}`, already shifted."""
        emb_scale, hidden_scale = self.config.plt_emb_scale, self.config.plt_hidden_scale
        embeds_NTD = embeds_NTD if emb_scale is None else emb_scale * embeds_NTD
        return embeds_NTD + (before_NTD if hidden_scale is None else hidden_scale * before_NTD)

    @staticmethod
    def _carries(cache: Cache | None, num_loops: int, embeds_B1D: torch.Tensor) -> torch.Tensor:
        """`H^r` of the last token in the cache, (R - 1, B, 1, D); zero at the start of a sequence."""
        carries = cache.layers[0].get_carries() if cache is not None else None
        if carries is None:
            return embeds_B1D.new_zeros((num_loops - 1, *embeds_B1D.shape))
        return carries.to(embeds_B1D.device)


def _states_before(carry_B1D: torch.Tensor, states_BTD: torch.Tensor, previous_BT: torch.Tensor | None) -> torch.Tensor:
    """
    The shift: for each token of a chunk, and for the next one, the state of the token before it, (B, T + 1, D). If the
    states are those of the chunk's end, the first of them has none before it that is known, and counts as padding.
    """
    states_BTD = torch.cat([carry_B1D, states_BTD], dim=1)
    if previous_BT is None:
        return states_BTD
    missing = previous_BT.shape[1] - states_BTD.shape[1]
    index = (previous_BT[:, missing:] - missing).clamp(min=0)
    index = index[..., None].expand(len(states_BTD), -1, states_BTD.shape[-1])
    return states_BTD.gather(1, index)


class IQuestPLTCoderForCausalLM(PLTGenerationMixin, IQuestPLTCoderPreTrainedModel):
    """The Parallel Loop Transformer with its language-model head: what `AutoModelForCausalLM` loads."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: IQuestPLTCoderConfig):
        super().__init__(config)
        self.model = IQuestPLTCoderModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._family = Family()  # see `with_num_loops`
        self.add_model_tags(["plt", "looped-transformer"])  # for the card of a model that is pushed to the Hub
        self.post_init()

    @accepts_both_cache_names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_loops: int | None = None,
        loop_schedule: str = "together",
        output_loop_states: bool = False,
        **kwargs,
    ) -> PLTCausalLMOutputWithPast:
        """
        Logits of the last loop, (batch, time, vocab_size), and the loss if `labels` (batch, time) are given; -100 is
        ignored, the shift by one token is done here. `logits_to_keep` is the library's. `num_loops`, `loop_schedule`,
        `output_loop_states` and the rest: see [`IQuestPLTCoderModel.forward`]. `generate()` passes them on:

        ```python
        >>> model.generate(**inputs, num_loops=3)
        >>> model.generate(**inputs, loop_schedule="sequence")
        ```
        """
        if isinstance(logits_to_keep, int) and logits_to_keep < 0:
            raise ValueError(f"`logits_to_keep` must be 0 (all) or the number of last positions, got {logits_to_keep}.")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            num_loops=self.config.check_num_loops(num_loops),  # not the decoder's: see `with_num_loops`
            loop_schedule=loop_schedule,
            output_loop_states=output_loop_states,
            states_to_keep=logits_to_keep if isinstance(logits_to_keep, int) and labels is None else None,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return PLTCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.cache},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loop_states=outputs.loop_states,
            window_attentions=outputs.window_attentions,
            gates=outputs.gates,
        )

    def with_num_loops(self, num_loops: int) -> "IQuestPLTCoderForCausalLM":
        """
        The same model with another number of loops by default, also where its decoder is called past the head, as
        trainers do. All else is shared: weights, attention kernel, adapters, `train()`, resizing. One loop drafts for
        several:

        ```python
        >>> model.generate(**inputs, assistant_model=model.with_num_loops(1))
        ```
        """
        config = self.config.copy_with_num_loops(num_loops)
        twin = share_parts(self, config)
        # An attribute is found before the submodule of that name, which is the original's decoder.
        vars(twin)["model"] = share_parts(self.model, config)
        twin.generation_config = copy.deepcopy(self.generation_config)
        vars(twin.generation_config).pop("num_loops", None)  # stored for the model, and would come before the twin's
        twin._family = self._family
        self._family.update((self, twin))
        return twin

    def resize_token_embeddings(self, *args, **kwargs):
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        for model in self._family:
            model.config.vocab_size = model.vocab_size = self.config.vocab_size
        return embeddings

    def _replicate_for_data_parallel(self):
        if "model" in vars(self):
            raise ValueError(
                "One process with several devices cannot copy a model made by `with_num_loops`: start one process for "
                "each device, with `accelerate launch`, or load the model with `plt_num_loops`."
            )
        return super()._replicate_for_data_parallel()


# By this list of class names Trainer tells whether the labels that it smooths still are to be shifted, and pipelines
# whether a model can write text. The library's own lists of classes leave out names whose configuration they lack.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(IQuestPLTCoderConfig.model_type, IQuestPLTCoderForCausalLM.__name__)


__all__ = ["IQuestPLTCoderForCausalLM", "IQuestPLTCoderModel", "IQuestPLTCoderPreTrainedModel"]
