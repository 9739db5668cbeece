# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""A real model in other tools: quantized weights, diagnostics, lm-evaluation-harness, a server."""

import json

import openai
import pytest
import torch
from command_line import run
from real_text import QUESTIONS, chat, held_out, loss
from servers import serving
from transformers import AutoModelForCausalLM

from iquest_plt.conversion.convert import convert
from iquest_plt.diagnostics import encode_documents, measure


TOKENS = 24


@pytest.mark.parametrize("scheme, limit", [("int8", 0.005), ("int4", 0.06)])
def test_quantized_weights(folder, tokenizer, tmp_path, scheme, limit):
    """The file's weights have about 4 bits on another grid, so int4 quantizes them a second time."""
    convert(str(folder), tmp_path / scheme, dtype="bfloat16", quantize=scheme)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / scheme, dtype="auto")
    rows = held_out(tokenizer)
    for loops in (1, 2):
        expected = loss(whole, rows, num_loops=loops)
        assert loss(small, rows, num_loops=loops) == pytest.approx(expected, rel=limit)
    inputs = chat(tokenizer, QUESTIONS[0])
    options = {"max_new_tokens": 12, "do_sample": False}
    tokens = small.generate(**inputs, **options)
    assert "Paris" in tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])
    assert torch.equal(tokens, small.generate(**inputs, **options, loop_schedule="sequence"))


def test_diagnostics_measure_the_models_loss(plt, tokenizer):
    rows = held_out(tokenizer)[:2]
    texts = {f"{index}.txt": tokenizer.decode(row) for index, row in enumerate(rows)}
    documents = encode_documents(tokenizer, texts)
    result = measure(plt, documents, max_loops=2)
    for loops in (1, 2):
        tokens = [torch.tensor(document.ids) for document in documents]
        expected = sum(loss(plt, [ids], num_loops=loops) * (len(ids) - 1) for ids in tokens)
        expected /= sum(len(ids) - 1 for ids in tokens)
        assert result.metrics["loss"].mean[loops - 1] == pytest.approx(expected, rel=1e-4)
    assert result.recommendation.loops == 1  # nothing has trained the second loop


def test_lm_evaluation_harness_scores_one_loop_as_the_llama(plt, llama, tokenizer, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    questions = [
        ("The capital of France is", ["Paris", "Rome", "Berlin"], 0),
        ("Water freezes at a temperature of", ["a hundred degrees", "zero degrees", "fifty degrees"], 1),
        ("In Python, a function is defined with the keyword", ["func", "lambda", "def"], 2),
        ("The opposite of hot is", ["cold", "warm", "red"], 0),
        ("Seven times eight is", ["54", "56", "63"], 1),
        ("The largest planet of the solar system is", ["Mars", "Venus", "Jupiter"], 2),
    ]
    lines = [json.dumps(dict(zip(("query", "choices", "gold"), question, strict=True))) for question in questions]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    task = {
        "task": "local_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }

    def evaluate(model):
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
        result = lm_eval.simple_evaluate(model=harness, tasks=[task], log_samples=True)
        return result["results"]["local_questions"]["acc,none"], [
            sample["filtered_resps"] for sample in result["samples"]["local_questions"]
        ]

    accuracy, answers = evaluate(llama)
    assert accuracy > 1 / 3
    assert evaluate(plt.with_num_loops(1)) == (accuracy, answers)
    accuracy, looped = evaluate(plt)
    assert accuracy > 1 / 3 and looped != answers


@pytest.fixture(scope="module")
def url(folder):
    with serving(str(folder)) as (_, url):
        yield url


@pytest.fixture(scope="module")
def ask(url, folder):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def request(question=QUESTIONS[1], **kwargs):
        messages = [{"role": "user", "content": question}]
        return client.chat.completions.create(model=str(folder), messages=messages, temperature=0, **kwargs)

    return request


@pytest.fixture(scope="module")
def expected(folder, tokenizer):
    inputs = chat(tokenizer, QUESTIONS[1])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_server_answers_whole_and_streamed(ask, expected):
    assert ask(max_tokens=TOKENS).choices[0].message.content == expected.strip()  # the server strips whole replies
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(max_tokens=TOKENS, stream=True)]
    assert "".join(pieces) == expected and len(pieces) > 3


def test_the_server_ends_at_a_stop_string(ask, expected):
    stop = expected.split()[3]
    answer = ask(max_tokens=TOKENS, stop=[stop]).choices[0]
    assert answer.finish_reason == "stop"
    assert expected.startswith(answer.message.content) and len(answer.message.content) < len(expected)


def test_the_server_takes_tools_and_refuses_logprobs(ask):
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": parameters}}
    answer = ask(max_tokens=4, tools=[tool])
    assert answer.usage.completion_tokens <= 4 and answer.choices[0].message.content is not None
    with pytest.raises(openai.BadRequestError, match="logprobs is not supported"):
        ask(max_tokens=4, logprobs=True)


def test_the_demo(folder, tokenizer):
    """A chat as `make demo` opens it, where `/loops` switches the number of loops between two equal questions."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = chat(tokenizer, QUESTIONS[1])
    prompt = inputs["input_ids"].shape[1]
    answers = []
    for loops in (1, 2):
        output = model.generate(**inputs, num_loops=loops, max_new_tokens=TOKENS, do_sample=False)
        answers.append(tokenizer.decode(output[0, prompt:], skip_special_tokens=True).strip())
    lines = f"/loops 1\n{QUESTIONS[1]}\n/loops 2\n/clear\n{QUESTIONS[1]}\n/exit\n"
    code, output, notes = run("chat", folder, "--max-new-tokens", TOKENS, "--greedy", input=lines)
    assert code == 0
    transcript = [answer.strip() for answer in output.split("> ") if answer.strip()]
    assert transcript == answers
    assert "1 loops from now on" in notes and "2 loops, " in notes
