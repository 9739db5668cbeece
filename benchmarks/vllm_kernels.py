# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What do more rows and more heads cost in vLLM's CPU kernels? Times a layer's matrix products for 1 to 32 rows, and one
attention call for 1 to 32 query heads per key/value head. These times are lower bounds for `vllm_decode`.

    python -m iquest_plt.benchmarks.vllm_kernels --hidden 2048 5120
"""

import argparse
import time

import torch

from .common import median_ms, parse, plt_config, report


ROWS, HEADS = [1, 2, 4, 8, 16, 32], [1, 2, 4, 5, 8, 10, 16, 20, 32]
COLD = 600e6  # bytes of weights to read per round: more than fits a CPU's cache
BLOCK = 128


def in_turns(calls: dict, repeats: int) -> dict:
    """Times calls in turns; returns median milliseconds after two warm-up rounds."""
    times = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn > 1:
                times[name].append(time.perf_counter() - start)
    return {name: median_ms(seconds) for name, seconds in times.items()}


def products(hidden: int, repeats: int) -> dict[int, float]:
    """Times the four products of one layer, in milliseconds by number of rows."""
    from vllm import _custom_ops as ops

    config = plt_config(hidden, 1)
    width, inner = config.num_attention_heads * config.head_dim, config.intermediate_size
    keys = 2 * config.num_key_value_heads * config.head_dim
    shapes = [(width + keys, hidden), (hidden, width), (2 * inner, hidden), (hidden, inner)]
    copies = 1 + int(COLD // sum(2 * rows * columns for rows, columns in shapes))
    layers = [
        [ops.create_onednn_mm(torch.randn(shape, dtype=torch.bfloat16).t(), 32) for shape in shapes]
        for _ in range(copies)
    ]
    inputs = {
        (rows, columns): torch.randn(rows, columns, dtype=torch.bfloat16) for rows in ROWS for _, columns in shapes
    }

    def forward(rows: int) -> None:
        for layer in layers:
            for handler, (_, columns) in zip(layer, shapes, strict=True):
                ops.onednn_mm(handler, inputs[rows, columns], None)

    found = in_turns({rows: lambda rows=rows: forward(rows) for rows in ROWS}, repeats)
    return {rows: round(ms / copies, 3) for rows, ms in found.items()}


def attention(batch: int, length: int, kv_heads: int, repeats: int) -> dict[int, float]:
    """Times one call for one new token per request, in milliseconds by query heads per key/value head; head_dim 128."""
    from vllm import _custom_ops as ops

    blocks = -(-length // BLOCK)
    keys, values = torch.randn(2, batch * blocks, kv_heads, BLOCK, 128, dtype=torch.bfloat16)
    table = torch.arange(batch * blocks, dtype=torch.int32).view(batch, blocks)
    lengths, starts = torch.full((batch,), length, dtype=torch.int32), torch.arange(batch + 1, dtype=torch.int32)

    def call(heads: int):
        query = torch.randn(batch, heads * kv_heads, 128, dtype=torch.bfloat16)
        output, shape = torch.empty_like(query), (batch, heads * kv_heads, kv_heads, 128)
        plan = ops.cpu_attn_get_scheduler_metadata(*shape, lengths, query.dtype, starts, True, -1, "vec", True)
        options = (query, keys, values, output, starts, lengths, 128**-0.5, True, None, -1, table, 0.0, plan, None)
        return lambda: ops.cpu_attention_with_kv_cache(*options)

    return {heads: round(ms, 3) for heads, ms in in_turns({heads: call(heads) for heads in HEADS}, repeats).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[2048, 5120], help="widths of the matrix products")
    parser.add_argument("--batch", type=int, default=8, help="requests of the attention call")
    parser.add_argument("--length", type=int, default=4096, help="tokens of each request")
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--save", metavar="NAME", help="also write benchmarks/results/DATE-NAME.md and .json")
    arguments = parse(parser)
    results = {
        f"products of a layer, hidden {hidden}": products(hidden, arguments.repeats) for hidden in arguments.hidden
    }
    name = f"attention, {arguments.batch} x {arguments.length} tokens"
    results[name] = attention(arguments.batch, arguments.length, arguments.kv_heads, arguments.repeats)
    rows = [
        [name, f"{'heads' if 'attention' in name else 'rows'} {n}", ms]
        for name in results
        for n, ms in results[name].items()
    ]
    report("What do rows and heads cost?", "vllm_kernels", arguments, ["what", "of", "ms"], rows, {"results": results})


if __name__ == "__main__":
    main()
