# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`transformers serve` and `transformers chat` on a local folder, accessed over HTTP like any client."""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request

import openai
import pytest
import torch
from paths import SMALL
from servers import COMMAND, serving
from transformers import AutoTokenizer

from iquest_plt import IQuestPLTCoderForCausalLM


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "def read_lines(path):"}]
TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small checkpoint with a chat template."""
    path = tmp_path_factory.mktemp("serve") / "small"
    shutil.copytree(SMALL, path)
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return str(path)


@pytest.fixture(scope="module")
def url(folder):
    with serving(folder) as (_, url):
        yield url


@pytest.fixture(scope="module")
def expected(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = IQuestPLTCoderForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def ask(url, folder, **kwargs):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    return client.chat.completions.create(model=folder, messages=MESSAGES, temperature=0, **kwargs)


def test_chat_completion(url, folder, expected):
    answer = ask(url, folder, max_tokens=TOKENS)
    assert answer.choices[0].message.content == expected
    assert answer.usage.completion_tokens == TOKENS


def test_the_served_model_is_listed(url, folder):
    """The cache of the tests is empty, and older versions of Transformers answer with a 500 then."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    (model,) = client.models.list()
    assert model.id == folder
    assert ask(url, model.id, max_tokens=1).usage.completion_tokens == 1


def test_streaming_and_hanging_up(url, folder, expected):
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(url, folder, max_tokens=TOKENS, stream=True)]
    assert "".join(pieces) == expected and len(pieces) > 3
    stream = ask(url, folder, max_tokens=1500, stream=True)
    for count, _ in enumerate(stream):
        if count == 5:
            stream.close()
            break
    assert ask(url, folder, max_tokens=TOKENS).choices[0].message.content == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_ends_at_the_models_length(folder, url, stream):
    prompt = "x " * 1950
    length = len(AutoTokenizer.from_pretrained(folder)(prompt).input_ids)
    assert 1900 < length < 2048
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    arguments = {"model": folder, "max_tokens": 10**9, "temperature": 0, "stream": stream}
    answer = client.completions.create(prompt=prompt, **arguments)
    last = list(answer)[-1] if stream else answer
    assert last.usage.total_tokens == 2048 and last.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="prompt plus reply at most 2048"):
        client.completions.create(prompt="x " * 2100, **arguments)


def test_bad_bodies_get_an_error_that_names_the_field(folder, url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for wrong, field in ({"max_tokens": "x"}, "max_tokens"), ({"temperature": -1}, "temperature"), ({}, None):
        messages = MESSAGES if field else []
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=folder, messages=messages, extra_body=wrong)
        assert caught.value.param == (field or "messages")
    for raw in (b"{", b"[" * 100_000, b"3"):
        request = urllib.request.Request(f"{url}/v1/chat/completions", raw, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
        assert caught.value.code == 400


def test_a_client_that_hangs_up_does_not_delay_others(folder, url):
    """Includes clients that do not stream. Their replies used to be generated to the end."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    ask(url, folder, max_tokens=1)
    start = time.monotonic()
    assert ask(url, folder, max_tokens=200).usage.completion_tokens == 200
    seconds = time.monotonic() - start
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model=folder, prompt="x", max_tokens=2000, temperature=0, timeout=seconds / 2)
    start = time.monotonic()
    ask(url, folder, max_tokens=1)
    assert time.monotonic() - start < 4 * seconds  # about 9 times as long was left


def test_no_template_a_length_and_an_interrupt(folder, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    (plain / "chat_template.jinja").unlink()
    with open(tmp_path / "errors", "w+") as errors, serving(str(plain), errors=errors) as (server, url):
        assert "has no chat template" in (tmp_path / "errors").read_text()
        with pytest.raises(openai.BadRequestError, match="chat template"):
            ask(url, str(plain), max_tokens=1)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        arguments = {"model": str(plain), "prompt": "x", "temperature": 0, "stream": True}
        stream = client.completions.create(**arguments, max_tokens=10**9)
        next(iter(stream))
        start = time.monotonic()
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) in (0, 1, -signal.SIGINT)
        assert time.monotonic() - start < 8  # a whole reply takes longer, and the wait ends at 10
        assert list(stream)[-1].usage.completion_tokens < 2000


def test_the_requested_length(folder):
    with serving(folder, "--max-length", "40") as (_, url):
        answer = ask(url, folder, max_tokens=10**9)
        assert answer.usage.total_tokens == 40 and answer.choices[0].finish_reason == "length"


def test_chat_command(url, folder):
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    chat = subprocess.run(
        [*COMMAND, "chat", folder, f"{url}/v1", f"max_new_tokens={TOKENS}", "do_sample=False"],
        env=environment,
        input="def read_lines(path):\n!exit\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"{TOKENS} tokens in" in chat.stdout, chat.stdout + chat.stderr
