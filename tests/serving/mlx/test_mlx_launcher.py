# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""mlx-lm's own commands on a PLT: `iquest-plt mlx generate`, `cache_prompt`, `server`, `lora`, `fuse`, `convert`."""

import contextlib
import importlib.metadata
import json
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from command_line import run
from mlx_models import launcher, mx, nn, utils
from paths import SMALL, environment
from servers import free_port, wait_until_healthy

from iquest_plt.conversion.convert import convert


generate = pytest.importorskip("mlx_lm.generate")
HELLO = [{"role": "user", "content": "Write a function that adds two numbers."}]


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    """The launcher sets the process's arguments, which a test must not keep."""
    monkeypatch.setattr(sys, "argv", ["iquest-plt"])


@pytest.fixture(scope="module")
def quantized_folder(mini_plt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "mlx"
    convert(str(mini_plt), folder, to="mlx", bits=4)
    return folder


def logits_of(model) -> np.ndarray:
    return np.array(model(mx.arange(10, 40)[None]).astype(mx.float32))


# -- refused arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--kv-bits", "4"], "Leave out --kv-bits"),
        (["--kv-bits=4"], "Leave out --kv-bits"),
        (["--kv-b", "4"], "Leave out --kv-bits"),
        (["--max-kv-size", "100"], "Leave out --max-kv-size"),
        (["--max-k=100"], "Leave out --max-kv-size"),
        (["--draft-model", "other"], "Leave out --draft-model"),
        (["--dr", "other"], "Leave out --draft-model"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_would_be_ignored_are_refused(options, named):
    code, _, error = run("mlx", "generate", "--model", SMALL, *options)
    assert code == 1 and named in error


def test_other_options_are_not_refused():
    given = ["--max-tokens", "3", "--kv-group-size", "64", "--decode-concurrency", "2", "--prompt=--kv-bits"]
    launcher.check(["server", *given, "--dtype", "float16", "-m", "3"])


def test_unknown_commands_are_refused():
    for command in ("evaluate", "foo", "--help"):
        with pytest.raises(ValueError, match=r"is not a command for PLT models\. Use one of generate, chat, server"):
            launcher.run([command])
    with pytest.raises(ValueError, match="The command is missing"):
        launcher.run([])


def test_without_mlx_lm_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    for given in (["mlx", "generate", "--model", SMALL], ["convert", SMALL, tmp_path / "out", "--to", "mlx"]):
        code, _, error = run(*given)
        assert (
            code == 1
            and "needs mlx-lm, which is not installed: pip install '.[mlx]' in a checkout of iquest-plt" in error
        )
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.33.0")
    assert "needs mlx-lm 0.32, but 0.33.0 is installed" in run("mlx", "generate", "--model", SMALL)[2]
    assert not any(tmp_path.iterdir())


# -- generate, cache_prompt --------------------------------------------------------------------------------------------


def reply(capsys, *options) -> str:
    """Returns what `iquest-plt mlx generate` prints as the reply."""
    capsys.readouterr()
    launcher.run(["generate", *map(str, options), "--verbose", "False"])
    return capsys.readouterr().out.rstrip("\n")


@pytest.fixture(scope="module")
def expected(mini) -> str:
    """24 greedy tokens for HELLO, from Python."""
    model, tokenizer = mini
    prompt = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True)
    return generate.generate(model, tokenizer, prompt, max_tokens=24)


def test_generate(mini_folder, expected, capsys):
    options = ["--prompt", HELLO[0]["content"], "--max-tokens", "24"]
    assert reply(capsys, "--model", mini_folder, *options) == expected.rstrip("\n")
    # A folder for Transformers works too.
    assert reply(capsys, "--model", SMALL, "--max-tokens", "2")


def test_no_code_of_the_folder_runs(mini_folder, tmp_path, capsys):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in mini_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "plt_mlx.py").unlink()
    (folder / "plt_mlx.py").write_text("raise SystemExit('this code must not run')")
    assert reply(capsys, "--model", folder, "--max-tokens", "2")


def test_cached_prompts(mini_folder, mini, tmp_path, capsys):
    """The prompt's tokens are read from the file, and the reply is the same."""
    file = tmp_path / "prompt.safetensors"
    launcher.run(
        ["cache_prompt", "--model", str(mini_folder), "--prompt", "def add(a, b):", "--prompt-cache-file", str(file)]
    )
    found = reply(
        capsys, "--model", mini_folder, "--prompt-cache-file", file, "--prompt", " # adds", "--max-tokens", "12"
    )
    model, tokenizer = mini
    start = tokenizer.apply_chat_template(
        [{"role": "user", "content": "def add(a, b):"}], add_generation_prompt=False, continue_final_message=True
    )
    rest = tokenizer.apply_chat_template(
        [{"role": "user", "content": "<query>"}], add_generation_prompt=True, tokenize=False
    )
    end = tokenizer.encode(" # adds" + rest.partition("<query>")[2], add_special_tokens=False)
    assert found == generate.generate(model, tokenizer, start + end, max_tokens=12).rstrip("\n")


# -- server ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mlx_server(folder):
    port = free_port()
    command = [sys.executable, "-m", "iquest_plt.serving.mlx", "server", "--model", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, env=environment(HF_HUB_OFFLINE="1"), stderr=subprocess.DEVNULL)
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_chats_with_the_server(mini_folder, mini, expected):
    openai = pytest.importorskip("openai")
    model, tokenizer = mini
    with mlx_server(mini_folder) as url:
        client = openai.OpenAI(base_url=url, api_key="none")

        def ask(messages, count=24) -> tuple[str, int]:
            answer = client.chat.completions.create(
                model="default_model", messages=messages, max_tokens=count, temperature=0
            )
            details = answer.usage.prompt_tokens_details
            message = answer.choices[0].message
            return (message.content or "") + (getattr(message, "reasoning", None) or ""), details.cached_tokens

        for again in (False, True):  # the second time, the server continues a copy of the prompt's cache
            text, cached = ask(HELLO)
            assert text.strip() and text.strip() == expected.strip()
            assert (cached > 0) == again
        turns = [*HELLO, {"role": "assistant", "content": text}, {"role": "user", "content": "Now subtract."}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
        second, _ = ask(turns, 12)
        assert second.strip() == generate.generate(model, tokenizer, prompt, max_tokens=12).strip()

        # Requests of different lengths at the same time.
        questions = [[{"role": "user", "content": "x = 1; " * count}] for count in (1, 30, 7)]
        with ThreadPoolExecutor(3) as pool:
            answers = [text for text, _ in pool.map(lambda messages: ask(messages, 8), questions)]
        for messages, answer in zip(questions, answers, strict=True):
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            assert answer.strip() == generate.generate(model, tokenizer, prompt, max_tokens=8).strip()


# -- lora, fuse, convert -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    texts = [f"def add_{number}(a, b):\n    return a + b + {number}\n" for number in range(8)]
    for name in ("train", "valid"):
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["float32", "4 bits"])
def test_lora_and_fuse(kind, mini_folder, quantized_folder, data, tmp_path, capsys):
    folder = mini_folder if kind == "float32" else quantized_folder
    adapters, fused = tmp_path / "adapters", tmp_path / "fused"
    options = ["--train", "--data", data, "--adapter-path", adapters, "--iters", "6", "--batch-size", "2"]
    options += ["--num-layers", "2", "--learning-rate", "1e-3", "--steps-per-report", "3", "--val-batches", "1"]
    launcher.run(["lora", "--model", str(folder), *map(str, options)])
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    losses = [float(loss) for loss in re.findall(r"\bval\s+([0-9.]+)", printed)]
    assert len(losses) >= 2 and losses[-1] < losses[0] - 0.1
    trained = mx.load(str(adapters / "adapters.safetensors"))
    assert trained and not any("plt_gate" in name for name in trained)

    options = ["--adapter-path", str(adapters), "--save-path", str(fused)]
    # Otherwise the sum would be rounded to 4 bits.
    launcher.run(["fuse", "--model", str(folder), *options, *(["--dequantize"] if kind == "4 bits" else [])])
    base, adapted, merged = (
        logits_of(utils.load(str(path), adapter_path=adapter)[0])
        for path, adapter in ((folder, None), (folder, str(adapters)), (fused, None))
    )
    assert np.abs(adapted - base).max() > 0.1
    assert np.abs(merged - adapted).max() < 1e-3
    assert json.loads((fused / "config.json").read_text())["model_file"] == "plt_mlx.py"
    assert (fused / "plt_mlx.py").read_text() == (folder / "plt_mlx.py").read_text()


def test_mlx_lms_own_convert(mini_folder, tmp_path):
    """It quantizes, and keeps the gates."""
    target = tmp_path / "converted"
    launcher.run(["convert", "--hf-path", str(mini_folder), "--mlx-path", str(target), "-q", "--q-bits", "8"])
    model, _ = utils.load(str(target))
    attention = model.layers[0].self_attn
    assert isinstance(attention.q_proj, nn.QuantizedLinear) and attention.plt_gate.weight.dtype == mx.float32
    reference = utils.load(str(mini_folder))[0]
    assert np.abs(logits_of(model) - logits_of(reference)).max() < 0.1 * np.abs(logits_of(reference)).max()
