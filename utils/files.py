# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Lists the files of a folder."""

from pathlib import Path


def visible_files(folder: Path) -> list[Path]:
    """Returns all files below a folder, sorted, without hidden files and the contents of hidden folders."""
    visible = (file for file in folder.rglob("[!.]*") if "/." not in f"/{file.relative_to(folder).as_posix()}")
    return sorted(file for file in visible if file.is_file())
