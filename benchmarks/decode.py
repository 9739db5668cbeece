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
What does one more loop cost at decode? Time per token through `generate()` for R loops run together, the same loops in
sequence, and the Llama of the same shape. Random weights; the runs alternate, and medians are taken over all steps.

    python -m iquest_plt.benchmarks.decode --hidden 2048
"""

import argparse

import torch
from transformers.utils import logging

from .common import add_common_arguments, build, decode_step_times, llama_config, median_ms, plt_config, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=256, help="prompt length in tokens")
    parser.add_argument("--tokens", type=int, default=24, help="tokens generated per run")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--loops", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--attention", default="sdpa")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.manual_seed(0)

    plt = build(plt_config(arguments.hidden, arguments.layers), arguments)
    llama = build(llama_config(arguments.hidden, arguments.layers), arguments)
    size = (arguments.batch, arguments.prompt)
    input_ids = torch.randint(plt.config.vocab_size, size, device=arguments.device)

    runs = {("Llama", "-"): (llama, {})}
    for loops in arguments.loops:
        for schedule in ("together", "sequence") if loops > 1 else ("together",):
            runs[loops, schedule] = (plt, {"num_loops": loops, "loop_schedule": schedule})
    times = {run: [] for run in runs}
    for repeat in range(arguments.repeats + 1):
        for run, (model, kwargs) in runs.items():
            steps = decode_step_times(model, input_ids, arguments.tokens, **kwargs)
            if repeat:  # the first round warms up
                times[run] += steps

    medians = {run: median_ms(steps) for run, steps in times.items()}
    base = medians[arguments.loops[0], "together"]
    rows = [
        [loops, schedule, f"{ms:.2f}", f"{ms / base:.3f}", f"{ms / medians['Llama', '-']:.3f}"]
        for (loops, schedule), ms in medians.items()
    ]
    columns = ["loops R", "schedule", "ms per token", f"ratio to R={arguments.loops[0]}", "ratio to Llama"]
    title = "What does one more loop cost at decode?"
    results = [
        dict(zip(("loops", "schedule", "ms_per_token", "ratio", "ratio_llama"), row, strict=True)) for row in rows
    ]
    report(title, "decode", arguments, columns, rows, {"parameters": plt.num_parameters(), "results": results})


if __name__ == "__main__":
    main()
