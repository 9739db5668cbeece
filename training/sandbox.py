# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Runs one program written by a model, and its tests, in a separate process with limits. Needs Linux.

    passed, detail, seconds = Sandbox().run(program, tests, entry_point)

`tests` is Python that defines `check`; the program passes if `check(entry_point)` returns. The program cannot:

* exceed `Limits` for time, memory, processes, open files or output, whatever other programs do at the same time;
* write to files: their size limit is 0. If the kernel has Landlock, it cannot create, delete or empty files either;
* see this process's environment or standard input;
* pass before its tests have returned. The verdict starts with a random token, so exiting early or printing does not
  count. The tests run in their own namespace, with their own built-in functions.

If `unshare` (util-linux) works, with user namespaces or as root, the program has no network, cannot send signals, and
leaves no processes behind. Otherwise Landlock blocks TCP and signals to other processes (since Linux 6.7 and 6.12), and
a process that left its session may survive, asleep or until its CPU time ends. As root, each program runs as a
different user who owns nothing, or not at all. `Sandbox.protections` lists the protections in effect.

Linux counts processes per user. A program has its own count if it has its own user (as root) or its own user namespace
(since Linux 5.14). Otherwise programs run one at a time, so that none exhausts another's count.

This protects against a model's mistakes. It is not a security boundary: a program can read every file that its user can
(all files, if root runs it and Python is installed in a folder of root's), find the token in its own memory, patch
modules that its tests use, return objects that equal everything, and exploit kernel bugs. Run models that you do not
trust in a virtual machine that contains nothing of value.
"""

import builtins
import contextlib
import ctypes
import itertools
import json
import math
import os
import re
import resource
import secrets
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple


_SECONDS_TO_CLEAN_UP = 5  # after the time limit, until the sandbox ends itself in case this process was killed
_PASSED = "passed"
_USER = "--reuid={}"
_USERS = range(61184, 65520)  # unused ids, which systemd also uses for its dynamic users
_turns = itertools.count(secrets.randbelow(len(_USERS)))
_one_at_a_time = threading.Lock()


@dataclass
class Limits:
    """Limits of a program. Memory is the address space of each process; output is both streams together."""

    seconds: float = 10.0
    memory_bytes: int = 512 << 20
    processes: int = 16
    open_files: int = 32
    output_bytes: int = 1 << 20

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"The limit `{name}` must be a number above 0, got {value}.")


class Verdict(NamedTuple):
    passed: bool
    detail: str  # "passed", or what happened instead
    seconds: float


class Sandbox:
    """
    Runs programs with the strongest protections that work on this system, found by trial runs. Thread-safe.

    Args:
        limits: limits of each program.
        wrappers: commands to put before Python's; the first that works is used. Default: the strongest available.

    Raises ValueError if no program can be run, or only as root.
    """

    def __init__(self, limits: Limits | None = None, wrappers: list[list[str]] | None = None):
        if sys.platform != "linux":
            raise ValueError("The sandbox needs Linux. Copy the completions to a Linux machine and run them there.")
        self.limits, trials = Limits(), []
        for self._wrapper in _wrappers() if wrappers is None else wrappers:
            # Checks that Python finds its own library: if it cannot read it, it may load another version's.
            same = f"def check(f): assert f() == {json.__file__!r}"
            trials.append(self.run("import json\ndef f(): return json.__file__", same, "f").detail)
            if trials[-1] == _PASSED:
                break
        else:
            raise ValueError(f"No sandbox works here ({'; '.join(dict.fromkeys(trials))}). Run as an ordinary user.")
        self.limits = limits or self.limits

    @property
    def protections(self) -> list[str]:
        """The protections in effect that not every system has."""
        names = {"unshare": "namespaces", "setpriv": "other user"}
        found = [names[Path(word).name] for word in self._wrapper if Path(word).name in names]
        abi = landlock_abi()
        return found + [name for since, name in ((1, "no writes"), (4, "no TCP"), (6, "no signals")) if abi >= since]

    def run(self, program: str, tests: str, entry_point: str) -> Verdict:
        """Runs `program`, then `check(entry_point)` from `tests`. Their errors never raise here."""
        with _one_at_a_time if self._shares_count else contextlib.nullcontext():
            return self._run(program, tests, entry_point)

    @property
    def _shares_count(self) -> bool:
        """True if programs that run at the same time share one user's process count."""
        release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
        return not (_USER in self._wrapper or ("--user" in self._wrapper and release >= (5, 14)))

    def _run(self, program: str, tests: str, entry_point: str) -> Verdict:
        user = _USERS[next(_turns) % len(_USERS)]
        wrapper = [word.format(user) if word == _USER else word for word in self._wrapper]
        token = secrets.token_hex(16)
        job = {"program": program, "tests": tests, "entry_point": entry_point, "token": token}
        python = [sys.executable, "-I", "-B", "-X", "utf8", "-c", Path(__file__).read_text()]
        environment = {"PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
            os.chmod(folder, 0o755)  # the program may run as another user
            process = subprocess.Popen(
                [*wrapper, *python, json.dumps(asdict(self.limits)), "shared" if self._shares_count else "own"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
            try:
                with process.stdin as pipe:
                    pipe.write(json.dumps(job).encode())
            except BrokenPipeError:  # it has ended already; its output says why
                pass
            try:
                detail = self._listen(process, start + self.limits.seconds, token.encode())
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # before wait(), so that the id still belongs to it
                process.wait()
                process.stdout.close()
        return Verdict(detail == _PASSED, detail, time.monotonic() - start)

    def _listen(self, process: subprocess.Popen, deadline: float, token: bytes) -> str:
        """Returns the verdict, or the reason why there is none."""
        output = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                if not selector.select(left):
                    continue
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                output += chunk
                if len(output) > self.limits.output_bytes:
                    return "printed too much"
                found = output.find(token)
                if found >= 0 and (end := output.find(b"\n", found)) >= 0:
                    return output[found + len(token) : end].decode(errors="replace")
                if not chunk:
                    said = output.decode(errors="replace").strip().splitlines()
                    return " ".join(["ended before its tests did", *said[-1:]])[:200]
        return "timed out"


def _wrappers() -> Iterator[list[str]]:
    """Yields commands that start another one with fewer rights, the strongest first."""
    tools = {name: shutil.which(name) for name in ("unshare", "setpriv")}
    unshare = [tools["unshare"], "--pid", "--net", "--ipc", "--fork", "--kill-child"]
    if os.geteuid():
        yield from [[*unshare, "--user", "--map-current-user"]] if tools["unshare"] else []
        yield []
    elif tools["setpriv"]:
        no_one = [tools["setpriv"], _USER, "--regid=65534", "--clear-groups"]
        # The second one may read all files, in case Python is installed in a folder of root's.
        kinds = ("inh-caps", "ambient-caps", "bounding-set")
        kept = [[f"--{kind}=-all{more}" for kind in kinds] for more in ("", ",+dac_read_search")]
        for before, rights in itertools.product([unshare, []] if tools["unshare"] else [[]], kept):
            yield [*before, *no_one, *rights]


# -- Landlock, the kernel's own sandbox: needs no privileges, and applies to child processes ---------------------------

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # system calls, the same on all architectures
_PARENT_DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 1, 38  # options of prctl
_WRITE, _TRUNCATE = 0x1FF2, 1 << 14  # write, create and remove files and folders of all kinds; empty files
_TCP, _SCOPES = 0b11, 0b11  # bind, connect; abstract sockets, signals


def landlock_abi() -> int:
    """Returns the version of the kernel's Landlock; 0 if there is none."""
    return max(0, ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1))


def _landlock() -> None:
    """Denies these rights to this process from now on, as far as the kernel supports it."""
    abi, libc = landlock_abi(), ctypes.CDLL(None)
    if not abi:
        return
    denied = [_WRITE | (_TRUNCATE if abi >= 3 else 0), *([_TCP] if abi >= 4 else []), *([_SCOPES] if abi >= 6 else [])]
    rules = struct.pack(f"{len(denied)}Q", *denied)
    ruleset = libc.syscall(_CREATE_RULESET, rules, len(rules), 0)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(_RESTRICT_SELF, ruleset, 0):
        raise OSError("The kernel has Landlock, but it cannot be used.")


# -- inside ------------------------------------------------------------------------------------------------------------


def _processes_of_user() -> int:
    """Returns the processes and threads of this process's user, as Linux counts them."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            count += len(os.listdir(folder / "task")) if folder.stat().st_uid == os.getuid() else 0
    return count


def _limit(limits: Limits, processes: int) -> None:
    seconds = math.ceil(limits.seconds)
    for kind, value in {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _test(program: str, tests: str, entry_point: str) -> str:
    """Returns the result. The tests are loaded before the program, so that it cannot change Python for them."""
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": dict(vars(builtins))}
    module = types.ModuleType("program")
    sys.modules[module.__name__] = module
    try:
        exec(compile(tests, "tests", "exec"), namespace)
        exec(compile(program, "program", "exec"), module.__dict__)
        namespace[entry_point] = getattr(module, entry_point)  # tests may also call it by name
        namespace["check"](namespace[entry_point])
    except BaseException as error:  # also SystemExit
        return " ".join(f"failed: {type(error).__name__}: {error}".split())[:200]
    return _PASSED


def _inside() -> None:
    """Forks a child that runs the program, so that a program that kills its parent cannot kill our process."""
    limits = Limits(**json.loads(sys.argv[1]))
    processes = limits.processes + (_processes_of_user() if sys.argv[2] == "shared" else 0)
    child = os.fork()
    if child:

        def end(*_):
            os.kill(child, signal.SIGKILL)
            os._exit(1)

        signal.signal(signal.SIGALRM, end)
        signal.alarm(math.ceil(limits.seconds) + _SECONDS_TO_CLEAN_UP)
        os.waitpid(child, 0)
        os._exit(0)
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    job = json.load(sys.stdin)
    token = job.pop("token").encode()
    report, write = os.dup(1), os.write
    _landlock()
    _limit(limits, processes)
    verdict = _test(**job).encode(errors="replace")
    write(report, b"\n" + token + verdict + b"\n")


if __name__ == "__main__":
    _inside()
