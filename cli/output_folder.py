# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Folders for a command's results, replaced as a whole when the command runs again."""

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..conversion.writer import Folder

NEW, OLD = ".iquest-plt-new", ".iquest-plt-old"  # suffixes that only this module uses


def check_folder(path: Path, files: frozenset[str], marker: str) -> None:
    """
    Raises ValueError if `path` cannot be written.

    A valid path does not exist, is empty, or holds the results of an earlier run: the file `marker`, and no other files
    than `files`. It is not a mount point, and its parent folder is writable.
    """
    from ..conversion.writer import PARTIAL

    path = path.absolute()
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} does not exist. Create it first.")
    try:
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise ValueError(f"{path} is not a folder. Choose another name.")
        if os.path.ismount(path):
            raise ValueError(f"{path} is a mount point, which cannot be replaced. Choose a folder inside it.")
        found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        if found and (marker not in found or found - files):
            other = min(found - files, default=f"no {marker}")
            raise ValueError(f"{path} does not hold an earlier result ({other}). Choose another folder or remove it.")
        for leftover in _beside(path):
            _check_leftover(leftover, files)
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}{NEW}", suffix=PARTIAL, dir=path.parent))
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}.") from error


@contextlib.contextmanager
def report_folder(path: Path, files: frozenset[str], marker: str) -> Iterator["Folder"]:
    """
    Yields a folder that becomes `path` when the block ends, and replaces an earlier one. If the block raises, nothing
    changes. Leftovers of an earlier run that was killed are removed. Takes the arguments of `check_folder` and raises
    its errors.
    """
    from ..conversion.writer import new_folder

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
    """Returns the temporary paths of the new and of the earlier folder while they are swapped."""
    return path.with_name(f".{path.name}{NEW}"), path.with_name(f".{path.name}{OLD}")


def _check_leftover(folder: Path, files: frozenset[str]) -> None:
    """Raises ValueError if `folder` exists but is not the leftover of a killed run."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir() or {entry.name for entry in folder.iterdir()} - files:
        raise ValueError(f"{folder} is in the way and was not written by this command. Move it.")


def _remove_leftover(folder: Path, files: frozenset[str]) -> None:
    _check_leftover(folder, files)
    if folder.is_dir():
        shutil.rmtree(folder)


def _replace(path: Path, new: Path, old: Path) -> None:
    """Renames `path` to `old` and `new` to `path`. Raises ValueError if that fails, with `path` unchanged."""
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
    """Raises ValueError if an optional library is not installed, naming the extra to install."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise ValueError(
                f"{module} is not installed: pip install '.[diagnostics]' in a checkout of iquest-plt"
            ) from None
