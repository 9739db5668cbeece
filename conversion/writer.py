# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Writes checkpoints: a folder that appears only when complete, with safetensors files written as a stream."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from .checkpoint import DTYPE_NAMES, INDEX, SINGLE, StoredTensor, read_chunks, sha256


PARTIAL = ".iquest-plt-partial"
Progress = Callable[[int], None]  # called with the number of bytes just read or written


@dataclass(frozen=True)
class NewTensor:
    """A tensor filled with `value`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    value: float

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def chunks(self) -> Iterator[bytes]:
        yield to_bytes(torch.full(self.shape, self.value, dtype=self.dtype))


@dataclass(frozen=True)
class CastTensor:
    """A tensor cast to another dtype. Reading it raises ValueError if a finite number is too large for that dtype."""

    tensor: StoredTensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes // self.tensor.dtype.itemsize * self.dtype.itemsize

    def chunks(self) -> Iterator[bytes]:
        for chunk in self.tensor.chunks():
            values = torch.frombuffer(bytearray(chunk), dtype=self.tensor.dtype)
            cast = values.to(self.dtype)
            if bool((cast.isinf() & values.isfinite()).any()):
                raise ValueError(f"{self.tensor.path.name} contains numbers that are too large for {self.dtype}.")
            yield to_bytes(cast)


class Tensor(Protocol):
    """A tensor that can be written without being in memory as a whole."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def chunks(self) -> Iterator[bytes]:
        """Yields the numbers in pieces."""


class Folder:
    """A folder being written, see [`new_folder`]. Records the size and SHA-256 of every file it writes."""

    def __init__(self, path: Path, progress: Progress):
        self.path, self.progress = path, progress
        self.files: dict[str, dict] = {}

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Writes `chunks` to a file, which is on disk when this returns."""
        digest, size = hashlib.sha256(), 0
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        with open(path, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                self.progress(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = {"size": size, "sha256": digest.hexdigest()}

    def write_text(self, name: str, text: str) -> None:
        self.write(name, [text.encode()])

    def write_json(self, name: str, content: dict) -> None:
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def copy(self, source: Path, name: str | None = None) -> None:
        self.write(name or source.name, read_chunks(source))

    def link(self, source: Path, name: str) -> None:
        """Makes a hard link to `source`, or a copy if that is impossible. Reads the file for its SHA-256 either way."""
        try:
            os.link(source.resolve(), self.path / name)
        except OSError:
            self.copy(source, name)
            return
        self.files[name] = {"size": source.stat().st_size, "sha256": sha256(source, self.progress)}

    def record(self, name: str) -> None:
        """Records a file that something else wrote to the folder."""
        path = self.path / name
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        self.files[name] = {"size": path.stat().st_size, "sha256": sha256(path, self.progress)}

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Writes a safetensors file. Needs memory only for the header and a piece of a tensor, or one new tensor."""
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for key, tensor in tensors.items():
            offsets = [offset, offset + tensor.nbytes]
            header[key] = {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": offsets,
            }
            offset = offsets[1]
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)  # so that the tensors are aligned

        def chunks():
            yield struct.pack("<Q", len(raw)) + raw
            for tensor in tensors.values():
                yield from tensor.chunks()

        self.write(name, chunks())


@contextlib.contextmanager
def new_folder(path: Path, size: int, progress: Progress = lambda _: None) -> Iterator[Folder]:
    """
    Yields a [`Folder`] that appears as `path`, complete and on disk, only if the block succeeds. Files are written to a
    hidden folder next to it, which is renamed at the end. Leftovers of an earlier, killed run are removed. SIGTERM and
    SIGHUP remove the hidden folder before they end the process, unless the caller handles or ignores them.

    Raises ValueError if `path` exists, if there is not enough space for `size` bytes, or if another process is writing
    to it.
    """
    path = path.absolute()
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} does not exist. Create it first.")
    _check_free(path)
    partial = path.parent / f".{path.name}{PARTIAL}"
    with _termination_as_exception(), _locked(partial):
        _check_free(path)  # again, now under the lock
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        try:
            free = shutil.disk_usage(partial).free
            if free < size:
                raise ValueError(f"{path.parent} has {free / 1e9:.2f} GB free, but {size / 1e9:.2f} GB are needed.")
            yield Folder(partial, progress)
            for folder in [*(entry for entry in partial.iterdir() if entry.is_dir()), partial]:
                _sync(folder)
            os.rename(partial, path)
            _sync(path.parent)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or error
                raise ValueError(f"{path} was not written: {reason}.") from error
            raise


def _check_free(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()) or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} already exists. Choose another folder, or remove it.")


class _TerminationError(BaseException):
    """Raised when a signal asks the process to end."""


@contextlib.contextmanager
def _termination_as_exception() -> Iterator[None]:
    """
    Turns a fatal SIGTERM or SIGHUP into an exception in the block, and then ends the process by that signal. Has no
    effect outside the main thread, which alone can handle signals.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in numbers if is_main and signal.getsignal(number) is signal.SIG_DFL]
    received = None

    def stop(number, _):
        nonlocal received
        received = number
        for other in ours:  # a second signal must not interrupt the cleanup
            signal.signal(other, signal.SIG_IGN)
        raise _TerminationError

    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    except _TerminationError:
        pass
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        if received is not None:
            signal.raise_signal(received)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Creates `folder` if needed, and locks it for this process. The lock is released if the process dies."""
    try:
        import fcntl
    except ImportError:
        raise ValueError("Conversion needs Linux or macOS, because it locks and syncs folders.") from None
    try:
        folder.mkdir(exist_ok=True)
        # Does not follow a link, whose target may belong to someone else.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise ValueError(f"Cannot write to {folder}: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):  # another process has just finished it
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):
            target = folder.parent / folder.name[1 : -len(PARTIAL)]
            raise ValueError(f"Another process is writing to {target}.") from None
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_bytes(tensor: torch.Tensor) -> bytes:
    """Returns the numbers of a tensor as a file stores them."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def split(tensors: dict[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Splits tensors into groups of at most `max_bytes`, in order. A larger tensor gets its own group."""
    groups, size = [{}], 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > max_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    return groups


def name_files(groups: list[dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Returns a file for each group, named as in Transformers."""
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def write_index(folder: Folder, files: dict[str, dict[str, Tensor]]) -> None:
    """Writes the index of `files` if there are several."""
    if list(files) == [SINGLE]:
        return
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    folder.write_json(INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
