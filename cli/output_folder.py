# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Folders that a command writes its results to, and writes again."""

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..conversion.writer import PARTIAL, Folder, new_folder


NEW, OLD = ".iquest-plt-new", ".iquest-plt-old"  # folders that nobody else makes


def check_folder(path: Path, files: frozenset[str], marker: str) -> None:
    """
    Raises ValueError unless `path` can be written: it does not exist, is empty, or holds what an earlier run wrote,
    `marker` among it and nothing but `files`; and there is room for a new folder beside it, and no mount point.
    """
    path = path.absolute()
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} does not exist: make it first.")
    try:
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise ValueError(f"{path} is no folder: choose another name.")
        if os.path.ismount(path):
            raise ValueError(f"{path} is a mount point, which cannot be replaced: choose a folder in it.")
        found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        if found and (marker not in found or found - files):
            other = min(found - files, default=f"no {marker}")
            raise ValueError(f"{path} holds something else ({other}): choose another folder, or remove it.")
        for leftover in _beside(path):
            _check_leftover(leftover, files)
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}{NEW}", suffix=PARTIAL, dir=path.parent))
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}.") from error


@contextlib.contextmanager
def report_folder(path: Path, files: frozenset[str], marker: str) -> Iterator[Folder]:
    """
    A folder that appears as `path` when the block ends, complete, in place of an earlier one if there is one; if the
    block raises, all stays as it was. What an earlier run that was killed left beside it is removed. Arguments and
    errors as of `check_folder`.
    """
    check_folder(path, files, marker)
    path = path.absolute()
    new, old = _beside(path)
    _remove_leftover(new, files)
    earlier = path.is_dir() and any(path.iterdir())
    with new_folder(new if earlier else path, 0) as folder:
        yield folder
    _remove_leftover(old, files)
    if earlier:
        _replace(path, new, old)
        shutil.rmtree(old)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the new folder waits, and where the earlier one goes, while they change places."""
    return path.with_name(f".{path.name}{NEW}"), path.with_name(f".{path.name}{OLD}")


def _check_leftover(folder: Path, files: frozenset[str]) -> None:
    """Raises ValueError if `folder` is there and not what a run that was killed left."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir() or {entry.name for entry in folder.iterdir()} - files:
        raise ValueError(f"{folder} is in the way, and holds something else: move it.")


def _remove_leftover(folder: Path, files: frozenset[str]) -> None:
    _check_leftover(folder, files)
    if folder.is_dir():
        shutil.rmtree(folder)


def _replace(path: Path, new: Path, old: Path) -> None:
    """`path` becomes `old`, and `new` becomes `path`; if that fails, ValueError, and `path` is as it was."""
    try:
        os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(old, path)
            raise
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise ValueError(f"{path} was not replaced: {error.strerror}.") from error


def require_modules(*modules: str) -> None:
    """Raises ValueError, naming the extra, if one of the libraries that draw and time is not installed."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise ValueError(f"{module} is not installed: pip install 'iquest-plt[diagnostics]'") from None
