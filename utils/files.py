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
"""Files of a folder."""

from pathlib import Path


def visible_files(folder: Path) -> list[Path]:
    """All files in a folder and those below it, sorted, but the hidden ones and what is in hidden folders."""
    visible = (file for file in folder.rglob("[!.]*") if "/." not in f"/{file.relative_to(folder).as_posix()}")
    return sorted(file for file in visible if file.is_file())
