# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs the notebooks in `examples` and writes their new outputs into them:

    python -m iquest_plt.benchmarks.notebooks
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient


EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = ("first_steps.ipynb", "loops.ipynb", "finetune.ipynb")


def execute(name: str, seconds_per_cell: int = 300) -> nbformat.NotebookNode:
    """Returns the notebook with new outputs. Raises nbclient's CellExecutionError if a cell fails."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    resources = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(
        notebook, timeout=seconds_per_cell, kernel_name="python3", resources=resources, record_timing=False
    ).execute()
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):  # without the libraries' warnings
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def main() -> None:
    for name in NOTEBOOKS:
        nbformat.write(execute(name), EXAMPLES / name)
        print(f"{name}: {(EXAMPLES / name).stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
