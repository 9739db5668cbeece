# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""`iquest-plt serve`: which server it starts, and with what. The servers themselves have tests of their own."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import SMALL, run


OPTIONS = ["--port", "8123", "--max-length", "512", "--dtype", "float32"]


@pytest.fixture
def started(monkeypatch):
    """The commands that would have replaced this process."""
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
def test_vllm_is_started_where_it_is_installed(started, has_vllm):
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
def test_transformers_is_started_where_it_is_not(started, has_vllm):
    code, _, error = run("serve", SMALL, *OPTIONS)
    assert code == 0 and "--max-length has no effect" in error
    ((_, *arguments),) = started
    assert " ".join(arguments) == (
        f"-m iquest_plt.serving.transformers_cli serve {SMALL} --host 127.0.0.1 --port 8123 --dtype float32"
    )
    for option in (["--num-loops", "3"], ["--tensor-parallel", "2"]):
        code, _, error = run("serve", SMALL, *option)
        assert code == 1 and f"{option[0]} needs vLLM" in error
    assert len(started) == 1


def test_what_is_no_model_is_refused(started, tmp_path):
    folder = tmp_path / "no-tokenizer"
    shutil.copytree(SMALL, folder, ignore=shutil.ignore_patterns("tokenizer*", "model.safetensors"))
    code, _, error = run("serve", folder)
    assert code == 1 and "iquest-plt convert" in error
    code, _, _ = run("serve", tmp_path)
    assert code == 1
    assert not started


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_the_plugin_folder_imports_without_vllm():
    """Entry points are listed by tools that do not have vLLM: naming the function needs nothing."""
    code = "from iquest_plt.serving.vllm import register"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(SMALL).parent, check=False).returncode == 0
