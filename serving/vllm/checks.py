# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Rejects what the plugin cannot compute correctly, and what has not been tested."""

import torch
from vllm import envs
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.platforms import current_platform

from .schedule import TAIL, tail_lengths


CPU_FORMATS = ("compressed-tensors", "auto_awq", "auto_gptq")  # vLLM's names of the weight formats tested on a CPU
CPU_KERNEL = "CPUWNA16LinearKernel"  # its class for 4-bit weights


def check(vllm_config: VllmConfig) -> None:
    """Raises ValueError for an unsupported model or option. The message suggests an alternative."""
    config, cache = vllm_config.model_config.hf_config, vllm_config.cache_config
    parallel, speculative = vllm_config.parallel_config, vllm_config.speculative_config
    config.validate()  # again, since `--hf-overrides` sets fields after creating the configuration

    shift = config.plt_cross_loop_shift
    # With one loop, no shift is needed. The learned ones have a tensor that the plugin does not read.
    if isinstance(shift, str) or (config.plt_num_loops > 1 and not shift):
        raise ValueError(
            f"vLLM cannot serve a PLT without the shift (`plt_cross_loop_shift={shift!r}`), only the released kind "
            "(True). Use Transformers."
        )
    if config.plt_num_loops > 1:
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
    check_weights(vllm_config)
    check_adapters(vllm_config)
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


def check_weights(vllm_config: VllmConfig) -> None:
    """Raises ValueError for quantized weights that cannot be run. The gates are never quantized."""
    quantization = vllm_config.quant_config
    if quantization is None:
        return
    if getattr(quantization, "kv_cache_scheme", None):
        raise ValueError(
            "This checkpoint also quantizes the KV cache (`kv_cache_scheme`), which holds the states passed from token "
            "to token and must not be rounded. Remove `kv_cache_scheme` from the `quantization_config` in config.json."
        )
    if not current_platform.is_cpu():
        return
    name = quantization.get_name()
    schemes = [scheme["weights"] for scheme in getattr(quantization, "target_scheme_map", {}).values()]
    if name not in CPU_FORMATS or any(weights.type == "float" for weights in schemes):
        raise ValueError(
            f"These weights ({name}, possibly of floating-point numbers of 8 or 4 bits) cannot be served on a CPU. Use "
            "`iquest-plt convert --quantize int8` or `--quantize int4`."
        )
    is_float32 = vllm_config.model_config.dtype == torch.float32
    if is_float32 and CPU_KERNEL not in envs.VLLM_DISABLED_KERNELS and any(w.num_bits == 4 for w in schemes):
        raise ValueError(
            "vLLM's CPU kernel for 4-bit weights takes no float32. Add `--dtype bfloat16`, or set the environment "
            f"variable `VLLM_DISABLED_KERNELS={CPU_KERNEL}` to use PyTorch's kernel."
        )


def check_adapters(vllm_config: VllmConfig) -> None:
    """Raises ValueError for options that LoRA adapters do not support."""
    lora = vllm_config.lora_config
    if lora is None:
        return
    if any(name.endswith(("lm_head", "embed_tokens", "plt_gate")) for name in lora.target_modules or ()):
        raise ValueError(
            "LoRA adapters can only change the linear layers. Leave the gates, embeddings and output layer out of "
            "`--lora-target-modules`."
        )
    if lora.fully_sharded_loras:
        raise ValueError("Sharded adapters have not been tested with PLT models. Leave out `--fully-sharded-loras`.")
    if vllm_config.compilation_config.cudagraph_mode not in (None, CUDAGraphMode.NONE):
        raise ValueError(
            "LoRA adapters cannot be used with CUDA graphs: the model chooses each row's adapter at every step, but a "
            "graph would repeat the choice for the captured batch. Add `--enforce-eager`."
        )
