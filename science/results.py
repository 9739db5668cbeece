# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of committed results, and lists of results that grow model by model."""

import json
import subprocess
from pathlib import Path

from ..training.run_files import write_json


FOLDER = Path(__file__).parent.parent / "docs" / "science"


def read_results(file: Path) -> list[dict]:
    """Returns the list in a file; empty if there is no file."""
    return json.loads(file.read_text()) if file.exists() else []


def add_result(file: Path, result: dict) -> None:
    """Adds a result to the list in a file. Replaces the one of the same model."""
    others = [known for known in read_results(file) if known["model"] != result["model"]]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, [*others, result])


def current_commit() -> str | None:
    """Returns the commit of this checkout, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
