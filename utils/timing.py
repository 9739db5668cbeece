# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Stopwatches, and the machine that they ran on."""

import datetime
import platform
import time
from pathlib import Path

import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList


try:
    import greenlet
except ImportError as error:
    raise ImportError("greenlet is missing: `iquest-plt[benchmarks]` has what the benchmarks need.") from error


class _YieldTurn(StoppingCriteria):
    """Hands control back to whoever started this generation, after every token; stops nothing."""

    def __call__(self, input_ids, scores, **kwargs):
        greenlet.getcurrent().parent.switch()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def decode_step_times(runs: dict, input_ids: torch.Tensor, new_tokens: int, warm_up: int = 3) -> dict[object, list]:
    """
    Seconds of every decode step of several greedy `generate()` calls that take turns, token by token, so that a machine
    that slows down for a while slows all of them. `runs` maps names to (model, arguments of `generate()`). Prompts and
    the first `warm_up` steps are left out.
    """

    def generation(model, arguments):
        return greenlet.greenlet(
            lambda: model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=warm_up + 1 + new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([_YieldTurn()]),
                **arguments,
            )
        )

    generations = {name: generation(*run) for name, run in runs.items()}
    times = {name: [] for name in runs}
    with torch.no_grad():  # each generation enters that within another, and leaves it as it found it
        try:
            for step in range(1 + warm_up + new_tokens):
                for name, turn in generations.items():
                    seconds = timed(turn.switch, input_ids.device)
                    if step > warm_up:
                        times[name].append(seconds)
        finally:
            for turn in generations.values():
                turn.throw()
    return times


def timed(function, device: torch.device | str, *args, **kwargs) -> float:
    """Seconds that `function(*args, **kwargs)` takes."""
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function(*args, **kwargs)
    if is_cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def environment(device: str) -> dict:
    """Device, threads and versions, as every report states them."""
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
        name = f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "date": datetime.date.today().isoformat(),
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
