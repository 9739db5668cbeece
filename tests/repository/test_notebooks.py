# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The notebooks run, what they say about the small model holds, and their stored outputs are small."""

import re

import pytest
from paths import ROOT


nbformat = pytest.importorskip("nbformat", reason="pip install '.[dev]' in a checkout of iquest-plt")
notebooks = pytest.importorskip(
    "iquest_plt.benchmarks.notebooks", reason="pip install '.[dev]' in a checkout of iquest-plt"
)


def printed(notebook) -> str:
    """Returns everything that the notebook's cells print."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "".join(output.text for output in outputs if output.output_type == "stream")


def run(name: str) -> str:
    return printed(notebooks.execute(name))


def test_the_list_is_complete():
    assert {path.name for path in (ROOT / "examples").glob("*.ipynb")} == set(notebooks.NOTEBOOKS)


@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_stored_outputs_are_small_and_name_no_machine(name):
    path = ROOT / "examples" / name
    assert path.stat().st_size < 60_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run in order"
    assert not re.search(r"/(home|root|tmp|usr|Users)/", str([cell.outputs for cell in code]))
    assert not any(output.get("name") == "stderr" for cell in code for output in cell.outputs)


@pytest.mark.slow
def test_first_steps():
    text = run("first_steps.ipynb")
    losses = [float(loss) for loss in re.findall(r"R = \d: ([\d.]+) nats per token", text)]
    assert len(losses) == 4 and losses[1] < losses[0], "the second loop helps"
    times = re.findall(r"^(.*?) +([\d.]+) times the time of one loop$", text, flags=re.MULTILINE)
    assert [name for name, _ in times] == ["1 loop", "4 loops together", "4 loops in sequence"]


def test_loops():
    text = run("loops.ipynb")
    corrected, spoiled = map(int, re.search(r"loop 2 corrects (\d+) and spoils (\d+)", text).groups())
    losses = [float(loss) for loss in re.findall(r"after loop \d: loss ([\d.]+)", text)]
    assert corrected > spoiled and losses[1] < losses[0]
    gates = [float(gate) for gate in re.findall(r"([01]\.\d\d) █", text)]
    assert gates and all(0 <= gate <= 1 for gate in gates)


@pytest.mark.slow
def test_finetune():
    pytest.importorskip("accelerate", reason="pip install '.[training]' in a checkout of iquest-plt")
    text = run("finetune.ipynb")
    before, after = map(float, re.search(r"loss: ([\d.]+) before, ([\d.]+) after", text).groups())
    assert after < before - 0.1
    assert f"of the saved model: {after:.3f}" in text
