# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Where the tests find things: the repository, its small checkpoint, and these helpers from another process."""

import os
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "checkpoints" / "small"


def environment(**variables: str) -> dict[str, str]:
    """For a process that a test starts: there, too, the helpers can be imported."""
    folders = [ROOT / "tests", ROOT / "tests" / "helpers", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), **variables}
