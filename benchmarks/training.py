# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What does a training step cost? Measures time and peak memory of a forward and backward pass, for 1 to 4 loops, with and
without gradient checkpointing, and for the Llama of the same shape. Weights and tokens are random; the runs take turns.
Weights and gradients are allocated before, so the memory is that of the activations.

    python -m iquest_plt.benchmarks.training --length 4096
"""

import argparse
import functools
import os

import torch

from .common import (
    add_common_arguments,
    add_shape_arguments,
    build,
    keep_freed_memory,
    llama_of,
    median_ms,
    parse,
    peak_memory,
    plt_config,
    ratios,
    report,
    timed,
)


def step(model, input_ids: torch.Tensor, **kwargs) -> None:
    """Runs one forward and backward pass; gradients accumulate."""
    model(input_ids, labels=input_ids, use_cache=False, **kwargs).loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkpointing", nargs="+", default=["off", "on"], choices=["off", "on"])
    add_common_arguments(parser, loops=[1, 2, 3, 4])
    arguments = parse(parser)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages; must be set before the first allocation

    plt = build(plt_config(arguments.hidden, arguments.layers), arguments).train()
    llama = llama_of(plt).train()
    input_ids = torch.randint(plt.config.vocab_size, (arguments.batch, arguments.length), device=arguments.device)
    kinds = [("Llama", llama, {})] + [(loops, plt, {"num_loops": loops}) for loops in arguments.loops]
    runs = {(name, checkpointing): run for checkpointing in arguments.checkpointing for name, *run in kinds}

    times, peaks = {run: [] for run in runs}, {}
    for round_ in ["memory", "warm-up", *range(arguments.repeats)]:
        if round_ == "warm-up":
            keep_freed_memory()
        for (name, checkpointing), (model, kwargs) in runs.items():
            if checkpointing == "on":
                model.gradient_checkpointing_enable()
            else:
                model.gradient_checkpointing_disable()
            call = functools.partial(step, model, input_ids, **kwargs)
            if round_ == "memory":
                if any(parameter.grad is None for parameter in model.parameters()):
                    call()
                peaks[name, checkpointing] = peak_memory(call, arguments.device)
                continue
            seconds = timed(call, arguments.device)
            if round_ != "warm-up":
                times[name, checkpointing].append(seconds)

    results = []
    for (name, checkpointing), seconds in times.items():
        result = {"loops": name, "checkpointing": checkpointing, "ms_per_step": round(median_ms(seconds))}
        result |= ratios(seconds, times[1, checkpointing], times["Llama", checkpointing])
        result["peak_megabytes"] = round(peaks[name, checkpointing] / 1e6)
        results.append(result)
    columns = ["loops R", "checkpointing", "ms per step", "over R = 1", "over Llama", "peak MB"]
    rows = [list(result.values()) for result in results]
    data = {"parameters": plt.num_parameters(), "results": results}
    report("What does a training step cost?", "training", arguments, columns, rows, data)


if __name__ == "__main__":
    main()
