# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""A stage of the kit: runs cases until a deadline and saves the result after each."""

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from ...utils.timing import environment


class Stage:
    """
    Runs cases one after the other and records their results.

    Args:
        name: name of the stage.
        out: JSON file, rewritten after each case.
        seconds: time limit. Cases that would probably exceed it are left out.
        smoke: toy sizes on a CPU.
        only: words; cases without any of them in their name are skipped. Empty: all cases run.
    """

    def __init__(self, name: str, out: Path, seconds: float, smoke: bool = False, only: tuple[str, ...] = ()):
        self.out, self.smoke, self.only = out, smoke, only
        self.device = torch.device("cpu" if smoke else "cuda")
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.result = {"stage": name, "environment": describe(self.device), "cases": {}}
        self.save()

    def run(self, name: str, case: Callable[..., dict], *args, seconds: float = 5, **kwargs) -> dict | None:
        """
        Runs `case(*args, **kwargs)`, which should take about `seconds`, and records its result or traceback. Returns
        the result, or None.
        """
        if self.only and not any(word in name for word in self.only):
            return None
        left = self.deadline - time.monotonic()
        if left < seconds:
            self.result["cases"][name] = {"left out": f"{left:.0f} s left, {seconds:.0f} needed"}
            self.save()
            return None
        start, value = time.monotonic(), None
        try:
            value = case(*args, **kwargs)
            self.result["cases"][name] = dict(value)
        except Exception:
            self.result["cases"][name] = {"error": traceback.format_exc(limit=-8)[-3000:]}
            print(f"{name} FAILED\n{self.result['cases'][name]['error']}", flush=True)
        free(self.device)
        self.result["cases"][name]["seconds"] = round(time.monotonic() - start, 2)
        if value is not None:
            print(f"{self.result['stage']}: {name}: {self.result['cases'][name]}", flush=True)
        self.save()
        return value

    def save(self) -> None:
        """Writes the result atomically."""
        self.result["seconds"] = round(time.monotonic() - self.started, 1)
        temporary = self.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.result, indent=1) + "\n")
        os.replace(temporary, self.out)


def describe(device: torch.device) -> dict:
    """Returns the device, its memory or its instructions, and versions."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return environment(str(device)) | {"memory_gb": round(memory / 1e9, 1)}
    return environment(str(device)) | {"cpu_capability": torch.backends.cpu.get_cpu_capability()}


def free(device: torch.device) -> None:
    """Frees cached memory and resets the peak, after a case."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_each(step: Callable[[], object], device: torch.device, count: int, warm_up: int = 2) -> float:
    """Times `count` calls, queued without waiting for their results; returns seconds per call."""
    for _ in range(warm_up):
        step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / count


def peak_gb(device: torch.device) -> float | None:
    """Returns the peak memory allocated since the last case, in gigabytes; None on a CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None
