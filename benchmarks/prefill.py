# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
What does a prompt cost? Time to the logits of its last token, cache filled, for R loops that run over the prompt's end
only, the same loops over all positions, and the Llama of the same shape. Random weights; the runs alternate.

    python -m iquest_plt.benchmarks.prefill --hidden 1024 --lengths 512 2048 8192
"""

import argparse
import time

import torch
from transformers.utils import logging

from .common import add_common_arguments, build, llama_config, median_ms, plt_config, report


def time_to_first_token(model, input_ids: torch.Tensor, **kwargs) -> float:
    """Seconds of the pass over a prompt, as `generate()` makes it."""
    start = time.perf_counter()
    model(input_ids, use_cache=True, logits_to_keep=1, **kwargs)
    if input_ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loops", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--attention", default="sdpa", choices=["eager", "sdpa"])
    add_common_arguments(parser)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.manual_seed(0)

    plt = build(plt_config(arguments.hidden, arguments.layers), arguments)
    runs = {("Llama", "all"): (build(llama_config(arguments.hidden, arguments.layers), arguments), {})}
    for loops in arguments.loops:
        runs[loops, "the end"] = (plt, {"num_loops": loops})
        if loops > 1:  # asked for the states of every loop, every loop runs over every position
            runs[loops, "all"] = (plt, {"num_loops": loops, "output_loop_states": True})

    rows, results = [], []
    for length in arguments.lengths:
        input_ids = torch.randint(plt.config.vocab_size, (arguments.batch, length), device=arguments.device)
        times = {run: [] for run in runs}
        for repeat in range(arguments.repeats + (length == arguments.lengths[0])):
            for run, (model, kwargs) in runs.items():
                seconds = time_to_first_token(model, input_ids, **kwargs)
                if repeat or length != arguments.lengths[0]:  # the first round warms up
                    times[run].append(seconds)
        medians = {run: median_ms(seconds) for run, seconds in times.items()}
        base = medians[arguments.loops[0], "the end"]
        for (loops, positions), ms in medians.items():
            rows.append([length, loops, positions, f"{ms:.0f}", f"{ms / base:.2f}"])
            names = ("length", "loops", "positions_of_further_loops", "ms", "ratio")
            results.append(dict(zip(names, (length, loops, positions, ms, ms / base), strict=True)))
    columns = ["prompt", "loops R", "loops ≥ 1 over", "ms to first token", f"ratio to R={arguments.loops[0]}"]
    data = {"parameters": plt.num_parameters(), "results": results}
    report("What does a prompt cost?", "prefill", arguments, columns, rows, data)


if __name__ == "__main__":
    main()
