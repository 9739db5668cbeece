# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM with the plugin chooses the same tokens as the Transformers model, in every mode of vLLM."""

import argparse
import random
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import paths
import pytest
import torch
from engines import NEW_TOKENS, Judge, count_kinds, engine, generate, said, save_model, some_prompts
from transformers import AutoTokenizer
from vllm.v1.spec_decode.ngram_proposer import NgramProposer

from iquest_plt.serving.vllm import carry, model
from iquest_plt.serving.vllm.schedule import TAIL


NGRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
SMALL = str(paths.SMALL)
MODELS = {f"{r}-loops-gate-{'hidden' if g else 'query'}": (r, g) for r in (2, 3) for g in (True, False)}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def judge(request, tmp_path_factory):
    path = save_model(tmp_path_factory.mktemp("model"), *request.param)
    judge = Judge(path)
    judge.path, judge.fields = path, request.param
    return judge


@pytest.fixture(scope="module")
def prompts():
    return some_prompts(32, 2000)


def watch(engine, name: str) -> Mock:
    """Counts the calls to a method of the engine's scheduler."""
    scheduler = engine.engine_core.engine_core.scheduler
    mock = Mock(wraps=getattr(scheduler, name))
    setattr(scheduler, name, mock)
    return mock


def test_plain(judge, prompts):
    with engine(judge.path, max_num_batched_tokens=4096) as llm:
        judge.check(prompts, generate(llm, prompts))


def test_chunked_prompts_next_to_decoding_requests(judge, prompts, monkeypatch):
    """If both are in one batch, the decoding requests run their loops together."""
    kinds = count_kinds(monkeypatch)
    with engine(judge.path, max_num_batched_tokens=96) as llm:
        judge.check(prompts, generate(llm, prompts))
        judge.check(prompts, generate(llm, prompts, every=0))
    assert min(kinds[True, True], kinds[True, False]) > 3 and kinds[False, True]


@pytest.mark.parametrize(("num_loops", "heads", "calls"), [(2, 10, 2), (4, 8, 2), (3, 8, 3), (4, 4, 1), (2, 10, 1)])
def test_calls_of_attention_for_all_loops(num_loops, heads, calls, prompts, tmp_path, monkeypatch):
    """The CPU kernel is slow with more than eight query heads per key/value head. Other kernels take all loops."""
    if (heads, calls) == (10, 1):
        choose = model.loops_per_call
        monkeypatch.setattr(model, "loops_per_call", lambda *args: choose(*args[:2], "FLASH_ATTN"))
    # With larger weights, four loops amplify float32 rounding to a thousandth of a logit, also in Transformers.
    path = save_model(tmp_path, num_loops, True, num_attention_heads=heads, initializer_range=0.1)
    seen, attend = Counter(), model.Attention.forward

    def watched(self, query, key, value):
        seen[self.layer_name, key is None] += 1
        return attend(self, query, key, value)

    monkeypatch.setattr(model.Attention, "forward", watched)
    with engine(path) as llm:
        Judge(path).check(prompts[:12], generate(llm, prompts[:12]))
        seen.clear()
        generate(llm, [[1]])
    together = max(count for (_, reads), count in seen.items() if reads)
    assert together == calls * NEW_TOKENS  # the one-token prompt and each new token but the last


def test_prompts_with_a_cached_prefix(judge, prompts):
    longer = [[*prompt, 7, 8, 9] for prompt in prompts]
    with engine(judge.path, enable_prefix_caching=True) as llm:
        judge.check(prompts, generate(llm, prompts))
        for again in (prompts, longer):
            outputs = generate(llm, again)
            cached = [output.num_cached_tokens for output in outputs]
            assert sum(cached) > sum(map(len, prompts)) / 2
            judge.check(again, outputs)


@pytest.mark.parametrize("length", [33, 65, 66])
def test_simultaneous_prompts_with_a_common_prefix(judge, length):
    """The second request needs the cache blocks in the step that computes them. With 33 and 65, one token is left."""
    prompts = [list(range(seed, seed + length)) for seed in (3, 3, 3, 40, 40)]
    prompts += [prompts[3] + [9] * 40, prompts[0]]
    with engine(judge.path, enable_prefix_caching=True) as llm:
        judge.check(prompts, generate(llm, prompts, every=0))
        judge.check(prompts, generate(llm, prompts, every=0))


def test_preempted_requests(judge, prompts):
    with engine(judge.path, max_num_batched_tokens=1024) as llm:
        preempt = watch(llm, "_preempt_request")
        judge.check(prompts, generate(llm, prompts, preempt_every=9))
        assert preempt.call_count > len(prompts)


@pytest.mark.parametrize("chunk", [4096, 400])
def test_ends_of_prompts(judge, prompts, chunk, monkeypatch):
    """Running loops >= 1 over only the end of every prompt chunk gives the same tokens with fewer rows."""
    rows, run_layers = Counter(), model.IQuestPLTCoderForCausalLM._run_layers

    def watched(self, segments):
        for segment in segments:
            for loop in segment.loops:
                rows[loop] += len(segment.inputs) // len(segment.loops)
        return run_layers(self, segments)

    monkeypatch.setattr(model.IQuestPLTCoderForCausalLM, "_run_layers", watched)
    with engine(judge.path, max_num_batched_tokens=chunk, additional_config={TAIL: True}) as llm:
        rows.clear()  # discards the profiling run
        judge.check(prompts, generate(llm, prompts))
        judge.check(prompts, generate(llm, prompts, every=0, preempt_every=9))
    last = judge.fields[0] - 1
    assert rows[last] < (0.6 if chunk == 4096 else 0.9) * rows[0]


def test_partly_wrong_drafts(judge, prompts, monkeypatch):
    """Random models do not repeat themselves, so the drafts are taken from an earlier run without drafts."""
    with engine(judge.path) as llm:
        texts = [prompt + said(output) for prompt, output in zip(prompts, generate(llm, prompts), strict=True)]

    def propose(self, num_speculative_tokens, sampled_token_ids, num_tokens_no_spec, token_ids_cpu, **kwargs):
        drafts = []
        for sampled, length, ids in zip(sampled_token_ids, num_tokens_no_spec, token_ids_cpu, strict=False):
            so_far = ids[:length].tolist()
            draft = next((text[length:][:num_speculative_tokens] for text in texts if text[:length] == so_far), [])
            # The position of a wrong token, or none.
            wrong = random.Random(int(length)).randrange(num_speculative_tokens + 1)
            drafts.append([token ^ (place == wrong) for place, token in enumerate(draft)] if sampled else [])
        return drafts

    monkeypatch.setattr(NgramProposer, "propose", propose)
    with engine(judge.path, speculative_config=NGRAMS, max_num_batched_tokens=256) as llm:
        verified = watch(llm, "make_spec_decoding_stats")
        judge.check(prompts, generate(llm, prompts))
        drafted, accepted = (
            sum(call.kwargs[f"num_{what}_tokens"] for call in verified.call_args_list) for what in ("draft", "accepted")
        )
        assert 0.2 * drafted < accepted < 0.8 * drafted


@pytest.mark.slow
def test_two_ranks(judge, prompts):
    with engine(judge.path, tensor_parallel_size=2, max_num_batched_tokens=256) as llm:
        judge.check(prompts, generate(llm, prompts))


# -- the tests can fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["zero carry", "window of 64", "gates swapped", "shorter ends"])
def test_wrong_variants_are_caught(judge, prompts, wrong, tmp_path, monkeypatch):
    """No longer prompt passes."""
    prompts = [prompt for prompt in prompts if len(prompt) > 100]
    path, options = judge.path, {}
    if wrong == "zero carry":
        monkeypatch.setattr(
            carry.Carry, "read_before", lambda self, loop, positions, part: torch.zeros(len(positions), 128)
        )
    elif wrong == "window of 64":
        options["hf_overrides"] = {"plt_window_size": [63, 0]}
    elif wrong == "shorter ends":
        prompts = [prompt for prompt in prompts if len(prompt) > 400]
        options = {"additional_config": {TAIL: True}, "max_num_batched_tokens": 4096}
        # Too short: each loop runs over only the input that the next one needs.
        lengths = tuple(range(judge.fields[0] - 1, 0, -1))
        for module in (model, carry):
            monkeypatch.setattr(module, "tail_lengths", lambda config: lengths)
    else:
        path = save_model(tmp_path, *judge.fields, swapped=True)
    with engine(path, **options) as llm:
        assert not any(judge.agrees(prompts, generate(llm, prompts)))


# -- the shipped checkpoint ------------------------------------------------------------------------------------------


def test_small_checkpoint(prompts):
    """Runs the default two loops, one loop, and three, which is more than it was trained with."""
    prompts = [[token * 16 for token in prompt] for prompt in prompts]
    for loops in (2, 1, 3):
        with engine(SMALL, hf_overrides={"plt_num_loops": loops}, max_model_len=2048) as llm:
            Judge(SMALL, plt_num_loops=loops).check(prompts, generate(llm, prompts))


def test_small_checkpoint_with_drafts_from_n_grams(monkeypatch):
    """Runs the engine in a separate process, as servers do."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    source = Path(argparse.__file__).read_text().split("\n\n")
    prompts = [tokenizer(piece)["input_ids"] for piece in source if len(piece) > 40][:32]
    with engine(SMALL, max_model_len=2048, speculative_config=NGRAMS, disable_log_stats=False) as llm:
        Judge(SMALL).check(prompts, generate(llm, prompts))
        metrics = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        assert 0 < metrics["vllm:spec_decode_num_accepted_tokens"] < metrics["vllm:spec_decode_num_draft_tokens"]
