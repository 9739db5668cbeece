# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Does a checkpoint of LoopCoder-V2's size convert, verify, load and generate?

    python -m iquest_plt.benchmarks.rehearsal --work FOLDER

The weights are random, with the released names, shapes, dtype and number of files. Each step is an `iquest-plt` command
in its own process. Peak memory is the largest resident size of the process. It includes pages of mapped files, which
the system can take back; the process's own memory is the rest, sampled twenty times a second.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ..configuration_plt import IQuestPLTCoderConfig
from ..conversion.layout import ROOT
from ..conversion.quantize import SCHEMES
from ..conversion.writer import Folder, name_files, split, write_index
from ..modeling_plt import IQuestPLTCoderForCausalLM
from .common import RELEASED, memory_status, parse, report


SHARD_BYTES = 5_300_000_000  # three files, as released
TOKENIZER = ROOT / "checkpoints" / "small"  # its ids fit the released vocabulary
BLOCK = 1 << 24


@dataclass(frozen=True)
class RandomTensor:
    """A tensor to write: a repeated block of random numbers, or ones for norms."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    block: bytes
    ones: bytes

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def chunks(self) -> Iterator[bytes]:
        block = self.ones if "norm" in self.name else self.block
        for start in range(0, self.nbytes, len(block)):
            yield block[: self.nbytes - start]


def write_source(path: Path, config_folder: Path) -> int:
    """Writes the synthetic checkpoint; returns its number of tensors."""
    config = IQuestPLTCoderConfig.from_pretrained(config_folder)
    path.mkdir()
    with torch.device("meta"):
        model = IQuestPLTCoderForCausalLM(config).to(torch.bfloat16)
    numbers = BLOCK // torch.bfloat16.itemsize
    block, ones = (
        values.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
        for values in (config.initializer_range * torch.randn(numbers), torch.ones(numbers))
    )
    tensors = {
        name: RandomTensor(name, tuple(tensor.shape), tensor.dtype, block, ones)
        for name, tensor in model.state_dict().items()
    }
    folder = Folder(path, lambda _: None)
    files = name_files(split(tensors, SHARD_BYTES))
    for name, group in files.items():
        folder.write_tensors(name, group)
    write_index(folder, files)
    fields = json.loads((config_folder / "config.json").read_text())
    folder.write_json("config.json", fields | {"auto_map": {"AutoConfig": "configuration_iquestpltcoder.Config"}})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        folder.copy(TOKENIZER / name)
    return len(tensors)


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds, the largest resident size, and the largest part of it that is not a file's."""

    seconds: float
    peak: int
    own_peak: int


def run(*arguments: str | Path) -> tuple[dict, Usage]:
    """Runs `iquest-plt` with `--json`; returns the answer and what it took. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "iquest_plt.cli", *map(str, arguments), "--json"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with ThreadPoolExecutor(1) as thread:
        output = thread.submit(process.stdout.read)
        own_peak = 0
        while not output.done():
            own_peak = max(own_peak, _own_memory(process.pid))
            time.sleep(0.05)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(
            f"iquest-plt {' '.join(map(str, arguments))} failed with {process.returncode}: {output.result()}"
        )
    return json.loads(output.result()), Usage(time.perf_counter() - start, 1024 * usage.ru_maxrss, own_peak)


def _own_memory(pid: int) -> int:
    """Returns the resident bytes of a process without mapped files, or 0 if they are unknown."""
    try:
        return memory_status("RssAnon", pid)
    except OSError:
        return 0


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = parser.add_mutually_exclusive_group(required=True)
    folder.add_argument("--work", type=Path, help="empty folder with 31 GB free; emptied at the end")
    folder.add_argument("--converted", type=Path, help="verify, load and generate with this converted folder only")
    parser.add_argument("--config", type=Path, help="folder with a config.json; default: LoopCoder-V2's")
    parser.add_argument("--quantize", choices=SCHEMES, help="quantize the weights on conversion")
    parser.add_argument("--tokens", type=int, default=8, help="tokens to generate")
    parser.add_argument("--save", metavar="NAME", help="also write benchmarks/results/DATE-NAME.md and .json")
    arguments = parse(parser)
    target = arguments.converted or arguments.work / "target"
    results = []

    def note(step: str, usage: Usage, result: str) -> None:
        peaks = {"peak_bytes": usage.peak, "own_peak_bytes": usage.own_peak}
        results.append({"step": step, "seconds": round(usage.seconds, 1), **peaks, "result": result})
        print(f"{step}: {usage.seconds:.0f} s", file=sys.stderr, flush=True)

    if arguments.converted is None:
        source, start = arguments.work / "source", time.perf_counter()
        count = write_source(source, arguments.config or RELEASED)
        note(
            "write the source",
            Usage(time.perf_counter() - start, 0, 0),
            f"{count} tensors, {size_of(source):,} bytes",
        )
        options = ["--quantize", arguments.quantize] if arguments.quantize else []
        answer, usage = run("convert", source, target, *options)
        note("convert", usage, f"{len(answer['tensors'])} tensors, {size_of(target):,} bytes")
        shutil.rmtree(source)
    answer, usage = run("verify", target)
    note("verify", usage, f"{answer['parameters']:,} parameters, {len(answer['problems'])} problems")
    prompt = "def read_lines(path):\n"
    answer, usage = run("generate", target, "--prompt", prompt, "--max-new-tokens", str(arguments.tokens), "--greedy")
    note(
        "load and generate",
        usage,
        f"{answer['new_tokens']} tokens with {answer['loops']} loops, {answer['seconds']:.1f} s of it",
    )
    if arguments.converted is None:
        shutil.rmtree(target)

    def gigabytes(number: int) -> str:
        return f"{number / 1e9:.2f}" if number else "-"

    rows = [
        [row["step"], row["seconds"], gigabytes(row["peak_bytes"]), gigabytes(row["own_peak_bytes"]), row["result"]]
        for row in results
    ]
    columns = ["step", "seconds", "peak memory, GB", "of it without files", "result"]
    for name in ("work", "config", "converted"):  # no paths in the report
        setattr(arguments, name, getattr(arguments, name) and name.upper())
    title = "Does a checkpoint of this size convert, verify, load and generate?"
    report(title, "rehearsal", arguments, columns, rows, {"results": results})


if __name__ == "__main__":
    main()
