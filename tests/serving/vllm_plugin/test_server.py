# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`iquest-plt serve` with vLLM, accessed over HTTP like any client."""

import asyncio
import contextlib
import shutil
from argparse import Namespace

import openai
import pytest
import torch
from paths import ROOT, SMALL
from transformers import AutoTokenizer

from iquest_plt import IQuestPLTCoderForCausalLM
from iquest_plt.benchmarks import vllm_load


MESSAGES = [{"role": "user", "content": "def read_lines(path):"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small checkpoint with a chat template, as `iquest-plt convert` makes it."""
    path = tmp_path_factory.mktemp("serve") / "small"
    shutil.copytree(SMALL, path)
    shutil.copy(ROOT / "chat_template.jinja", path)
    return path


@contextlib.contextmanager
def running(*arguments):
    # Only during startup, because the other tests run their engines in this process.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")
        server = vllm_load.server(*arguments)
        started = server.__enter__()
    with contextlib.ExitStack() as stack:
        stack.push(server)
        yield started


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    with running(folder, 2, tmp_path_factory.mktemp("log") / "server.log") as started:
        yield started


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=served[0], api_key="none")


@pytest.fixture(scope="module")
def expected(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = IQuestPLTCoderForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_chat(client, folder, expected):
    ask = {"model": str(folder), "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
    answer = client.chat.completions.create(**ask)
    assert answer.choices[0].message.content.strip() == expected.strip()
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask, stream=True)]
    assert "".join(pieces).strip() == expected.strip() and len(pieces) > 3


@pytest.mark.parametrize(("token", "reason"), [(2, "stop"), (8186, "stop"), (8191, "stop"), (100, "length")])
def test_stop_tokens(client, folder, token, reason):
    answer = client.completions.create(
        model=str(folder), prompt="import os\n", temperature=0, max_tokens=8, logit_bias={str(token): 100}
    )
    assert answer.choices[0].finish_reason == reason


def test_a_reply_that_must_be_a_call(client, folder):
    """The model was not trained to call tools. vLLM's grammar forces a call, and the parser reads it."""
    city = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    answer = client.chat.completions.create(
        model=str(folder),
        messages=MESSAGES,
        max_tokens=200,
        temperature=0,
        tools=[{"type": "function", "function": {"name": "weather", "parameters": city, "strict": True}}],
        tool_choice="required",
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    (call, *_) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather" and call.function.arguments in ('{"city": "Rome"}', '{"city": "Oslo"}')


def test_many_clients(served, folder):
    """A short form of `python -m iquest_plt.benchmarks.vllm_load`."""
    url, _ = served
    arguments = Namespace(minutes=0.2, clients=16)
    prompts = vllm_load.questions(folder, 8)
    counts, _, _ = asyncio.run(vllm_load.load(url, [str(folder)], prompts, arguments, lambda: 0))
    assert counts["equal"] > 8 and counts["left"] > 0
    assert not counts["wrong"] and not counts["error"]


def test_many_clients_with_adapters(folder, tmp_path):
    """Clients ask the base model or an adapter at random. PEFT on the Transformers model checks the right answers."""
    adapted = vllm_load.make_adapters(folder, tmp_path)
    arguments, prompts = Namespace(minutes=0.2, clients=16), vllm_load.questions(folder, 3)
    names = [str(folder), *vllm_load.ADAPTERS]
    with running(folder, 2, tmp_path / "server.log", tmp_path) as (url, _):
        counts, _, _ = asyncio.run(
            vllm_load.load(
                url, names, prompts, arguments, lambda: 0, lambda *asked: vllm_load.is_right(adapted, *asked, 2)
            )
        )
    assert counts["distinct"] >= 2 and not counts["wrong alone"]  # prompts with four different answers
    assert min(counts["answers of", name] for name in names) > 1 and counts["left"] > 0
    assert not counts["wrong"] and not counts["error"]
