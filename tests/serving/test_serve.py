# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`iquest-plt serve`: which server it starts, and with which options. The servers have separate tests."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run
from paths import SMALL

from iquest_plt.serving.request_checks import find_problem, without_nulls
from iquest_plt.serving.transformers_cli import take_max_length


OPTIONS = ["--port", "8123", "--max-length", "512", "--dtype", "float32"]


@pytest.fixture
def started(monkeypatch):
    """Records the commands that would have replaced this process."""
    commands = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: commands.append(arguments))
    return commands


@pytest.fixture
def has_vllm(monkeypatch, request):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: request.param if name == "vllm" else find(name, *rest)
    )


@pytest.mark.parametrize("has_vllm", [True], indirect=True)
def test_vllm_is_started_if_it_is_installed(started, has_vllm):
    code, _, _ = run("serve", SMALL, *OPTIONS, "--num-loops", "3", "--tensor-parallel", "2", "--", "--seed", "5")
    assert code == 0
    ((python, *arguments),) = started
    assert python == sys.executable
    assert " ".join(arguments) == (
        f"-m vllm.entrypoints.openai.api_server --model {SMALL} --served-model-name {SMALL} --host 127.0.0.1 "
        '--port 8123 --dtype float32 --tensor-parallel-size 2 --max-model-len 512 --hf-overrides {"plt_num_loops": 3} '
        "--enable-auto-tool-choice --tool-call-parser loopcoder --reasoning-parser loopcoder --seed 5"
    )
    run("serve", SMALL, "--no-parsers")
    assert "parser" not in " ".join(started[1]) and "hf-overrides" not in " ".join(started[1])


@pytest.mark.parametrize("has_vllm", [None], indirect=True)
def test_transformers_is_started_otherwise(started, has_vllm):
    code, _, error = run("serve", SMALL, *OPTIONS)
    assert code == 0 and "no effect" not in error
    ((_, *arguments),) = started
    assert " ".join(arguments) == (
        f"-m iquest_plt.serving.transformers_cli serve {SMALL} --host 127.0.0.1 --port 8123 --dtype float32 "
        "--max-length 512"
    )
    assert "--no-parsers has no effect" in run("serve", SMALL, "--no-parsers")[2]
    started.pop()
    for option in (["--num-loops", "3"], ["--tensor-parallel", "2"]):
        code, _, error = run("serve", SMALL, *option)
        assert code == 1 and f"{option[0]} needs vLLM" in error
    assert len(started) == 1


def test_an_unsupported_length_is_rejected(started):
    for length in ("1", "2049"):
        code, _, error = run("serve", SMALL, "--max-length", length)
        assert code == 1 and "--max-length must be 2 to 2048" in error
    assert not started


@pytest.mark.parametrize("has_vllm", [True], indirect=True)
def test_a_model_that_cannot_chat_is_reported_at_startup(started, has_vllm):
    assert "has no chat template" in run("serve", SMALL)[2]


def test_the_servers_length_is_taken_from_its_arguments():
    arguments = ["transformers", "serve", "model", "--max-length", "100", "--port", "1"]
    assert take_max_length(arguments) == 100 and arguments == ["transformers", "serve", "model", "--port", "1"]
    arguments = ["transformers", "serve", "model", "--max-length=7"]
    assert take_max_length(arguments) == 7 and arguments == ["transformers", "serve", "model"]
    assert take_max_length(arguments) is None and arguments == ["transformers", "serve", "model"]
    for wrong in (["--max-length"], ["--max-length", "x"], ["--max-length=-1"], ["--max-length", "1"]):
        with pytest.raises(SystemExit, match="--max-length must be a number of tokens"):
            take_max_length(["transformers", "serve", *wrong])


# -- bodies ------------------------------------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": "hello"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
WRONG = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"content": "hello"}]}, "messages[0]"),
    ({"messages": [*HELLO, {"role": "user", "content": 1}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages[0].tool_calls[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": 3}]}, "messages[0].tool_calls[0]"),
    ({"messages": HELLO, "max_tokens": "many"}, "max_tokens"),
    ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    ({"messages": HELLO, "max_tokens": 1.5}, "max_tokens"),
    ({"messages": HELLO, "max_completion_tokens": True}, "max_completion_tokens"),
    ({"messages": HELLO, "temperature": -1}, "temperature"),
    ({"messages": HELLO, "temperature": float("nan")}, "temperature"),
    ({"messages": HELLO, "temperature": 10**400}, "temperature"),
    ({"messages": HELLO, "top_p": 2}, "top_p"),
    ({"messages": HELLO, "frequency_penalty": -1}, "frequency_penalty"),
    ({"messages": HELLO, "seed": "1"}, "seed"),
    ({"messages": HELLO, "stop": ["a", ""]}, "stop"),
    ({"messages": HELLO, "stream": "yes"}, "stream"),
    ({"messages": HELLO, "logit_bias": {"a": 1}}, "logit_bias"),
    ({"messages": HELLO, "tools": ["f"]}, "tools"),
    ({"messages": HELLO, "chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"messages": HELLO, "generation_config": "{"}, "generation_config"),
    ({"messages": HELLO, "model": 3}, "model"),
    ([], None),
    (None, None),
]


@pytest.mark.parametrize(("body", "field"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_an_invalid_field_is_named(body, field):
    problem = find_problem("/v1/chat/completions", body)
    assert problem.field == field and (field or "body") in problem.message


def test_valid_fields():
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "content": [{"type": "text", "text": "1"}]},
    ]
    body = {"messages": messages, "max_tokens": 1e9, "temperature": 0, "stop": "a", "seed": None, "stream": False}
    assert find_problem("/v1/chat/completions", body) is None
    assert without_nulls(body)["messages"][1] == {"role": "assistant", "tool_calls": [CALL]}
    assert "seed" not in without_nulls(body)
    assert find_problem("/v1/completions", {"prompt": "x"}) is None
    for prompt in ("", ["x"], None):
        assert find_problem("/v1/completions", {"prompt": prompt}).field == "prompt"
    calls = [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}]
    for given in ("x", HELLO, [*HELLO, *calls], [{"type": "input_text", "text": "x"}]):
        assert find_problem("/v1/responses", {"input": given}) is None
    for given, field in ((3, "input"), ([{"role": 1}], "input[0]"), ([*HELLO, {"type": "function_call"}], "input[1]")):
        assert find_problem("/v1/responses", {"input": given}).field == field


def test_a_folder_without_a_model_is_rejected(started, tmp_path):
    folder = tmp_path / "no-tokenizer"
    shutil.copytree(SMALL, folder, ignore=shutil.ignore_patterns("tokenizer*", "model.safetensors"))
    code, _, error = run("serve", folder)
    assert code == 1 and "iquest-plt convert" in error
    code, _, _ = run("serve", tmp_path)
    assert code == 1
    assert not started


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_the_plugin_folder_imports_without_vllm():
    """Tools without vLLM list entry points, so importing the function must not need vLLM."""
    code = "from iquest_plt.serving.vllm import register"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(SMALL).parent, check=False).returncode == 0


@pytest.mark.parametrize(
    "field, ignored, asked",
    [
        ("n", 1, 2),
        ("logprobs", False, True),
        ("logprobs", False, 0),
        ("top_logprobs", 0, 3),
        ("presence_penalty", 0.0, 0.5),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("tool_choice", "auto", "required"),
        ("functions", None, []),
    ],
)
def test_what_the_server_would_ignore_is_refused(field, ignored, asked):
    body = {"messages": [{"role": "user", "content": "x"}], "user": "me", "stream_options": {"include_usage": True}}
    assert find_problem("/v1/chat/completions", {**body, field: ignored}) is None
    problem = find_problem("/v1/chat/completions", {**body, field: asked})
    assert problem.field == field and "vLLM" in problem.message


def test_a_prompt_is_refused_where_it_is_not_the_input():
    assert find_problem("/v1/completions", {"prompt": "x", "echo": False}) is None
    assert find_problem("/v1/responses", {"input": "x", "prompt": {"id": "p"}}).field == "prompt"
