# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The layers compiled, which is vLLM's default: the tokens are those of the Transformers model."""

import pytest
from engines import Judge, count_kinds, engine, generate, save_model, some_prompts
from vllm import envs

from iquest_plt.conversion.convert import convert
from iquest_plt.serving.vllm import model


PROMPTS = some_prompts(24, 500)
MODELS = {"2-loops-gate-hidden": (2, True), "3-loops-gate-query": (3, False)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Compiles anew, and stores nothing outside of the test's folder."""
    envs.disable_envs_cache()  # starting an engine turns it on
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))


def never_together(monkeypatch):
    split = model.split

    def in_sequence(*args):
        together, rest = split(*args)
        return (together, rest) if rest is not None else (None, together)

    monkeypatch.setattr(model, "split", in_sequence)


@pytest.mark.parametrize(("num_loops", "gate_on_hidden"), MODELS.values(), ids=MODELS)
def test_together_and_in_sequence(num_loops, gate_on_hidden, tmp_path, monkeypatch):
    """A pass has 1 row or more, and at times more rows than vLLM compiled for: all loops of all requests."""
    path = save_model(tmp_path, num_loops, gate_on_hidden)
    judge, kinds, rows = Judge(path), count_kinds(monkeypatch), []
    run_layers = model.IQuestPLTCoderForCausalLM._run_layers

    def watched(self, segments):
        rows.append(sum(len(segment.inputs) for segment in segments))
        return run_layers(self, segments)

    monkeypatch.setattr(model.IQuestPLTCoderForCausalLM, "_run_layers", watched)
    most = 24
    with engine(path, enforce_eager=False, max_num_batched_tokens=most, max_num_seqs=most) as llm:
        (served,) = llm.collective_rpc(lambda worker: worker.model_runner.model)
        assert served.model.compiled and not served.model.do_not_compile
        judge.check(PROMPTS, generate(llm, PROMPTS, every=0))
        assert min(kinds[True, True], kinds[True, False]) > 3
        never_together(monkeypatch)
        judge.check(PROMPTS[:12], generate(llm, PROMPTS[:12], every=0))
        judge.check(PROMPTS[:1], generate(llm, PROMPTS[:1]))
    assert min(rows) == 1 and max(rows) > most


def test_quantized_weights(tmp_path):
    path = save_model(tmp_path, 2, True)
    convert(path, tmp_path / "int8", quantize="int8")
    with engine(str(tmp_path / "int8"), enforce_eager=True) as llm:
        expected = [output.outputs[0].token_ids for output in generate(llm, PROMPTS[:8])]
    with engine(str(tmp_path / "int8"), enforce_eager=False) as llm:
        assert [output.outputs[0].token_ids for output in generate(llm, PROMPTS[:8])] == expected
