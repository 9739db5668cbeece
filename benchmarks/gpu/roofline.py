# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Computes the hardware's limits for stages 2 and 3 from the configuration.

    python -m iquest_plt.benchmarks.gpu.roofline > benchmarks/gpu_expected.md

A step takes at least the time to read its bytes once, and the time to do its operations. Bandwidth and speed are those
that a copy and a matrix product reach on an H100: 3.0 TB/s and 790 TFLOP/s in bf16.
"""

import torch
from transformers import AutoModelForCausalLM

from ...utils.markdown import table
from .models import bytes_per_step, full_size_config
from .prompt import prompt_flops


BYTES_PER_SECOND, FLOPS_PER_SECOND = 3.0e12, 790e12


def decode_table(plt) -> str:
    rows = []
    for context in (512, 16384):
        for batch in (1, 8, 32):
            for loops in (1, 2, 4):
                reading = bytes_per_step(plt, batch, context, loops) / BYTES_PER_SECOND
                computing = batch * plt.decode_flops(context, loops) / FLOPS_PER_SECOND
                one_loop = bytes_per_step(plt, batch, context, 1) / BYTES_PER_SECOND
                cells = [batch, context, loops, f"{1e3 * reading:.2f}", f"{1e3 * computing:.2f}"]
                rows.append([*cells, f"{max(reading, computing) / one_loop:.3f}"])
    return table(["batch", "context", "R", "reading, ms", "computing, ms", "over R = 1"], rows)


def prompt_table(config) -> str:
    rows = []
    for length in (2048, 8192, 32768, 131072):
        whole = prompt_flops(config, length, 1)
        for loops in (1, 2, 4):
            end = whole + sum(_flops_of_end(config, length, later) for later in range(1, loops))
            rows.append([length, loops, f"{1e3 * end / FLOPS_PER_SECOND:.0f}", f"{end / whole:.3f}", loops])
    return table(["tokens", "R", "ms", "over R = 1", "all positions over R = 1"], rows)


def _flops_of_end(config, length: int, later: int) -> float:
    """Returns the operations of the `later`-th loop from the last, over a prompt's end that shrinks in each layer."""
    layers, window = config.num_hidden_layers, config.loop_window
    tokens = sum(min(length, (later - 1) * layers * window + window * (layers - i) + 1) for i in range(layers)) / layers
    per_token = prompt_flops(config, length, 1) / length
    return tokens * per_token


def main() -> None:
    config = full_size_config()
    with torch.device("meta"):
        plt = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    print("# What the hardware allows\n\nWritten by `python -m iquest_plt.benchmarks.gpu.roofline` for an H100 with")
    print("3.0 TB/s and 790 TFLOP/s in bf16. Small operations, launches and the host are not included.\n")
    print(f"## Decode\n\n{decode_table(plt)}\n\n## First token\n\n{prompt_table(config)}")


if __name__ == "__main__":
    main()
