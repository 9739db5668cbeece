# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What `generate()` of a PLT model does differently from the library's: the number of loops, and the cache."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig, PreTrainedConfig
from transformers.generation import GenerationMixin

from .cache_plt import PLTCache
from .compat_plt import CACHE_NAME, CACHE_NAMES, take_cache
from .masks_plt import prepare_mask


# The model whose `generate()` runs, and the number of loops asked for. A context variable, so that threads that share a
# model do not see each other's.
_running: ContextVar[tuple[object, int] | None] = ContextVar("running", default=None)


class PLTGenerationMixin(GenerationMixin):
    """
    The library's `generate()` with two more arguments, which go to every forward pass: `num_loops`, also as a field of
    a generation config, and `loop_schedule`. The cache may be passed as `cache` or `past_key_values`.
    """

    @functools.wraps(GenerationMixin.generate)
    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, *args, **kwargs
    ) -> Any:
        inputs, kwargs = _unpack_tokenizer_output(inputs, kwargs)
        if any(name in kwargs for name in CACHE_NAMES):
            kwargs[CACHE_NAME] = take_cache(kwargs)
        num_loops = kwargs.pop("num_loops", None)
        if num_loops is None:
            num_loops = getattr(generation_config or self.generation_config, "num_loops", None)
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
        """Guidance and logits processors call the model without `num_loops`: they get the count `generate()` runs."""
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
        What `generate()` prepares ahead of a compiled step, see `prepare_mask`; `forward` takes it in place of a mask.
        """
        cache = take_cache({"cache": cache, "past_key_values": past_key_values})
        # The decoder's attention kernel counts: see `with_num_loops`.
        return prepare_mask(self.model.config, inputs_embeds, attention_mask, position_ids, cache)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """As the library's, which for `cache_implementation="quantized"` knows plain attention layers only."""
        running = _running.get()
        if running is not None:
            model_kwargs["num_loops"] = running[1]
        if "offloaded" in (generation_config.cache_implementation or "") and self.device.type == "cpu":
            raise ValueError(
                "An offloaded cache moves keys and values between an accelerator and the CPU, and this model is on the "
                "CPU: leave out `cache_implementation`."
            )
        is_quantized = generation_config.cache_implementation == "quantized" and generation_config.use_cache
        if not is_quantized or model_kwargs.get(CACHE_NAME) is not None:
            return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        options = {**(generation_config.cache_config or {})}
        options.pop("config", None)
        model_kwargs[CACHE_NAME] = PLTCache(self.config, model_kwargs.get("num_loops"), quantization=options)

    def _get_candidate_generator(self, *, model_kwargs, **kwargs):
        """As the library's, but a drafter does not inherit the loops asked for here: it has its own, or none."""
        cache = model_kwargs.get(CACHE_NAME)
        if cache is not None and cache.get_seq_length() > 0:  # the library would feed the cached tokens once more
            raise ValueError("Assisted generation must start from an empty cache: leave out `cache`, or the drafter.")
        assistant = kwargs.get("assistant_model")
        if assistant is not None and assistant is not self:
            model_kwargs = {k: v for k, v in model_kwargs.items() if k not in ("num_loops", "loop_schedule")}
        is_early_exit = getattr(kwargs.get("generation_config"), "assistant_early_exit", None) is not None
        generator = super()._get_candidate_generator(model_kwargs=model_kwargs, **kwargs)
        if is_early_exit:
            generator.get_candidates = _restoring_layers(generator.get_candidates, self.model.config)
        return generator

    def init_continuous_batching(self, *args, **kwargs) -> NoReturn:
        """Not available: raises ValueError."""
        raise ValueError(
            "Continuous batching is not available for PLT models: its paged cache has no room for the loops' windows "
            "and carries. Use `generate()` with a left-padded batch."
        )


def _unpack_tokenizer_output(inputs, kwargs: dict) -> tuple:
    """What a tokenizer returned may also come whole: in Transformers 4, `apply_chat_template` returned `input_ids`."""
    if inputs is None and isinstance(kwargs.get("input_ids"), Mapping):
        inputs = kwargs.pop("input_ids")
    if not isinstance(inputs, Mapping):
        return inputs, kwargs
    fields = dict(inputs)
    inputs = fields.pop("input_ids", None)
    if isinstance(inputs, list):
        raise ValueError('`generate()` takes tensors: ask the tokenizer for them with `return_tensors="pt"`.')
    return inputs, {**fields, **kwargs}


def _restoring_layers(get_candidates, config):
    """Early exit shortens the model while it drafts; the library leaves it short if drafting fails."""

    @functools.wraps(get_candidates)
    def restoring(*args, **kwargs):
        num_hidden_layers = config.num_hidden_layers
        try:
            return get_candidates(*args, **kwargs)
        finally:
            config.num_hidden_layers = num_hidden_layers

    return restoring


__all__ = ["PLTGenerationMixin"]
