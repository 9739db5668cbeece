# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What does a prompt cost? Times a prompt up to the logits of its last token, with the cache filled, for R loops over the
prompt's end, the same loops over all positions, and the Llama of the same shape. Weights are random; the runs take
turns.

    python -m iquest_plt.benchmarks.prefill --hidden 1024 --lengths 512 2048 8192
"""

import argparse
import functools

import torch

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
    timed,
)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--longest-all", type=int, default=8192, help="longest prompt for all positions")
    parser.add_argument("--repeats", type=int, default=3)
    add_common_arguments(parser, loops=[1, 2, 3, 4], kernels=["eager", "sdpa"])
    arguments = parse(parser)

    plt = build(plt_config(arguments.hidden, arguments.layers), arguments)
    models = {("Llama", "all"): (llama_of(plt), {})}
    for loops in arguments.loops:
        models[loops, "the end"] = (plt, {"num_loops": loops})
        if loops > 1:  # `output_loop_states` makes every loop run over all positions
            models[loops, "all"] = (plt, {"num_loops": loops, "output_loop_states": True})

    warm_up = torch.randint(plt.config.vocab_size, (arguments.batch, 256), device=arguments.device)
    for model, kwargs in models.values():
        model(warm_up, use_cache=True, logits_to_keep=1, **kwargs)

    results = []
    for length in arguments.lengths:
        input_ids = torch.randint(plt.config.vocab_size, (arguments.batch, length), device=arguments.device)
        runs = {
            (loops, positions): functools.partial(model, input_ids, use_cache=True, logits_to_keep=1, **kwargs)
            for (loops, positions), (model, kwargs) in models.items()
            if loops == "Llama" or positions == "the end" or length <= arguments.longest_all
        }
        times = {run: [] for run in runs}
        for _ in range(arguments.repeats):
            for run, prompt in runs.items():
                times[run].append(timed(prompt, arguments.device))
        for (loops, positions), seconds in times.items():
            result = {"length": length, "loops": loops, "positions_of_further_loops": positions}
            result["ms"] = round(median_ms(seconds), 1)
            results.append(result | ratios(seconds, times[1, "the end"], times["Llama", "all"]))
    columns = ["prompt", "loops R", "loops ≥ 1 over", "ms to first token", "over R = 1", "over Llama"]
    rows = [list(result.values()) for result in results]
    data = {"parameters": plt.num_parameters(), "results": results}
    report("What does a prompt cost?", "prefill", arguments, columns, rows, data)


if __name__ == "__main__":
    main()
