# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Writes every table and picture of the science report from the committed metrics:

    python -m iquest_plt.science.report

Reads the JSON files in docs/science; only runs.json must exist. Writes tables.md and the pictures there.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..utils.figures import try_draw
from ..utils.scripts import one_line_errors
from . import report_models, report_tracking
from .report_family import FAMILY_TABLES, Family, draw_losses
from .results import FOLDER, read_results


FAMILIES = {"runs.json": "losses.png", "runs_small.json": "losses_small.png", "runs_longer.json": "losses_longer.png"}
FURTHER_TABLES: dict[str, dict[str, Callable[[list[dict]], str]]] = {
    "contrast.json": {"Contrast of loops, further models": report_models.contrast_table},
    "copying.json": {"Copies, further models": report_models.copying_table},
    "holes.json": {"Loops per token": report_models.holes_table},
    "tracking.json": {
        "State tracking": report_tracking.accuracy_table,
        "State tracking, differences": report_tracking.differences_table,
        "State tracking, learned offsets": report_tracking.offsets_table,
    },
}
HEAD = "# All numbers\n\nWritten by `python -m iquest_plt.science.report` from the JSON files here."


def write_report(folder: Path) -> None:
    """
    Raises:
        ValueError: without runs.json.
    """
    if not read_results(folder / "runs.json"):
        raise ValueError(f"{folder}/runs.json has no runs. Train some with `python -m iquest_plt.science.train`.")
    sections = [HEAD]
    for file, picture in FAMILIES.items():
        if runs := read_results(folder / file):
            family = Family(runs)
            sections += [f"## {title}, {family}\n\n{table_of(family)}" for title, table_of in FAMILY_TABLES.items()]
            try_draw(picture, draw_losses, folder / picture, family)
    for file, tables in FURTHER_TABLES.items():
        if results := read_results(folder / file):
            sections += [f"## {title}\n\n{table_of(results)}" for title, table_of in tables.items()]
    (folder / "tables.md").write_text("\n\n".join(sections) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args(argv).folder
    with one_line_errors():
        write_report(folder)


if __name__ == "__main__":
    main()
