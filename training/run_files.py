# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What a run writes and reads back when it goes on: JSON files, and the checkpoints of the library's Trainer."""

import json
import os
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open


def read_json(path: Path) -> dict:
    """What `write_json` wrote. Raises ValueError, which names the file, if it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read ({reason}): restore it, or choose a new folder.") from error
    return content


def write_json(path: Path, content: dict | list, indent: int | None = 1) -> None:
    """Writes the file whole or not at all: one that is cut off would stop the next run."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=indent) + "\n")
    os.replace(partial, path)


def is_whole(checkpoint: Path) -> bool:
    """Whether Trainer came to the end of writing a checkpoint: what is there can be read, as far as that is quick."""
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
    # PyTorch's files are zip archives, whose table stands at their end.
    return all(zipfile.is_zipfile(file) for kind in ("*.pt", "*.pth", "*.bin") for file in checkpoint.glob(kind))


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint; one cut off while it was written is deleted."""
    folders = [path for path in out.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    found = sorted(folders, key=lambda path: int(path.name.split("-")[1]))
    while found and not is_whole(found[-1]):
        shutil.rmtree(found.pop())
    return found[-1] if found else None
