# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The command: runs the stages in order, each in its own process, and writes a table of the results."""

import argparse
import importlib
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers.utils import logging

from .stage import Stage
from .table import write_table


# Shares of the time. Unused time goes to the next stage.
STAGES = {"right": 0.26, "decode": 0.34, "drafts": 0.08, "prompt": 0.14, "train": 0.10, "small_models": 0.08}
GRACE = 15  # seconds that a stage may exceed its time before it is stopped


def run_stage(name: str, out: Path, seconds: float, smoke: bool, only: tuple[str, ...]) -> None:
    """Runs one stage in this process."""
    logging.set_verbosity_error()
    torch.manual_seed(0)
    if smoke:
        torch.set_num_threads(1)  # the models are too small to gain from more
    stage = Stage(name, out / f"{name}.json", seconds, smoke, only)
    importlib.import_module(f".{name}", __package__).run(stage)


def run_all(stages: list[str], out: Path, seconds: float, options: list[str]) -> int:
    """Runs all stages in separate processes. Returns how many failed or were stopped."""
    started, failed, share, total = time.monotonic(), 0, 0.0, sum(STAGES[name] for name in stages)
    for name in stages:
        share += STAGES[name] / total
        left = started + share * seconds - time.monotonic()
        command = [sys.executable, "-m", __package__, "--stage", name, "--out", str(out), "--seconds", f"{left:.0f}"]
        command += options
        try:
            code = subprocess.run(command, timeout=left + GRACE).returncode
        except subprocess.TimeoutExpired:
            code = "stopped"
        print(f"{name}: {code or 'ended'} after {time.monotonic() - started:.0f} s", flush=True)
        failed += bool(code)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m iquest_plt.benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="time for all stages together")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder of the results")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stages to run")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="run only cases whose name has a WORD")
    parser.add_argument("--smoke", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.smoke and not torch.cuda.is_available():
        parser.error("There is no CUDA device. Use `--smoke` to try the kit on a CPU.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage:
        run_stage(arguments.stage, arguments.out, arguments.seconds, arguments.smoke, tuple(arguments.only))
        return
    options = (["--smoke"] if arguments.smoke else []) + (["--only", *arguments.only] if arguments.only else [])
    failed = run_all(arguments.stages, arguments.out, 60 * arguments.minutes, options)
    print(write_table(arguments.out))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
