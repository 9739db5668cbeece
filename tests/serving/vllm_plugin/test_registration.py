# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What the plugin registers, and what it rejects."""

import logging
import shutil

import pytest
import vllm
from paths import ROOT
from vllm.config import CUDAGraphMode
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models.registry import ModelRegistry
from vllm.plugins import load_general_plugins
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from iquest_plt.serving import vllm as plugin
from iquest_plt.serving.vllm.checks import check
from iquest_plt.serving.vllm.schedule import TAIL, tail_lengths


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    shutil.copy(ROOT / "config.json", folder)
    return str(folder)


def test_the_entry_point_registers_the_model_and_its_parsers():
    load_general_plugins()
    plugin.register()  # vLLM may call it more than once
    assert plugin.ARCHITECTURE in ModelRegistry.get_supported_archs()
    assert "loopcoder" in ToolParserManager.list_registered()
    assert "loopcoder" in ReasoningParserManager.list_registered()


@pytest.mark.parametrize("release", [(0, 31, 0), (0, 33, 0), (1, 0, 0)])
def test_other_releases_are_not_touched(release, monkeypatch, caplog):
    monkeypatch.setattr(vllm, "__version_tuple__", release)
    monkeypatch.setattr(ModelRegistry, "register_model", lambda *args: pytest.fail("registered"))
    with caplog.at_level(logging.ERROR, logger=plugin.logger.name):
        plugin.logger.addHandler(caplog.handler)
        plugin.register()
        plugin.logger.removeHandler(caplog.handler)
    assert "supports vLLM 0.32" in caplog.text


def weights(kv_cache_scheme: dict | None = None, dtype: str = "bfloat16", **fields) -> dict:
    """Returns the options for a checkpoint with weights in compressed-tensors' format."""
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **fields}}
    stored = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    return {"hf_overrides": {"quantization_config": stored | {"kv_cache_scheme": kv_cache_scheme}}, "dtype": dtype}


REFUSED = {
    "loops without the shift": ({"hf_overrides": {"plt_cross_loop_shift": False}}, "Use Transformers"),
    "loops with a learned shift": ({"hf_overrides": {"plt_cross_loop_shift": "learned"}}, "Use Transformers"),
    "a learned shift": ({"hf_overrides": {"plt_cross_loop_shift": "mixed", "plt_num_loops": 1}}, "Use Transformers"),
    "loops with one softmax": ({"hf_overrides": {"plt_loop_attention": "joint"}}, "Use Transformers"),
    "loops without gates": ({"hf_overrides": {"plt_loop_attention": "own"}}, "Use Transformers"),
    "no window": ({"hf_overrides": {"plt_window_size": [0, 0]}}, "plt_window_size"),
    "no loops": ({"hf_overrides": {"plt_num_loops": 0}}, "plt_num_loops"),
    "quantized cache": ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype"),
    "prompts cut short": ({"kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill"),
    "weights without a CPU kernel": ({"quantization": "fp8"}, "--quantize int8"),
    "floating-point weights of 8 bits": (weights(type="float", num_bits=8), "--quantize int8"),
    "4 bits in float32": (weights(num_bits=4, group_size=32, strategy="group", dtype="float32"), "--dtype bfloat16"),
    "weights with a quantized cache": (
        weights(num_bits=8, strategy="channel", kv_cache_scheme={"num_bits": 8, "type": "float"}),
        "kv_cache_scheme",
    ),
    "adapters of gates": ({"enable_lora": True, "lora_target_modules": ["plt_gate"]}, "--lora-target-modules"),
    "sharded adapters": ({"enable_lora": True, "fully_sharded_loras": True}, "--fully-sharded-loras"),
    "ends of prompts that others share": (
        {"additional_config": {TAIL: True}, "enable_prefix_caching": True},
        "no-enable-prefix-caching",
    ),
    "pipeline": ({"pipeline_parallel_size": 2}, "tensor-parallel-size"),
    "drafts of a model": ({"speculative_config": {"method": "draft_model", "num_speculative_tokens": 2}}, "ngram"),
}


@pytest.mark.parametrize(("options", "advice"), REFUSED.values(), ids=REFUSED)
def test_rejections(released, options, advice):
    defaults = {"dtype": "bfloat16", "skip_tokenizer_init": True, "enforce_eager": True, "max_model_len": 2048}
    if "speculative_config" in options:
        options["speculative_config"]["model"] = released
    config = None
    with pytest.raises(ValueError, match=advice):
        config = EngineArgs(released, **defaults | options).create_engine_config()
        check(config)
    assert config is not None, "vLLM itself rejected it"


def test_adapters_in_a_cuda_graph_are_rejected(released):
    options = {"dtype": "bfloat16", "skip_tokenizer_init": True, "enable_lora": True, "max_model_len": 2048}
    config = EngineArgs(released, **options).create_engine_config()
    check(config)
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY  # a CPU has no graphs
    with pytest.raises(ValueError, match="--enforce-eager"):
        check(config)


def test_tail_lengths(released):
    """14 layers, a window of 64: a loop needs 64 tokens per layer, plus one more than the input of the next loop."""
    for loops, lengths in ((1, ()), (2, (897,)), (3, (1794, 897)), (4, (2691, 1794, 897))):
        options = {"hf_overrides": {"plt_num_loops": loops}, "dtype": "bfloat16", "skip_tokenizer_init": True}
        for asked in (True, False):
            config = EngineArgs(released, max_model_len=2048, additional_config={TAIL: asked}, **options)
            assert tail_lengths(config.create_engine_config()) == (lengths if asked else ())


def test_supported_options(released):
    for options in (
        {},
        {"kv_cache_dtype": "bfloat16"},
        {"tensor_parallel_size": 2},
        {"additional_config": {TAIL: True}, "enable_prefix_caching": False},
        {"hf_overrides": {"plt_num_loops": 4}},
    ):
        config = EngineArgs(released, dtype="bfloat16", skip_tokenizer_init=True, max_model_len=2048, **options)
        check(config.create_engine_config())
