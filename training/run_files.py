# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Files that a run writes, and reads to resume: JSON files and Trainer's checkpoints."""

import json
import os
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open


COMPILED = "compiled"  # the folder with the result of `compiled.py`, in the folder of a run


def read_json(path: Path) -> dict:
    """Reads a file written by `write_json`. Raises ValueError, naming the file, if it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read ({reason}). Restore it, or choose a new folder.") from error
    return content


def write_json(path: Path, content: dict | list, indent: int | None = 1) -> None:
    """Writes a JSON file atomically: a truncated one would prevent resuming."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=indent) + "\n")
    os.replace(partial, path)


def is_whole(checkpoint: Path) -> bool:
    """Returns True if a checkpoint was written completely, as far as can be checked quickly."""
    names = ("trainer_state.json", "scheduler.pt")
    if not all((checkpoint / name).exists() for name in names):
        return False
    try:
        read_json(checkpoint / "trainer_state.json")
        for file in checkpoint.glob("*.safetensors"):
            with safe_open(file, "pt"):
                pass
    except (ValueError, OSError, SafetensorError):
        return False
    # PyTorch's files are zip archives, which have their table at the end.
    return all(zipfile.is_zipfile(file) for kind in ("*.pt", "*.pth", "*.bin") for file in checkpoint.glob(kind))


def last_checkpoint(out: Path) -> Path | None:
    """Returns the newest complete checkpoint, or None. Deletes newer incomplete ones."""
    folders = [path for path in out.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    found = sorted(folders, key=lambda path: int(path.name.split("-")[1]))
    while found and not is_whole(found[-1]):
        shutil.rmtree(found.pop())
    return found[-1] if found else None
