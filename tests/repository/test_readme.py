# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The README's code runs in the order of the page, and its commands exist."""

import re
import shlex
import subprocess
import sys

import pytest
from paths import ROOT
from typer.testing import CliRunner

from iquest_plt.cli import app


README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/callers.md", "docs/mlx.md", "docs/serving.md"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_commands_and_python_blocks_run(monkeypatch, tmp_path):
    """Runs the commands first, since later examples use their output."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("console") for line in block.splitlines() if line.startswith("iquest-plt ")]
    assert {command.split()[1] for command in commands} == {"convert", "verify", "info", "generate", "chat"}
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        result = CliRunner().invoke(app, arguments, input="import os\n/exit\n", catch_exceptions=False)
        assert result.exit_code == 0, command
    names = {}
    assert len(blocks("python")) >= 6
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["cache"].get_seq_length() > 0
    assert isinstance(names["reply"], str)


def test_console_commands_exist():
    commands = [line.split("#")[0].split() for block in blocks("console") for line in block.splitlines()]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {target for command, target, *_ in commands if command == "make"} <= targets
    assert {command for command, *_ in commands} == {"make", "iquest-plt"}


def test_files_named_by_the_readme_exist():
    assert "PLACEHOLDER" not in README
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_tests_named_by_the_docs_exist(page):
    names = {path.name for path in (ROOT / "tests").rglob("*.py")}
    text = (ROOT / page).read_text()
    for path in re.findall(r"tests/[\w/]+\.py", text):
        assert (ROOT / path).is_file(), path
    assert set(re.findall(r"\btest_\w+\.py", text)) <= names


def test_the_example_of_make_run():
    """Runs the example offline, from another directory, as remote code: it prints text and two timings."""
    command = [sys.executable, ROOT / "examples" / "complete.py", "--max-new-tokens", "8", "--repeats", "1"]
    result = subprocess.run(command, cwd="/", stdout=subprocess.PIPE, text=True, check=True)
    assert re.search(r"loops together: +\d+\.\d tokens/s\n +loops in sequence: +\d+\.\d tokens/s", result.stdout)
