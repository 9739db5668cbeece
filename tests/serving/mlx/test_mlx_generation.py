# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Generation with mlx-lm: greedy tokens, batches of different lengths, and caches that are saved or reused."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from mlx_models import args_of, array, largest_difference, launcher, mlx_copy, mx, utils
from paths import SMALL
from tiny import tiny_config, tiny_model, tokens

from iquest_plt import IQuestPLTCoderForCausalLM


generate = pytest.importorskip("mlx_lm.generate")
caches = pytest.importorskip("mlx_lm.models.cache")


def greedy(model, prompt: list[int], count: int, **kwargs) -> list[int]:
    """Returns the tokens that mlx-lm generates for one prompt."""
    steps = generate.generate_step(mx.array(prompt), model, max_tokens=count, **kwargs)
    return [token for token, _ in steps]


def prompts(*lengths: int) -> list[list[int]]:
    return [tokens(length, seed=length).tolist() for length in lengths]


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda num_loops: f"R={num_loops}")
def tiny(request, tmp_path_factory):
    model = tiny_model(plt_num_loops=request.param)
    return mlx_copy(model, tmp_path_factory.mktemp("tiny"))


def check_greedy(model, copy, prompt: list[int], count: int, num_loops: int) -> None:
    """Compares greedy tokens with those of the Transformers model."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    expected = model.generate(ids, max_new_tokens=count, do_sample=False, num_loops=num_loops)[0, len(prompt) :]
    assert len(set(expected.tolist())) > 5  # not a repetition of very few tokens
    assert greedy(copy, prompt, count) == expected.tolist()


@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_greedy_tokens_equal_those_of_transformers(num_loops, mini_plt, mini_folder):
    """The prompt is long enough to be cut off in loops >= 1. The windows of 8 tokens move on with each new one."""
    launcher.register()
    copy, _ = utils.load_model(mini_folder, model_config={"plt_num_loops": num_loops})
    model = IQuestPLTCoderForCausalLM.from_pretrained(mini_plt, dtype=torch.float32).eval()
    check_greedy(model, copy, torch.randint(8192, (60,)).tolist(), 100, num_loops)


SLOW = [pytest.param(num_loops, marks=pytest.mark.slow) for num_loops in (1, 3)]


@pytest.mark.parametrize("num_loops", [2, *SLOW])
def test_greedy_tokens_of_the_small_checkpoint(num_loops, small, small_folder):
    """200 tokens after 100, with windows of 64."""
    copy, _ = utils.load_model(small_folder, model_config={"plt_num_loops": num_loops})
    model = IQuestPLTCoderForCausalLM.from_pretrained(SMALL, dtype=torch.float32).eval()
    prompt = small[1].encode(Path(argparse.__file__).read_text())[300:400]
    check_greedy(model, copy, prompt, 200, num_loops)


def test_chunks_of_a_prompt(tiny):
    """Prompts longer than `prefill_step_size` come in chunks, whose logits are never read."""
    (prompt,) = prompts(70)
    expected = greedy(tiny, prompt, 12)
    for size in (1, 2, 7, 33):
        assert greedy(tiny, prompt, 12, prefill_step_size=size) == expected


LENGTHS = (1, 3, 20, 9, 41, 2, 33)
SIZES = {
    "one batch": {},
    "short chunks": {"prefill_step_size": 8},
    "requests come and go": {"prefill_step_size": 16, "prefill_batch_size": 2, "completion_batch_size": 3},
}


def run_batch(model, rows: list[list[int]], counts: list[int], row_caches=None, **sizes) -> tuple[list, list]:
    """Returns the tokens and the final cache of each row."""
    batch = generate.BatchGenerator(model, **sizes)
    names = batch.insert(rows, counts, caches=row_caches)
    found, finished = {name: [] for name in names}, {}
    while responses := batch.next_generated():
        for response in responses:
            found[response.uid].append(response.token)
            if response.finish_reason is not None:
                finished[response.uid] = response.prompt_cache
    batch.close()
    return [found[name] for name in names], [finished[name] for name in names]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_rows_of_a_batch_equal_rows_alone(tiny, sizes):
    rows, counts = prompts(*LENGTHS), [6, 14, 3, 12, 9, 11, 8]
    alone = [greedy(tiny, row, count) for row, count in zip(rows, counts, strict=True)]
    found, finished = run_batch(tiny, rows, counts, **sizes)
    assert found == alone

    # Each cache that a batch returns continues its text, in another batch.
    again = [[97 - len(row)] for row in rows]
    texts = [row + new + more for row, new, more in zip(rows, alone, again, strict=True)]
    continued, _ = run_batch(tiny, again, [5] * len(rows), finished, **sizes)
    assert continued == [greedy(tiny, text, 5) for text in texts]


def test_several_tokens_after_a_batch(tiny):
    """A second turn: prompts of several tokens continue the caches of rows with different lengths."""
    rows = prompts(5, 30, 12)
    first, finished = run_batch(tiny, rows, [4, 6, 5])
    turns = prompts(25, 2, 11)
    texts = [row + new + turn for row, new, turn in zip(rows, first, turns, strict=True)]
    found, _ = run_batch(tiny, turns, [6] * 3, finished)
    assert found == [greedy(tiny, text, 6) for text in texts]


@pytest.mark.parametrize("length", [3, 50])
def test_saved_caches(tiny, length, tmp_path):
    cache = tiny.make_cache()
    tiny(array(tokens(1, length)), cache=cache)
    tiny(array(tokens(1, 1, seed=2)), cache=cache)
    caches.save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    loaded = caches.load_prompt_cache(str(tmp_path / "cache.safetensors"))
    for seed, size in ((3, 1), (4, 9), (5, 1)):
        ids = array(tokens(1, size, seed=seed))
        expected = np.array(tiny(ids, cache=cache))
        assert largest_difference(np.array(tiny(ids, cache=loaded)), expected) == 0.0


def test_the_size_of_a_cache(tiny):
    """Loop 0 keeps all keys, later loops w + 1, whatever the length of the text."""
    loops = tiny.args.plt_num_loops
    cache = tiny.make_cache()
    for size in (300, 1, 1):
        tiny(array(tokens(1, size)), cache=cache)
        for layer in cache if loops > 1 else ():
            assert {window.offset for window in layer.caches[1:loops]} == {layer[0].offset}
    mx.eval([one.state for one in cache])
    assert len(cache) == 3
    if loops > 1:
        windows = [window for layer in cache for window in layer.caches[1:loops]]
        assert {window.keys.shape for window in windows} == {(1, 2, 5, 8)}
        assert [carry.shape for carry in cache[0].caches[-1].cache] == [(1, 32)] * (loops - 1)


def test_with_one_loop_a_cache_can_be_quantized_and_trimmed(mini_folder):
    """It is a Llama's cache then."""
    launcher.register()
    model, _ = utils.load_model(mini_folder, model_config={"plt_num_loops": 1})
    prompt = tokens(20).tolist()
    expected = greedy(model, prompt, 20)
    steps = generate.speculative_generate_step(mx.array(prompt), model, model, max_tokens=20)
    assert [token for token, _, _ in steps] == expected
    assert len(greedy(model, prompt, 20, kv_bits=8, kv_group_size=32, quantized_kv_start=0)) == 20


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looped(tmp_path_factory):
    return mlx_copy(tiny_model(plt_num_loops=2), tmp_path_factory.mktemp("looped"))


def test_a_quantized_cache_is_refused(looped, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be quantized\. Leave out `--kv-bits`"):
        greedy(looped, [1, 2, 3], 2, kv_bits=8)
    cache = looped.make_cache()
    looped(array(tokens(1, 4)), cache=cache)
    caches.save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    loaded = caches.load_prompt_cache(str(tmp_path / "cache.safetensors"))
    with pytest.raises(ValueError, match=r"cannot be quantized\. Leave out `--kv-bits`"):
        greedy(looped, [1, 2, 3], 2, kv_bits=8, prompt_cache=loaded)


def test_drafts_and_trimming_are_refused(looped):
    cache = looped.make_cache()
    looped(array(tokens(1, 4)), cache=cache)
    assert caches.trim_prompt_cache(cache, 1) == 0  # mlx-lm's answer for caches that cannot be trimmed
    with pytest.raises(ValueError, match="cannot be trimmed"):
        cache[1].trim(1)
    with pytest.raises(ValueError, match="requires a trimmable prompt cache"):
        list(generate.speculative_generate_step(mx.array([1, 2, 3]), looped, looped, max_tokens=2))


@pytest.mark.parametrize("num_loops", [1, 3])
def test_a_cache_of_another_model_is_refused(looped, num_loops):
    other = type(looped)(args_of(tiny_config(plt_num_loops=num_loops)))
    with pytest.raises(ValueError, match=rf"for 3 layers and 2 loops, .* and {num_loops} loops"):
        other(mx.array([[1]]), cache=looped.make_cache())
    with pytest.raises(ValueError, match=rf"for 3 layers and {num_loops} loops"):
        looped(mx.array([[1]]), cache=other.make_cache())


def test_dynamic_rotary_embeddings_in_a_batch_are_refused(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    model = mlx_copy(tiny_model(rope_parameters=rope), tmp_path)
    assert len(greedy(model, [1, 2, 3], 4)) == 4
    with pytest.raises(ValueError, match="one text at a time"):
        run_batch(model, prompts(3, 4), [2, 2])
