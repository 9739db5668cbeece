# Copyright 2026 The iquest-plt authors
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
"""Where the tests find things: the repository, its small checkpoint, and these helpers from another process."""

import os
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "checkpoints" / "small"


def environment(**variables: str) -> dict[str, str]:
    """For a process that a test starts: there, too, the helpers can be imported."""
    folders = [ROOT / "tests", ROOT / "tests" / "helpers", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), **variables}
