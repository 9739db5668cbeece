# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`generate()` for PLT models. It differs from the library's in the number of loops and the cache."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig, PreTrainedConfig
from transformers.generation import AssistedCandidateGenerator, GenerationMixin

from .cache_plt import PLTCache
from .compat_plt import CACHE_NAME, CACHE_NAMES, take_cache
from .drafting_plt import Text, can_climb, decode_with_drafts
from .masks_plt import prepare_mask


# The model whose `generate()` is running, and the requested number of loops. A context variable keeps threads that
# share a model apart.
_running: ContextVar[tuple[object, int] | None] = ContextVar("running", default=None)


class PLTGenerationMixin(GenerationMixin):
    """
    The library's `generate()` with two more arguments for every forward pass: `num_loops` and `loop_schedule`. A
    generation config may also set `num_loops`. The cache may be passed as `cache` or `past_key_values`.
    """

    @functools.wraps(GenerationMixin.generate)
    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, *args, **kwargs
    ) -> Any:
        inputs, kwargs = _unpack_tokenizer_output(inputs, kwargs)
        _check_prompt(inputs, kwargs)
        if any(name in kwargs for name in CACHE_NAMES):
            kwargs[CACHE_NAME] = take_cache(kwargs)
        num_loops = kwargs.pop("num_loops", None)
        if num_loops is None:
            num_loops = getattr(generation_config or self.generation_config, "num_loops", None)
        kwargs |= _schedule_for_adapters(self, self.config.check_num_loops(num_loops), kwargs.get("loop_schedule"))
        with self._running_loops(num_loops):
            return super().generate(inputs, generation_config, *args, **kwargs)

    @contextlib.contextmanager
    def _running_loops(self, num_loops: int | None) -> Iterator[None]:
        token = _running.set(None if num_loops is None else (self, self.config.check_num_loops(num_loops)))
        try:
            yield
        finally:
            _running.reset(token)

    def __call__(self, *args, **kwargs):
        """Adds the `num_loops` of the running `generate()` to calls without it, as from guidance."""
        if not torch.compiler.is_compiling() and kwargs.get("num_loops") is None:
            running = _running.get()
            if running is not None and running[0] is self:
                kwargs["num_loops"] = running[1]
        return super().__call__(*args, **kwargs)

    def create_masks_for_generate(
        self,
        config: PreTrainedConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: PLTCache | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: PLTCache | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        """
        Prepares the masks of a compiled step, see `prepare_mask`. `forward` accepts the result as its mask.
        """
        cache = take_cache({"cache": cache, "past_key_values": past_key_values})
        # Uses the decoder's configuration because its attention kernel is the one that runs, see `with_num_loops`.
        return prepare_mask(self.model.config, inputs_embeds, attention_mask, position_ids, cache)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """Like the library's, but makes a PLT cache for `cache_implementation="quantized"`."""
        running = _running.get()
        if running is not None:
            model_kwargs["num_loops"] = running[1]
        if "offloaded" in (generation_config.cache_implementation or "") and self.device.type == "cpu":
            raise ValueError(
                "An offloaded cache moves keys and values between an accelerator and the CPU, but this model is on the "
                "CPU. Leave out `cache_implementation`."
            )
        is_quantized = generation_config.cache_implementation == "quantized" and generation_config.use_cache
        if not is_quantized or model_kwargs.get(CACHE_NAME) is not None:
            return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        options = {**(generation_config.cache_config or {})}
        options.pop("config", None)
        model_kwargs[CACHE_NAME] = PLTCache(self.config, model_kwargs.get("num_loops"), quantization=options)

    def _assisted_decoding(
        self,
        input_ids: torch.Tensor,
        logits_processor,
        stopping_criteria,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer=None,
        inputs_tensor: torch.Tensor | None = None,
        assistant_model=None,
        assistant_tokenizer=None,
        tokenizer=None,
        **model_kwargs,
    ):
        """Decodes with drafts on a staircase, see `drafting_plt.py`, or as the library does if that is not possible."""
        cache = model_kwargs.get(CACHE_NAME)
        if cache is not None and cache.get_seq_length() > 0:  # the library would feed the cached tokens again
            raise ValueError(
                "Assisted generation must start from an empty cache. Leave out `cache`, or `assistant_model` and "
                "`prompt_lookup_num_tokens` (pass None if the generation config sets it)."
            )
        _check_adapters(self)
        is_simple = cache is not None and assistant_tokenizer is None and not synced_gpus
        if is_simple and can_climb(self, input_ids, generation_config, model_kwargs):
            text = Text(input_ids, logits_processor, stopping_criteria, generation_config, streamer)
            return decode_with_drafts(self, text, model_kwargs, inputs_tensor, assistant_model)
        return super()._assisted_decoding(
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus=synced_gpus,
            streamer=streamer,
            inputs_tensor=inputs_tensor,
            assistant_model=assistant_model,
            assistant_tokenizer=assistant_tokenizer,
            tokenizer=tokenizer,
            **model_kwargs,
        )

    def _get_candidate_generator(self, *, model_kwargs, **kwargs):
        """Like the library's, but an assistant model does not inherit the requested number of loops."""
        assistant = kwargs.get("assistant_model")
        is_other = assistant is not None and assistant is not self
        if is_other:
            model_kwargs = {k: v for k, v in model_kwargs.items() if k not in ("num_loops", "loop_schedule")}
        is_early_exit = getattr(kwargs.get("generation_config"), "assistant_early_exit", None) is not None
        generator = super()._get_candidate_generator(model_kwargs=model_kwargs, **kwargs)
        if is_other and isinstance(generator, AssistedCandidateGenerator):  # it has a copy of this model's config
            generator.generation_config.num_loops = getattr(assistant.generation_config, "num_loops", None)
        if is_early_exit:
            generator.get_candidates = _restoring_layers(generator.get_candidates, self.model.config)
        return generator

    def init_continuous_batching(self, *args, **kwargs) -> NoReturn:
        """Raises ValueError: PLT models do not support continuous batching."""
        raise ValueError(
            "PLT models do not support continuous batching: its paged cache has no room for the loops' windows and "
            "carries. Use `generate()` with a left-padded batch."
        )


def _unpack_tokenizer_output(inputs, kwargs: dict) -> tuple:
    """
    Lets `generate()` take a tokenizer's whole output as its input. `apply_chat_template` returns one, but returned only
    `input_ids` in Transformers 4.
    """
    if inputs is None and isinstance(kwargs.get("input_ids"), Mapping):
        inputs = kwargs.pop("input_ids")
    if not isinstance(inputs, Mapping):
        return inputs, kwargs
    fields = dict(inputs)
    inputs = fields.pop("input_ids", None)
    if isinstance(inputs, list):
        raise ValueError('`generate()` needs tensors. Call the tokenizer with `return_tensors="pt"`.')
    return inputs, {**fields, **kwargs}


def _check_prompt(inputs: torch.Tensor | None, kwargs: dict) -> None:
    """Raises ValueError for a prompt without tokens, such as a tokenizer makes of an empty text."""
    prompt = kwargs.get("inputs_embeds")
    if prompt is None:
        prompt = kwargs.get("input_ids") if inputs is None else inputs
    if isinstance(prompt, torch.Tensor) and prompt.ndim > 1 and prompt.shape[1] == 0:
        raise ValueError(
            "The prompt has no tokens. Pass at least one. To generate from nothing, pass a start token such as "
            "`config.bos_token_id`."
        )


def _invocation_lengths(model) -> list[int]:
    """
    Returns the numbers of invocation tokens of PEFT's activated adapters (aLoRA). In every pass, PEFT applies such an
    adapter to as many last cells as there were tokens from its invocation to the end of the prompt.
    """
    configs = getattr(model, "peft_config", {}).values()
    return [len(tokens) for config in configs if (tokens := getattr(config, "alora_invocation_tokens", None))]


def _schedule_for_adapters(model, num_loops: int, schedule: str | None) -> dict[str, str]:
    """
    Returns a `loop_schedule` argument if the model needs one: for an activated adapter whose invocation has fewer
    tokens than there are loops. PEFT would not apply it to all loops of a token if they ran together.

    Raises:
        ValueError: if the caller's `schedule` is "together" and the model needs the other one.
    """
    shortest = min(_invocation_lengths(model), default=num_loops)
    if shortest >= num_loops:
        return {}
    if schedule == "together":
        raise ValueError(
            f'With `loop_schedule="together"` and {num_loops} loops, an activated adapter (aLoRA) needs at least '
            f"{num_loops} invocation tokens, but one has {shortest}: PEFT would leave it out of some loops. Leave out "
            "`loop_schedule`, and the loops run in sequence."
        )
    return {"loop_schedule": schedule or "sequence"}


def _check_adapters(model) -> None:
    """Raises ValueError for PEFT's adapters that support only one new token per pass."""
    wrapper = getattr(model.prepare_inputs_for_generation, "__self__", None)  # with a learned prompt, PEFT's model
    has_prompt = getattr(getattr(wrapper, "active_peft_config", None), "is_prompt_learning", False)
    if has_prompt or _invocation_lengths(model):
        raise ValueError(
            "PEFT's learned prompts and activated adapters (aLoRA) support only one new token per pass, so they cannot "
            "decode with drafts. Leave out `assistant_model` and `prompt_lookup_num_tokens`."
        )


def _restoring_layers(get_candidates, config):
    """Restores the number of layers after early-exit drafting. The library leaves it reduced if drafting fails."""

    @functools.wraps(get_candidates)
    def restoring(*args, **kwargs):
        num_hidden_layers = config.num_hidden_layers
        try:
            return get_candidates(*args, **kwargs)
        finally:
            config.num_hidden_layers = num_hidden_layers

    return restoring


__all__ = ["PLTGenerationMixin"]
