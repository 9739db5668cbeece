# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Paths for the tests: the repository and its small checkpoint; and the environment for other processes."""

import os
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "checkpoints" / "small"


def environment(**variables: str) -> dict[str, str]:
    """Returns the environment for a process that a test starts, where the helpers can be imported."""
    folders = [ROOT / "tests", ROOT / "tests" / "helpers", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), **variables}
