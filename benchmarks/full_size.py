# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What does one more loop cost the released model? Times `generate()` per token at the full size, 7.6B parameters, with
random weights, and compares with the time of reading the weights once.

    python -m iquest_plt.benchmarks.full_size
"""

import argparse

import torch

from ..configuration_plt import IQuestPLTCoderConfig
from .common import RELEASED, build, bytes_read_per_token, llama_of, parse, report, timed
from .decode import COLUMNS, add_arguments, measure


def read_bandwidth(like: torch.Tensor, gigabytes: float = 1.0, repeats: int = 7) -> float:
    """Measures how fast this device reads a matrix to multiply it by a vector, in bytes per second; best of a few."""
    columns = 8192
    rows = round(gigabytes * 1e9 / columns / like.element_size())
    matrix, vector = like.new_zeros(rows, columns), like.new_zeros(1, columns)
    seconds = min(timed(torch.nn.functional.linear, like.device, vector, matrix) for _ in range(repeats))
    return matrix.nbytes / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="folder with a config.json; default: LoopCoder-V2's")
    parser.add_argument("--sequence", action="store_true", help="also run the loops in sequence")
    add_arguments(parser, loops=[1, 2, 4], tokens=20)
    arguments = parse(parser)

    config = IQuestPLTCoderConfig.from_pretrained(arguments.config or RELEASED, eos_token_id=None)
    plt = build(config, arguments)
    bandwidth, size = read_bandwidth(plt.lm_head.weight), bytes_read_per_token(plt)
    with torch.no_grad():
        results = measure(plt, llama_of(plt), arguments, arguments.sequence, batch=1)
    limit_ms = 1e3 * size / bandwidth
    for result in results:
        result["share_of_limit"] = round(limit_ms / result["ms_per_token"], 3)
    data = {"parameters": plt.num_parameters(), "bytes_read_per_token": size, "bytes_per_second": round(bandwidth)}
    rows = [list(result.values()) for result in results]
    columns = [*COLUMNS, f"limit / time; the limit is {limit_ms:.1f} ms"]
    title = "What does one more loop cost the released model?"
    report(title, "full_size", arguments, columns, rows, {**data, "results": results})


if __name__ == "__main__":
    main()
