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
"""Folders that a command writes its results to, and writes again."""

import contextlib
import importlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..conversion.writer import Folder, new_folder


def check_folder(path: Path, files: frozenset[str], marker: str) -> None:
    """
    Raises ValueError unless `path` can be written: it does not exist, is empty, or holds what an earlier run wrote,
    `marker` among it and nothing but `files`.
    """
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.absolute().parent} does not exist: make it first.")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} is no folder: choose another name.")
    found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if found and (marker not in found or found - files):
        other = min(found - files, default=f"no {marker}")
        raise ValueError(f"{path} holds something else ({other}): choose another folder, or remove it.")


@contextlib.contextmanager
def report_folder(path: Path, files: frozenset[str], marker: str) -> Iterator[Folder]:
    """
    A folder that appears as `path` when the block ends, complete, in place of an earlier one if there is one; if the
    block raises, all stays as it was. Arguments and errors as of `check_folder`.
    """
    check_folder(path, files, marker)
    path = path.absolute()
    if not path.is_dir() or not any(path.iterdir()):
        with new_folder(path, 0) as folder:
            yield folder
        return
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    for leftover in (new, old):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with new_folder(new, 0) as folder:
        yield folder
    os.rename(path, old)
    os.rename(new, path)
    shutil.rmtree(old)


def png(figure) -> bytes:
    """A matplotlib figure as a PNG, the same for the same figure."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return target.getvalue()


def need(*modules: str) -> None:
    """Raises ValueError, naming the extra, if one of the libraries that draw and time is not installed."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise ValueError(f"{module} is not installed: pip install 'iquest-plt[diagnostics]'") from None
