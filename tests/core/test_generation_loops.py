# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`generate(num_loops=R)` equals generation with an R-loop model, whatever calls the model on the way."""

import threading

import pytest
import torch
from tiny import tiny_model, tokens
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList

from iquest_plt import PLTCache


pytestmark = pytest.mark.core
GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
MODES = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "fp8 cache": {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
    "beams": {"num_beams": 3},
    "several": {"num_return_sequences": 2, "num_beams": 2},
    "sampling": {"do_sample": True, "temperature": 0.7},
    "guidance": {"guidance_scale": 1.7},
    "guidance, negative prompt": {"guidance_scale": 1.7, "negative_prompt_ids": tokens(1, 4, seed=5)},
    "guidance without cache": {"guidance_scale": 1.7, "use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 2},
    "chunks": {"prefill_chunk_size": 3},
    "in sequence": {"loop_schedule": "sequence"},
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def generate(model, mode, **kwargs):
    torch.manual_seed(3)
    return model.generate(tokens(1, 8), **GREEDY | MODES[mode] | kwargs)


@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_the_requested_loops(model, mode, num_loops):
    if mode == "fp8 cache" and not hasattr(__import__("transformers").cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("the fp8 cache needs Transformers 5.22")
    expected = generate(model.with_num_loops(num_loops), mode)
    assert torch.equal(generate(model, mode, num_loops=num_loops), expected)
    config = GenerationConfig(**GREEDY | {k: v for k, v in MODES[mode].items() if k not in NOT_IN_CONFIG})
    config.num_loops = num_loops
    others = {k: v for k, v in MODES[mode].items() if k in NOT_IN_CONFIG}
    torch.manual_seed(3)
    assert torch.equal(model.generate(tokens(1, 8), generation_config=config, **others), expected)


NOT_IN_CONFIG = ("negative_prompt_ids", "loop_schedule")


def test_the_modes_tell_loop_counts_apart(model):
    """Otherwise the test above could not fail."""
    for mode in ("greedy", "guidance"):
        texts = [tuple(generate(model, mode, num_loops=r)[0].tolist()) for r in (1, 2, 3)]
        assert len(set(texts)) == 3, mode


class Doubts(LogitsProcessor):
    """A logits processor that calls the model itself."""

    def __init__(self, model):
        self.model = model

    def __call__(self, input_ids, scores):
        return scores + self.model(input_ids).logits[:, -1]


@pytest.mark.parametrize("num_loops", [1, 3])
def test_logits_processors_run_the_requested_loops(model, num_loops):
    twin = model.with_num_loops(num_loops)
    expected = generate(twin, "greedy", logits_processor=LogitsProcessorList([Doubts(twin)]))
    ours = generate(model, "greedy", logits_processor=LogitsProcessorList([Doubts(model)]), num_loops=num_loops)
    assert torch.equal(ours, expected)


def test_threads_do_not_see_each_others_loops(model):
    counts = (1, 2, 3)
    expected = [generate(model.with_num_loops(count), "guidance") for count in counts]
    results = {}

    def run(count):
        ids = tokens(1, 8)
        results[count] = [model.generate(ids, **GREEDY, guidance_scale=1.7, num_loops=count) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for count, ids in zip(counts, expected, strict=True):
        assert all(torch.equal(result, ids) for result in results[count])


def test_a_failed_generation_leaves_the_model_unchanged(model, monkeypatch):
    before = generate(model, "greedy")
    with pytest.raises(ValueError, match="num_loops"):
        generate(model, "greedy", num_loops=0)
    for twin in (model, model.with_num_loops(3)):
        bad_cache = PLTCache(model.config, num_loops=4)
        with pytest.raises(ValueError):
            generate(twin, "early exit", cache=bad_cache, num_loops=3)
        layers = twin.model.config.num_hidden_layers
        with monkeypatch.context() as patch:
            patch.setattr(twin.model.layers[0].mlp, "forward", None)
            with pytest.raises(TypeError):
                generate(twin, "early exit")
        assert twin.model.config.num_hidden_layers == twin.config.num_hidden_layers == layers == 3
    assert torch.equal(generate(model, "greedy"), before)


def test_a_stored_generation_config_has_the_number_of_loops(model, tmp_path):
    model.save_pretrained(tmp_path)
    GenerationConfig(num_loops=3).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(generate(loaded, "guidance"), generate(model, "guidance", num_loops=3))
    assert torch.equal(generate(loaded, "guidance", num_loops=1), generate(model, "guidance", num_loops=1))
    assert torch.equal(generate(loaded.with_num_loops(1), "guidance"), generate(model, "guidance", num_loops=1))


def test_num_loops_in_a_configuration_is_the_stored_field(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, num_loops=3).plt_num_loops == 3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, num_loops=3)
    assert torch.equal(generate(loaded, "greedy"), generate(model, "greedy", num_loops=3))
    loaded.config.num_loops = 1
    assert loaded.config.plt_num_loops == 1 and "num_loops" not in loaded.config.to_dict()
    assert torch.equal(generate(loaded, "greedy"), generate(model, "greedy", num_loops=1))
    with pytest.raises(ValueError, match="plt_num_loops"):
        AutoModelForCausalLM.from_pretrained(tmp_path, num_loops=0)
