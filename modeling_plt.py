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
The Parallel Loop Transformer (PLT): a Llama whose layers run R times per token, at about the cost of running once.

Loop r of a token reads the state that loop r - 1 computed for the token *before* it (the shift, "cross-loop
parallelism"). So the inputs of all loops of a new token are known, and decoding runs them together in one pass over the
weights. All loops share loop 0's keys and values, and loops >= 1 add a window of their own (`attention_plt.py`).
`grid_plt.py` draws the grid of loops and tokens, and plans how a pass fills it. `forward` below follows that plan.

Shapes are suffixes: B batch, T new tokens, N cells of a block, S keys, D hidden_size, K key/value heads, C head_dim.

Sources: PLT (arXiv 2510.24824), LoopCoder-v2 (arXiv 2606.18023). Where the papers differ from the released checkpoint's
serving code, this code follows the latter: g weights the global branch, the gate reads the residual, and the fed-back
state is normed.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_plt import AttentionTap, GateTap, IQuestPLTCoderGate, WindowTap
from .cache_staircase_plt import Staircase
from .compat_plt import CACHE_NAME, CACHE_NAMES, BothCacheNames, accepts_both_cache_names, slice_logits_to_keep
from .configuration_plt import IQuestPLTCoderConfig
from .controls_plt import ATTENTIONS, StateMix, create_mix, grid_class, layout_function
from .costs_plt import PLTCosts
from .generation_plt import PLTGenerationMixin
from .grid_plt import Block, GridShape, LoopGrid, plan
from .hub_plt import PLTHubModel
from .inputs_plt import Inputs, read_inputs
from .loops_plt import Family, share_parts
from .masks_plt import Cells, Layout


@dataclass
class PLTModelOutputWithPast(BothCacheNames, BaseModelOutputWithPast):
    """
    `last_hidden_state` (batch, time, hidden_size) is `H^{R-1}`. The other fields are filled on request:

    * `loop_states`: `H^0 … H^{R-1}`, R tensors (batch, time, hidden_size), as fed back (`H^{R-1}`: as passed to
      `lm_head`).
    * `hidden_states`: the embeddings and the layer outputs in the last loop.
    * `attentions`: the weights of the last loop's global branch, per layer (batch, heads, time, keys).
    * `window_attentions`: the weights of its window branch, per layer (batch, heads, time, window + time). The newest
      key is the last one. One loop has none.
    * `gates`: the weight of its global branch, per layer (batch, heads, time).
    """

    loop_states: tuple[torch.FloatTensor, ...] | None = None
    window_attentions: tuple[torch.FloatTensor, ...] | None = None
    gates: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class PLTCausalLMOutputWithPast(BothCacheNames, CausalLMOutputWithPast):
    """The library's output with the additional fields of [`PLTModelOutputWithPast`]."""

    loop_states: tuple[torch.FloatTensor, ...] | None = None
    window_attentions: tuple[torch.FloatTensor, ...] | None = None
    gates: tuple[torch.FloatTensor, ...] | None = None


class StateTap(nn.Identity):
    """Records the embeddings and the layer outputs of the last loop."""


class IQuestPLTCoderDecoderLayer(GradientCheckpointingLayer):
    """A Llama layer on the cells of a block. Loop 0's keys and values are positional, as checkpointing requires."""

    def __init__(self, config: IQuestPLTCoderConfig, layer_idx: int):
        super().__init__()
        # CODEPATH: "gated" in LoopCoder-V2 and by default.
        self.self_attn = ATTENTIONS[config.plt_loop_attention](config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_BND: torch.Tensor,
        key0_BKSC: torch.Tensor | None,
        value0_BKSC: torch.Tensor | None,
        cells: Cells,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the cells that leave the layer (B, N, D), and loop 0's keys and values."""
        is_cut = cells.num_outputs < cells.num_inputs  # at the end of a prompt, each layer has fewer cells
        residual_BND = hidden_BND[:, -cells.num_outputs :] if is_cut else hidden_BND
        hidden_BND, key0_BKSC, value0_BKSC = self.self_attn(
            self.input_layernorm(hidden_BND), residual_BND, key0_BKSC, value0_BKSC, cells, cache=cache, **kwargs
        )
        hidden_BND = residual_BND + hidden_BND
        hidden_BND = hidden_BND + self.mlp(self.post_attention_layernorm(hidden_BND))
        return hidden_BND, key0_BKSC, value0_BKSC


class IQuestPLTCoderPreTrainedModel(PLTCosts, PLTHubModel):
    """The base class, with weight initialisation and the library's feature flags."""

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
        "hidden_states": OutputRecorder(StateTap, capture_initial_hidden_state=False),
        "attentions": OutputRecorder(AttentionTap),
        "window_attentions": OutputRecorder(WindowTap),
        "gates": OutputRecorder(GateTap),
    }

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (IQuestPLTCoderGate, StateMix)):  # g = 0.5: the mean of both branches. A mix: the shift
            for parameter in module.parameters(recurse=False):
                init.zeros_(parameter)


class IQuestPLTCoderModel(IQuestPLTCoderPreTrainedModel):
    """The decoder without the language-model head."""

    def __init__(self, config: IQuestPLTCoderConfig):
        config.validate()  # again, since `from_pretrained(..., plt_num_loops=R)` sets fields after creating the config
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.shift_mix = create_mix(config)  # CODEPATH: None in LoopCoder-V2 and by default
        self.layers = nn.ModuleList(
            [IQuestPLTCoderDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.state_tap = StateTap()
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def _output_capturing_hooks_installed(self) -> bool:
        """The library's flag that the layers have hooks. Stored on the layers, since two models may share them."""
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
        staircase: Staircase | None = None,
        **kwargs,
    ) -> PLTModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, time)`): the new tokens. Pass either these or
                `inputs_embeds`.
            attention_mask (`torch.Tensor` of shape `(batch, past + time)`, *optional*): 0 on padding, which may be
                anywhere: the loops' shift and windows skip it. Without a cache, the mask may also have shape
                `(batch, 1, time, time)`, boolean or additive: it then marks the tokens of each token's text.
            position_ids (`torch.LongTensor` of shape `(batch, time)`, *optional*): counted from a row's first real
                token, as in `generate()`. Without a mask, any step other than +1 starts a new document: the shift and
                both attention branches restart there, and no cache is created.
            cache ([`~transformers.Cache`], *optional*): a [`PLTCache`] or `DynamicCache(config=config)`. The older
                name `past_key_values` works too.
            num_loops (`int`, *optional*): loops to run, any `R >= 1`; by default `config.plt_num_loops`.
            loop_schedule (`str`): `"together"` runs all loops of a single new token in one pass over the weights,
                `"sequence"` runs them one by one. The results are equal up to rounding. Several new tokens always run
                in sequence, as do passes that record `output_hidden_states` or `output_attentions`.
            output_loop_states (`bool`): whether to return `loop_states`.
            states_to_keep (`int`, *optional*): the number of last positions that the caller wants. Loops >= 1 may then
                run over only the end of the chunk, and `last_hidden_state` may have only that many positions.
            staircase ([`Staircase`], *optional*): `generate()` passes it to decode with drafts. The new tokens are then
                the last known token and the drafts after it, and `last_hidden_state` has the tokens that the last loop
                has reached. Needs `cache` and `position_ids`.

        Raises:
            ValueError: for an unsupported cache, mask or number of loops.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if self._is_checkpointing():
            use_cache, cache = False, None  # the library withholds the cache from checkpointed layers
        records = self._records(kwargs)
        keep = None if records or output_loop_states else states_to_keep or None  # 0 means all
        given = Inputs(inputs_embeds, attention_mask, position_ids, cache, num_loops, records, kwargs, keep=keep)  # type: ignore[arg-type]
        given.staircase = staircase
        inputs = read_inputs(self.config, given, use_cache, loop_schedule, tuple(self._can_record_outputs))
        loop_states = self._run(inputs, layout_function(self.config)(self.config, inputs))
        return PLTModelOutputWithPast(
            last_hidden_state=loop_states[-1],
            **{CACHE_NAME: inputs.cache},
            loop_states=tuple(loop_states) if output_loop_states else None,  # type: ignore[arg-type]
        )

    def _run(self, inputs: Inputs, layout: Layout) -> list[torch.Tensor]:
        """Fills the grid and returns `H^r` (B, ≤ T, D) of every loop."""
        config, cache = self.config, inputs.cache
        positions = inputs.positions()
        layout.position_embeddings = self.rotary_emb(inputs.embeds, positions)
        # Flash attention finds packed documents by their positions, which is pointless for a single token.
        keywords = inputs.keywords if inputs.together else {**inputs.keywords, "position_ids": positions}
        memory = inputs.staircase or (cache.layers[0] if cache is not None else None)
        carries = memory.get_carries() if memory is not None else None
        grid = grid_class(config)(config, inputs.num_loops, inputs.embeds, layout.previous, carries, self.shift_mix)
        layers = self.layers[: config.num_hidden_layers]
        shared = [(None, None)] * len(layers)  # loop 0's keys and values
        self.state_tap(inputs.embeds)
        blocks = self._plan(inputs, inputs.keep if layout.allows_tails(cache) else None)
        for block, cells in zip(blocks, layout.cells(config, inputs, blocks), strict=True):
            hidden_BND = grid.inputs(block)
            for index, layer in enumerate(layers):
                hidden_BND, *shared[index] = layer(hidden_BND, *shared[index], cells.at(index), cache=cache, **keywords)
                if cells.is_recorded:
                    self.state_tap(hidden_BND)
            grid.put(block, hidden_BND, self.norm)
        if memory is not None:
            _end_pass(memory, grid, layout)
        return grid.states

    def _plan(self, inputs: Inputs, keep: int | None) -> list[Block]:
        if inputs.staircase is not None:
            return [inputs.staircase.block]
        config = self.config
        shape = GridShape(config.num_hidden_layers, inputs.num_loops, config.loop_window, config.loop_reach)
        return plan(shape, inputs.embeds.shape[1], inputs.together, keep)

    def _records(self, kwargs: dict) -> bool:
        """Returns whether layer outputs are recorded, by argument or configuration. A block must then be one loop."""
        names = [f"output_{name}" for name in self._can_record_outputs]
        return any(kwargs.get(name, getattr(self.config, name, False)) for name in names)

    def _is_checkpointing(self) -> bool:
        # Reads the flags of the layers, because two models may share them: `train()` sets only one model's own flags.
        layer = self.layers[0]
        return layer.gradient_checkpointing and layer.training and torch.is_grad_enabled()  # type: ignore[return-value]


def _end_pass(layer, grid: LoopGrid, layout: Layout) -> None:
    """Stores the carries in the cache's first layer or the staircase, and what the next pass's masks depend on."""
    if layout.previous is not None:  # with a cache, this means padding
        layer.has_padding = True
    if (window := layout.window) is not None and window.order is not None:
        layer.update_tokens(window.is_token, window.keep, window.order)
    if carries := grid.next_carries():
        layer.update_carries(carries)


class IQuestPLTCoderForCausalLM(PLTGenerationMixin, IQuestPLTCoderPreTrainedModel):
    """The Parallel Loop Transformer with its language-model head. `AutoModelForCausalLM` loads this class."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: IQuestPLTCoderConfig):
        super().__init__(config)
        self.model = IQuestPLTCoderModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._family = Family()  # see `with_num_loops`
        self.add_model_tags(["plt", "looped-transformer"])  # for the model card on the Hub
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
        Returns the logits of the last loop, (batch, time, vocab_size), and the loss if `labels` (batch, time) are
        given. Labels of -100 are ignored. Labels are shifted by one token here. `logits_to_keep` is the library's. For
        the other arguments see [`IQuestPLTCoderModel.forward`]. `generate()` accepts them too:

        ```python
        >>> model.generate(**inputs, num_loops=3)
        >>> model.generate(**inputs, loop_schedule="sequence")
        ```
        """
        if isinstance(logits_to_keep, int) and logits_to_keep < 0:
            raise ValueError(f"`logits_to_keep` must be >= 0 (0 keeps all positions), got {logits_to_keep}.")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            num_loops=self.config.check_num_loops(num_loops),  # may differ from the decoder's, see `with_num_loops`
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
        Returns the same model with another default number of loops, which also applies when its decoder is called
        directly, as trainers do. Everything else is shared: weights, attention kernel, adapters, `train()`, resizing.
        """
        config = self.config.copy_with_num_loops(num_loops)
        twin = share_parts(self, config)
        # This attribute takes precedence over the submodule of the same name, which is the original's decoder.
        vars(twin)["model"] = share_parts(self.model, config)
        twin.generation_config = copy.deepcopy(self.generation_config)
        vars(twin.generation_config).pop("num_loops", None)  # the original's number, which would override the twin's
        twin._family = self._family
        self._family.update((self, twin))
        return twin

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        for model in self._family:
            model.config.vocab_size = model.vocab_size = self.config.vocab_size
        return embeddings

    def _replicate_for_data_parallel(self):
        if "model" in vars(self):
            raise ValueError(
                "Data parallelism in a single process cannot copy a model made by `with_num_loops`. Start one process "
                "per device with `accelerate launch`, or load the model with `plt_num_loops`."
            )
        return super()._replicate_for_data_parallel()


# Trainer uses this list of class names to decide whether smoothed labels need a shift, and pipelines use it to decide
# whether a model can generate text. The library's Auto classes skip names without a built-in configuration.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(IQuestPLTCoderConfig.model_type, IQuestPLTCoderForCausalLM.__name__)


__all__ = ["IQuestPLTCoderForCausalLM", "IQuestPLTCoderModel", "IQuestPLTCoderPreTrainedModel"]
