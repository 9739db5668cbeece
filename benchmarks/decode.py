# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What does one more loop cost at decode? Times `generate()` per token for R loops run together, the same loops in
sequence, and the Llama of the same shape. Weights are random; the runs take turns token by token.

    python -m iquest_plt.benchmarks.decode --hidden 2048
"""

import argparse

import torch
from transformers import CompileConfig

from ..utils.interleaved import decode_step_times
from .common import (
    add_common_arguments,
    add_shape_arguments,
    build,
    llama_of,
    median_ms,
    parse,
    plt_config,
    ratios,
    report,
)


COLUMNS = ["batch", "loops R", "schedule", "ms per token", "over R = 1", "over Llama"]


def measure(plt, llama, arguments: argparse.Namespace, sequence: bool, batch: int) -> list[dict]:
    """Times `--loops` of `plt` (together and, if `sequence`, in sequence) and `llama`; returns rows of `COLUMNS`."""
    input_ids = torch.randint(plt.config.vocab_size, (batch, arguments.prompt), device=plt.device)
    # One model for all runs; it keeps a compiled graph for each number of loops.
    options = {}
    if arguments.compile:
        torch._dynamo.config.cache_size_limit = 64
        options["cache_implementation"] = "static"
        options["compile_config"] = CompileConfig(
            mode="reduce-overhead" if plt.device.type == "cuda" else "default", fullgraph=True
        )
        options["compile_config"]._compile_all_devices = True
    runs = {("Llama", "-"): (llama, options)}
    schedules = ["together", "sequence"] if sequence and not arguments.compile else ["together"]
    for num_loops in arguments.loops:
        for schedule in schedules if num_loops > 1 else schedules[:1]:
            runs[num_loops, schedule] = (plt, {"num_loops": num_loops, "loop_schedule": schedule, **options})
    times = decode_step_times(runs, input_ids, arguments.tokens)
    return [
        {
            "batch": batch,
            "loops": num_loops,
            "schedule": schedule,
            "ms_per_token": round(median_ms(seconds), 3),
            **ratios(seconds, times[1, "together"], times["Llama", "-"]),
        }
        for (num_loops, schedule), seconds in times.items()
    ]


def add_arguments(parser: argparse.ArgumentParser, loops: list[int], tokens: int) -> None:
    """Adds the options of all decode benchmarks."""
    parser.add_argument("--prompt", type=int, default=256, help="prompt length in tokens")
    parser.add_argument("--tokens", type=int, default=tokens, help="tokens timed per run")
    parser.add_argument("--compile", action="store_true", help="static cache and torch.compile")
    add_common_arguments(parser, loops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=2048)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    add_arguments(parser, loops=[1, 2, 3, 4], tokens=40)
    arguments = parse(parser)

    plt = build(plt_config(arguments.hidden, arguments.layers), arguments)
    llama = llama_of(plt)
    results = []
    for batch in arguments.batch:
        results += measure(plt, llama, arguments, True, batch)
    rows = [list(result.values()) for result in results]
    data = {"parameters": plt.num_parameters(), "results": results}
    report("What does one more loop cost at decode?", "decode", arguments, COLUMNS, rows, data)


if __name__ == "__main__":
    main()
