# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The code in the README and in docs runs in the order of the page, and its commands and links exist."""

import re
import shlex
import subprocess
import sys

import pytest
from paths import ROOT
from typer.testing import CliRunner

from iquest_plt.cli import app


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
# Pages whose Python blocks and console commands run, in an order in which each finds what it needs.
EXECUTED = [
    "README.md",
    "docs/index.md",
    "docs/generation.md",
    "docs/conversion.md",
    "docs/quantized.md",
    "docs/diagnostics.md",
]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_commands_and_python_blocks_run(monkeypatch, tmp_path):
    """Runs the commands of a page first, since its examples use their output. The pages share variables."""
    has_code = {page for page in PAGES if blocks(page, "python") or blocks(page, "console")}
    assert set(EXECUTED) == has_code - {"CONTRIBUTING.md"}
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    names, commands = {}, set()
    for page in EXECUTED:
        for line in (line for block in blocks(page, "console") for line in block.splitlines()):
            arguments = shlex.split(line, comments=True)
            if arguments[0] == "iquest-plt" and not (arguments[1] == "convert" and (tmp_path / arguments[3]).exists()):
                result = CliRunner().invoke(app, arguments[1:], input="import os\n/exit\n", catch_exceptions=False)
                assert result.exit_code == 0, line
                commands.add(arguments[1])
        for block in blocks(page, "python"):
            exec(compile(block, page, "exec"), names)
    assert commands == {"convert", "verify", "info", "generate", "chat"}
    assert names["cache"].get_seq_length() > 0
    assert isinstance(names["reply"], str)
    assert names["losses"][1] < names["losses"][0], "the README says so"


def test_console_commands_exist():
    lines = [line for page in EXECUTED for block in blocks(page, "console") for line in block.splitlines()]
    commands = [line.split("#")[0].split() for line in lines]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {target for command, target, *_ in commands if command == "make"} <= targets
    assert {command for command, *_ in commands} == {"make", "iquest-plt"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_that_the_docs_use(page):
    """Also in blocks that are not run, because they need a download, a GPU or a server."""
    text = "\n".join(blocks(page, "(?:text|console)")).replace("\\\n", " ")
    for command, rest in re.findall(r"^iquest-plt ([\w-]+)(.*)", text, flags=re.MULTILINE):
        if command != "mlx":  # its options are mlx-lm's
            result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
            assert result.exit_code == 0, command
            own = rest.split("#")[0].split(" -- ")[0]
            assert set(re.findall(r"--[a-z][\w-]*", own)) <= set(re.findall(r"--[a-z][\w-]*", result.stdout)), rest


def test_make_targets_named_for_contributors_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    files = [ROOT / "CONTRIBUTING.md", *(ROOT / ".github").rglob("*.*")]
    command = re.compile(r"(?:`|run: |^)make (?:--silent )?([a-z-]+)", flags=re.MULTILINE)
    named = {target for file in files for target in command.findall(file.read_text())}
    assert {"test", "lint", "docs", "dist", "test-versions"} <= named <= targets


def test_make_notes_prints_the_newest_section_of_the_changelog():
    notes = subprocess.run(["make", "-s", "notes"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert notes.startswith("## [") and notes.count("\n## [") == 0
    assert len(notes.splitlines()) > 2 and notes in changelog


@pytest.mark.parametrize("page", PAGES)
def test_files_and_headings_named_by_the_docs_exist(page):
    text = (ROOT / page).read_text()
    assert "PLACEHOLDER" not in text
    for target, _, heading in re.findall(r"\]\((?!http)([^)#]*)(#([^)]*))?\)", text):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, heading


@pytest.mark.parametrize("page", PAGES)
def test_tests_named_by_the_docs_exist(page):
    names = {path.name for path in (ROOT / "tests").rglob("*.py")}
    text = (ROOT / page).read_text()
    for path in re.findall(r"tests/[\w/]+\.py", text):
        assert (ROOT / path).is_file(), path
    assert set(re.findall(r"\btest_\w+\.py", text)) <= names


def test_the_example_of_make_run():
    """
    Runs offline, from another directory, as remote code. It prints text, the loss for each number of loops, and times.
    """
    options = ["--max-new-tokens", "8", "--hidden", "128", "--timed-tokens", "1"]
    command = [sys.executable, ROOT / "examples" / "complete.py", *options]
    output = subprocess.run(command, cwd="/", stdout=subprocess.PIPE, text=True, check=True).stdout
    (first, second), *_ = re.findall(r"nats per token: ([\d.]+) \(R = 1\), ([\d.]+) \(R = 2\)", output)
    assert float(second) < float(first), "the second loop of the shipped model lowers the loss"
    times = re.findall(r"^  (.*?) +\d+ ms per token +(\d+\.\d\d) times one loop$", output, flags=re.MULTILINE)
    assert [name for name, _ in times] == ["1 loop", "2 loops together", "2 loops in sequence"]
    assert times[0][1] == "1.00"
