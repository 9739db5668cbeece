# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Timing, and a description of the machine."""

import datetime
import os
import platform
import time
from pathlib import Path

import torch
import transformers


def timed(function, device: torch.device | str, *args, **kwargs) -> float:
    """Returns the seconds that `function(*args, **kwargs)` takes."""
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function(*args, **kwargs)
    if is_cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def environment(device: str) -> dict:
    """Returns date, device, threads and versions, for reports."""
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
        name = f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        name += f", {torch.backends.cpu.get_cpu_capability()}"
        waits = os.environ.get("OMP_WAIT_POLICY")
        name += f", OMP_WAIT_POLICY={waits}" if waits else ""
    return {
        "date": datetime.date.today().isoformat(),
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
