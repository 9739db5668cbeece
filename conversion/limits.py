# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a checkpoint's chat template or tokenizer within limits on time and memory."""

import contextlib
import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any


try:
    import resource
except ImportError:  # Windows, which has no `fork` either
    resource = None  # type: ignore[assignment]


MAX_BYTES = 50_000_000  # the largest result
SECONDS_MORE = 5  # how long a child may outlive its time limit if this process is killed


def run_limited(call: Callable[[], Any], seconds: float, memory: int = 1 << 30) -> Any:
    """
    Returns the result of `call()`, computed in a forked process that may use `seconds` of time and `memory` bytes more
    than this process. The result must be JSON-serializable. Signal handlers and timers of this process do not change.

    Raises TimeoutError or MemoryError if the limits are exceeded. Any other error in `call()` becomes a ValueError that
    names its type. macOS does not enforce the memory limit. Without `fork` there are no limits.
    """
    if not hasattr(os, "fork"):
        return call()
    read, write = os.pipe()
    with warnings.catch_warnings():
        # The warning says that another thread's lock may stay locked. The child is then killed at its time limit.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        _run(call, write, seconds, memory)
    os.close(write)
    try:
        answer = _listen(read, seconds)
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not answer:  # a library that ran out of memory ended the process
        raise MemoryError(f"it takes more than {memory / 1e6:,.0f} MB of memory, or crashes")
    kind, value = json.loads(answer)
    if kind == "result":
        return value
    if kind == "MemoryError":
        raise MemoryError(f"it takes more than {memory / 1e6:,.0f} MB of memory")
    raise ValueError(value if kind == "ValueError" else f"{kind}: {value}")


def _listen(descriptor: int, seconds: float) -> bytes:
    """Returns everything that the child writes until it ends."""
    answer, end = bytearray(), time.monotonic() + seconds
    while select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
        chunk = os.read(descriptor, 1 << 16)
        answer += chunk
        if not chunk:
            return bytes(answer)
        if len(answer) > MAX_BYTES:
            raise MemoryError(f"its result is larger than {MAX_BYTES / 1e6:,.0f} MB")
    raise TimeoutError(f"it takes longer than {seconds:g} seconds")


def _run(call: Callable[[], Any], descriptor: int, seconds: float, memory: int) -> None:
    """Runs `call` in the child and writes its result. Never returns, because the callers belong to the parent."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # hides what a library prints when it runs out of memory
            os.dup2(nothing, stream)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
        _limit(resource.RLIMIT_CPU, int(seconds) + SECONDS_MORE)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_AS, _address_space() + memory)
        try:
            answer = ["result", call()]
        except BaseException as error:  # includes panics of the tokenizers library, and SystemExit
            answer = [type(error).__name__, " ".join(str(error).split())[:400]]
        with open(descriptor, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS cannot limit the address space
        resource.setrlimit(kind, (value, hard))


def _address_space() -> int:
    """Returns the size of this process's address space in bytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 46
