# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Reads checkpoints without loading them: which tensors a folder's safetensors files hold, and where.

Only headers are read here. They are checked against the files before any tensor is read. A checkpoint cannot refer to
files outside its folder.
"""

import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open


INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Dtype names of the safetensors format, and the torch dtypes.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U32": torch.uint32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 4_000_000  # the 171 tensors of LoopCoder-V2 take 20 thousand
MAX_JSON_BYTES = 20_000_000
MAX_JSON_DEPTH = 100
MAX_DIMENSIONS = 8
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: bytes `start` to `stop` of `path`."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def chunks(self) -> Iterator[bytes]:
        """Yields the bytes in pieces. Raises ValueError if the file ends early."""
        return read_chunks(self.path, self.start, self.stop)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder by name, and the names of its files in the order of the index."""

    folder: Path
    tensors: dict[str, StoredTensor]
    files: list[str]

    @functools.cached_property
    def _by_file(self) -> dict[str, dict[str, StoredTensor]]:
        groups = {file: {} for file in self.files}
        for name, tensor in self.tensors.items():
            groups[tensor.path.name][name] = tensor
        return groups

    def of_file(self, file: str) -> dict[str, StoredTensor]:
        return dict(self._by_file[file])


def dtype_name(dtype: torch.dtype | str) -> str:
    """Returns the name of a dtype in `config.json` and the manifest."""
    return str(dtype).removeprefix("torch.")


def manifest_entry(tensor: StoredTensor | Any, file: str) -> dict:
    """Returns the manifest's description of a tensor in `file`."""
    return {"file": file, "dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape)}


def sha256(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Returns the SHA-256 of a file. Calls `progress` with the size of each piece."""
    digest = hashlib.sha256()
    for chunk in read_chunks(path):
        digest.update(chunk)
        progress(len(chunk))
    return digest.hexdigest()


def read_chunks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yields bytes `start` to `stop` of a file, at most `CHUNK_BYTES` at a time. Raises ValueError if it is shorter."""
    with open(path, "rb") as file:
        stop = os.fstat(file.fileno()).st_size if stop is None else stop
        file.seek(start)
        while start < stop:
            chunk = file.read(min(CHUNK_BYTES, stop - start))
            if not chunk:
                raise ValueError(f"{path.name} became shorter while it was being read.")
            start += len(chunk)
            yield chunk


def read_json(path: Path) -> dict:
    """
    Reads a JSON object. Raises a ValueError that names the file if it holds anything else, repeats a key, is nested
    deeper than `MAX_JSON_DEPTH`, or holds half of a surrogate pair, which cannot be written to a file.
    """

    def unique(pairs):
        twice = first_repeated(key for key, _ in pairs)
        if twice is not None:
            raise ValueError(f"{twice!r} appears twice")
        return dict(pairs)

    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
        content = json.loads(path.read_bytes(), object_pairs_hook=unique)
        _check_json(content, MAX_JSON_DEPTH)
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must contain a JSON object.")
    return content


def _check_json(value, depth: int) -> None:
    """Raises ValueError if a JSON value is nested deeper than `depth`, or a string in it is not valid Unicode."""
    if isinstance(value, str):
        if not is_unicode(value):
            raise ValueError(f"{ascii(value)[:80]} contains half of a surrogate pair")
    elif isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_json(part, depth - 1)


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written as UTF-8, so has no half of a surrogate pair (from undecodable bytes)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_repeated(names: Iterable[str]) -> str | None:
    """Returns the first repeated name, or None."""
    seen = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def inside(folder: Path, name: str) -> Path:
    """
    Returns the path of the file `name` in `folder`. Raises ValueError if that is not a plain name, if the file does not
    exist, or if it is a link out of the folder. If the folder is in the Hub's cache, links to its blobs are allowed.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or name != os.path.basename(name) or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in {folder}.")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{name} is missing in {folder}.")
    target, place = path.resolve(), folder.resolve()
    allowed = [place]
    if place.parent.name == "snapshots":
        repository = place.parents[1]
        # The second entry is for blobs shared by several repositories.
        allowed += [repository / "blobs", *(repository.parent / "blobs").glob("[0-9a-f][0-9a-f]")]
    if not any(target.parent == place for place in allowed):
        raise ValueError(f"{name} is a link that leads out of {folder}. Replace it by the file itself.")
    return path


def read_header(path: Path) -> dict[str, StoredTensor]:
    """
    Returns the tensors of a safetensors file. Raises ValueError if the header is invalid. Its tensors must cover each
    byte after the header exactly once, and their sizes must match dtype and shape.
    """

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"{path.name} is damaged or not a safetensors file: {reason[:300]}.") from None

    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            refuse(f"it has {size} bytes, and its header claims {max(length, 0)}")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=list) if raw.startswith(b"{") else None
        # A plain dict would hide repeated names.
        names = [name for name, _ in header]
        entries = {name: dict(entry) for name, entry in header if name != "__metadata__"}
    except (ValueError, TypeError, RecursionError):
        refuse("its header could not be parsed")
    if first_repeated(names) is not None:
        refuse("a tensor name appears twice")
    tensors = {name: _stored_tensor(path, name, entry, 8 + length, refuse) for name, entry in entries.items()}
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != end:
            refuse(f"{name} begins at byte {tensor.start}, but the tensor before it ends at {end}")
        end = tensor.stop
    if end != size:
        refuse(f"its tensors end at byte {end}, but the file ends at {size}")
    try:  # the library must be able to read a copy of this file too
        with safe_open(path, framework="pt"):
            return tensors
    except (SafetensorError, OSError) as error:
        refuse(str(error))


def _stored_tensor(path: Path, name: str, entry: dict, base: int, refuse) -> StoredTensor:
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(f"the dtype of {name} is {dtype!r}, but must be one of {', '.join(DTYPES)}")
    for numbers in (shape, offsets):
        are_numbers = isinstance(numbers, list) and len(numbers) <= MAX_DIMENSIONS
        if not are_numbers or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            refuse(f"the shape or offsets of {name} are not lists of numbers")
    if len(offsets) != 2 or offsets[1] - offsets[0] != prod(shape) * DTYPES[dtype].itemsize:
        refuse(f"{name} of shape {shape} and dtype {dtype} does not fill the bytes {offsets}")
    return StoredTensor(path, DTYPES[dtype], tuple(shape), base + offsets[0], base + offsets[1])


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """
    Opens the checkpoint in `folder`: `model.safetensors.index.json` and its files, else `model.safetensors`, else all
    safetensors files. Raises ValueError if files are missing or damaged, if a tensor is in two files, or if index and
    headers disagree.
    """
    folder = Path(folder)
    if not is_unicode(str(folder.resolve())):
        raise ValueError(f"The name of the folder {str(folder)!a} is not UTF-8, which safetensors needs. Rename it.")
    index = folder / INDEX
    weight_map = None
    if index.exists() and (folder / SINGLE).exists():
        raise ValueError(f"{folder} has both {SINGLE} and {INDEX}. Remove the one that does not belong there.")
    if index.exists():
        weight_map = read_json(inside(folder, INDEX)).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{INDEX} has no `weight_map`.")
        if not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError(f"{INDEX} must map each tensor to a file name.")
        files = list(dict.fromkeys(weight_map.values()))
    elif (folder / SINGLE).exists():
        files = [SINGLE]
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise ValueError(
            f"{folder} has no safetensors files."
            + (" Reading pickled weights runs code, so save them as safetensors first." * pickles)
        )
    paths = {file: inside(folder, file) for file in files}
    tensors = {}
    for file, path in paths.items():
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise ValueError(f"{name} is in both {tensors[name].path.name} and {file}.")
            if weight_map is not None and weight_map.get(name) != file:
                raise ValueError(f"{name} is in {file}, but {INDEX} says: {weight_map.get(name, 'nowhere')}.")
            tensors[name] = tensor
    if weight_map is not None and (absent := sorted(weight_map.keys() - tensors.keys())):
        raise ValueError(f"{INDEX} says that {absent[0]} is in {weight_map[absent[0]]}, but it is not.")
    if not tensors:
        raise ValueError(f"The safetensors files in {folder} contain no tensors.")
    return Checkpoint(folder, tensors, files)
