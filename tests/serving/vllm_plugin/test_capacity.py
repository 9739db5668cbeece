# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""How many tokens fit into vLLM's KV cache, according to vLLM's own planning, for the released shape."""

import shutil

import pytest
import torch
from paths import ROOT
from vllm.config import set_current_vllm_config
from vllm.distributed import cleanup_dist_env_and_memory, init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups, get_kv_cache_groups
from vllm.v1.request import Request


GIB, LENGTH, CHUNK = 2**30, 32768, 2048


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    shutil.copy(ROOT / "config.json", folder)
    return str(folder)


@pytest.fixture
def one_process(tmp_path):
    yield lambda: (
        init_distributed_environment(1, 0, f"file://{tmp_path}/store", 0, "gloo"),
        initialize_model_parallel(),
    )
    cleanup_dist_env_and_memory()


def plan(folder, loops: int, block_size: int):
    """Returns vLLM's configuration and its plan for 64 GiB of KV cache, without allocating it."""
    config = EngineArgs(
        folder,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=LENGTH,
        max_num_batched_tokens=CHUNK,
        block_size=block_size,
        hf_overrides={"plt_num_loops": loops},
    ).create_engine_config()
    config.cache_config.kv_cache_layout = "LBHNC"  # the CPU backend needs this
    return config


def tokens_per_gib(config, groups) -> float:
    """Returns tokens per GiB for a decoding request of `LENGTH` tokens whose prompt was read in chunks."""
    kv_cache = get_kv_cache_config_from_groups(config, groups, 64 * GIB)
    block_size = config.cache_config.block_size
    manager = KVCacheManager(kv_cache, LENGTH, block_size, block_size, enable_caching=False)
    request = Request("0", list(range(LENGTH - 8)), SamplingParams(max_tokens=8), None)
    free = manager.block_pool.get_num_free_blocks()
    for size in [*[CHUNK] * ((LENGTH - 8) // CHUNK), (LENGTH - 8) % CHUNK, *[1] * 8]:
        assert manager.allocate_slots(request, size) is not None
        request.num_computed_tokens += size
    blocks = free - manager.block_pool.get_num_free_blocks()
    return LENGTH / (blocks * 64 * GIB / kv_cache.num_blocks / GIB)


@pytest.mark.parametrize("block_size", [32, 128])
def test_tokens_that_fit(released, block_size, one_process):
    found = {}
    for loops in (1, 2, 3, 4):
        config = plan(released, loops, block_size)
        with set_current_vllm_config(config):
            if loops == 1:
                one_process()
            with torch.device("meta"):
                initialize_model(config)
        layers = config.compilation_config.static_forward_context
        own = {
            name: layer
            for name, layer in layers.items()
            if isinstance(layer, AttentionLayerBase) and not getattr(layer, "kv_sharing_target_layer_name", None)
        }
        specs = {name: layer.get_kv_cache_spec(config) for name, layer in own.items()}
        groups = get_kv_cache_groups(config, specs)
        found[loops] = tokens_per_gib(config, groups)
        print(loops, len(specs), [len(g.layer_names) for g in groups], found[loops])
    print({loops: round(tokens / found[1], 3) for loops, tokens in found.items()})
    assert found[1] == pytest.approx(GIB / 57344, rel=0.01)
    assert found[2] > 0.85 * found[1]
