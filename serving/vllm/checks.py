# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What the plugin refuses: what it could not compute rightly, and what has not been tested."""

from vllm.config import VllmConfig

from .schedule import TAIL, tail_lengths


def check(vllm_config: VllmConfig) -> None:
    """Raises ValueError, with the way out, for a model or an option that is refused."""
    config, cache = vllm_config.model_config.hf_config, vllm_config.cache_config
    parallel, speculative = vllm_config.parallel_config, vllm_config.speculative_config
    config.validate()  # again: `--hf-overrides` sets fields after the configuration was made

    if config.plt_num_loops > 1:
        if not config.plt_cross_loop_shift:
            raise ValueError(
                "A PLT without the shift (`plt_cross_loop_shift=False`) cannot be served by vLLM: use Transformers."
            )
        if config.plt_loop_attention != "gated":
            raise ValueError(
                f"A PLT with `plt_loop_attention={config.plt_loop_attention!r}` cannot be served by vLLM, which has "
                'the released kind only ("gated"): use Transformers.'
            )
        if config.plt_window_size[0] < 1:
            raise ValueError("vLLM serves PLT models whose window holds at least one key (`plt_window_size=[1, 0]`).")
    if config.plt_num_loops > 1 and cache.kv_sharing_fast_prefill:
        raise ValueError(
            "Fast prefill is refused: the layers that share loop 0's cache would get other rows than the rest. Leave "
            "out `--kv-sharing-fast-prefill`."
        )
    if tail_lengths(vllm_config) and cache.enable_prefix_caching:
        raise ValueError(
            f"`{TAIL}` leaves out of the cache what another request with the same beginning would read: add "
            "`--no-enable-prefix-caching`."
        )
    if cache.cache_dtype not in ("auto", str(vllm_config.model_config.dtype).removeprefix("torch.")):
        raise ValueError(
            f"A KV cache of {cache.cache_dtype} is refused: it also holds the states handed from token to token, which "
            "are not to be rounded. Leave out `--kv-cache-dtype`."
        )
    if vllm_config.quant_config is not None:
        raise ValueError("Quantized weights are refused: not tested with PLT models. Leave out `--quantization`.")
    if vllm_config.lora_config is not None:
        raise ValueError(
            "LoRA is refused: merge the adapter (`iquest_plt.training.lora --merge`) and serve the result."
        )
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            "Pipeline parallelism sends a token once through the devices, and the loops come round again: use "
            "`--tensor-parallel-size`."
        )
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise ValueError("Context parallelism is refused: not tested with PLT models. Use `--tensor-parallel-size`.")
    if parallel.use_ubatching:
        raise ValueError("Dual-batch overlap is refused: not tested with PLT models. Leave out `--enable-dbo`.")
    if vllm_config.kv_transfer_config is not None:
        raise ValueError("KV transfer is refused: not tested with PLT models. Leave out `--kv-transfer-config`.")
    if speculative is not None and speculative.method != "ngram":
        raise ValueError(
            f"Speculation by {speculative.method!r} is refused: drafts from n-grams are what was tested "
            '(`--speculative-config \'{"method": "ngram", ...}\'`).'
        )
