# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Rejects what the plugin cannot compute correctly, and what has not been tested."""

from vllm.config import VllmConfig

from .schedule import TAIL, tail_lengths


def check(vllm_config: VllmConfig) -> None:
    """Raises ValueError for an unsupported model or option. The message suggests an alternative."""
    config, cache = vllm_config.model_config.hf_config, vllm_config.cache_config
    parallel, speculative = vllm_config.parallel_config, vllm_config.speculative_config
    config.validate()  # again, since `--hf-overrides` sets fields after creating the configuration

    if config.plt_num_loops > 1:
        if not config.plt_cross_loop_shift:
            raise ValueError(
                "vLLM cannot serve a PLT without the shift (`plt_cross_loop_shift=False`). Use Transformers."
            )
        if config.plt_loop_attention != "gated":
            raise ValueError(
                f"vLLM cannot serve a PLT with `plt_loop_attention={config.plt_loop_attention!r}`, only the released "
                'kind ("gated"). Use Transformers.'
            )
        if config.plt_window_size[0] < 1:
            raise ValueError("vLLM needs a PLT model with a window of at least one key (`plt_window_size=[1, 0]`).")
    if config.plt_num_loops > 1 and cache.kv_sharing_fast_prefill:
        raise ValueError(
            "Fast prefill is not supported: the layers that share loop 0's cache would get other rows than the rest. "
            "Leave out `--kv-sharing-fast-prefill`."
        )
    if tail_lengths(vllm_config) and cache.enable_prefix_caching:
        raise ValueError(
            f"`{TAIL}` omits parts of the cache that another request with the same prefix would read. Add "
            "`--no-enable-prefix-caching`."
        )
    if cache.cache_dtype not in ("auto", str(vllm_config.model_config.dtype).removeprefix("torch.")):
        raise ValueError(
            f"A KV cache of {cache.cache_dtype} is not supported: it also holds the states passed from token to token, "
            "which must not be rounded. Leave out `--kv-cache-dtype`."
        )
    if vllm_config.quant_config is not None:
        raise ValueError("Quantized weights have not been tested with PLT models. Leave out `--quantization`.")
    if vllm_config.lora_config is not None:
        raise ValueError(
            "LoRA is not supported. Merge the adapter (`iquest_plt.training.lora --merge`) and serve the result."
        )
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            "Pipeline parallelism is not supported: it sends a token through the devices once, but each loop passes "
            "through them again. Use `--tensor-parallel-size`."
        )
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise ValueError("Context parallelism has not been tested with PLT models. Use `--tensor-parallel-size`.")
    if parallel.use_ubatching:
        raise ValueError("Dual-batch overlap has not been tested with PLT models. Leave out `--enable-dbo`.")
    if vllm_config.kv_transfer_config is not None:
        raise ValueError("KV transfer has not been tested with PLT models. Leave out `--kv-transfer-config`.")
    if speculative is not None and speculative.method != "ngram":
        raise ValueError(
            f"Speculation with {speculative.method!r} has not been tested with PLT models. Use n-gram drafts "
            '(`--speculative-config \'{"method": "ngram", ...}\'`).'
        )
