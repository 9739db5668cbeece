# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Where does a decode step spend its time on a CPU? Measures milliseconds per token in each kind of operation with
PyTorch's profiler, for R loops and for the Llama of the same shape. The step itself is timed without the profiler,
whose overhead can make the parts of small models add up to more.

    python -m iquest_plt.benchmarks.profile_decode --hidden 2048
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from .common import add_common_arguments, add_shape_arguments, build, llama_of, parse, plt_config, report, timed


KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::addmv", "mkldnn_linear"),
    "attention": ("scaled_dot_product", "softmax"),
    "copies": ("aten::cat", "aten::copy_", "aten::clone", "aten::index", "aten::gather", "aten::fill_"),
}


def step_profile(model, prompt: torch.Tensor, steps: int, **kwargs) -> dict[str, float]:
    """Returns milliseconds per decode step by kind of operation, and of the whole `step` without the profiler."""
    cache = DynamicCache(config=model.config)
    model(prompt, past_key_values=cache, logits_to_keep=1, **kwargs)

    def run():
        for _ in range(steps):
            model(prompt[:, :1], past_key_values=cache, **kwargs)

    run()
    seconds = timed(run, prompt.device)
    spent = dict.fromkeys(["step", *KINDS, "other operations"], 0.0)
    spent["step"] = 1e3 * seconds / steps
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    for event in profiler.key_averages():
        names = (kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
        spent[next(names, "other operations")] += event.self_cpu_time_total / 1e3 / steps
    return spent


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=2048)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=256, help="prompt length in tokens")
    parser.add_argument("--steps", type=int, default=20)
    add_common_arguments(parser, loops=[1, 2, 4])
    arguments = parse(parser)
    if arguments.device != "cpu":
        parser.error("this benchmark profiles a CPU. Use --device cpu.")

    plt = build(plt_config(arguments.hidden, arguments.layers), arguments)
    prompt = torch.randint(plt.config.vocab_size, (arguments.batch, arguments.prompt), device=arguments.device)
    runs = {"Llama": (llama_of(plt), {})} | {r: (plt, {"num_loops": r}) for r in arguments.loops}
    results = []
    for name, (model, kwargs) in runs.items():
        spent = step_profile(model, prompt, arguments.steps, **kwargs)
        results.append({"loops": name, **{kind: round(ms, 2) for kind, ms in spent.items()}})
    rows = [list(result.values()) for result in results]
    columns = ["loops R", *(f"{kind}, ms" for kind in list(results[0])[1:])]
    report("Where does a decode step spend its time?", "profile_decode", arguments, columns, rows, {"results": results})


if __name__ == "__main__":
    main()
