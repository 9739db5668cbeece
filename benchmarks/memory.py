# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
How much memory does a text take? Measures the released model's key/value cache for 1 to 4 loops, compared with a cache
per loop (which a looped model without shared keys needs) and with the Llama of the same shape; and, at a small size,
the peak memory of a prompt.

    python -m iquest_plt.benchmarks.memory --lengths 1024 32768 131072
"""

import argparse
import functools

import torch
from transformers import DynamicCache

from ..configuration_plt import IQuestPLTCoderConfig
from .common import RELEASED, add_common_arguments, build, llama_of, parse, peak_memory, plt_config, report


def cache_bytes(config, length: int, num_loops: int, dtype: torch.dtype) -> int:
    """Returns the bytes of a PLT cache after `length` tokens, from real tensors filled layer by layer."""
    total = 0
    for index in range(config.num_hidden_layers):
        layer = DynamicCache(config=config).layers[index]
        layer.set_num_loops(num_loops, config.loop_window)
        states = torch.zeros(1, config.num_key_value_heads, length, config.head_dim, dtype=dtype)
        layer.update(states, states)
        for loop in range(1, num_loops):
            layer.update_window(range(loop, loop + 1), states, states)
        if index == 0 and num_loops > 1:
            layer.update_carries([torch.zeros(1, length, config.hidden_size, dtype=dtype)] * (num_loops - 1))
        total += layer.nbytes
    return total


def llama_cache_bytes(config, length: int, dtype: torch.dtype) -> int:
    """Returns the bytes of Transformers' cache for a Llama of this shape."""
    states = torch.zeros(1, config.num_key_value_heads, length, config.head_dim, dtype=dtype)
    total = 0
    for _ in range(config.num_hidden_layers):
        cache = DynamicCache()
        cache.update(states, states, 0)
        total += cache.layers[0].keys.nbytes + cache.layers[0].values.nbytes
    return total


def megabytes(size: int | None) -> str:
    """Formats bytes for the table."""
    return "-" if size is None else f"{size / 1e6:.1f}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="folder with a config.json; default: LoopCoder-V2's")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192, 32768, 131072])
    parser.add_argument("--hidden", type=int, default=1024, help="hidden size of the model that runs the prompts")
    parser.add_argument("--layers", type=int, default=2, help="layers of the model that runs the prompts")
    parser.add_argument("--longest-prompt", type=int, default=32768, help="longer prompts are not run")
    add_common_arguments(parser, loops=[1, 2, 3, 4])
    arguments = parse(parser)

    config = IQuestPLTCoderConfig.from_pretrained(arguments.config or RELEASED)
    dtype = getattr(torch, arguments.dtype)
    plt = build(plt_config(arguments.hidden, arguments.layers), arguments)
    models = {"Llama": (llama_of(plt), {})}
    models |= {loops: (plt, {"num_loops": loops}) for loops in arguments.loops}
    results = []
    for length in arguments.lengths:
        llama = llama_cache_bytes(config, length, dtype)
        input_ids = torch.randint(plt.config.vocab_size, (1, length), device=arguments.device)
        for name, (model, kwargs) in models.items():
            size, per_loop = llama, llama
            if name != "Llama":
                size, per_loop = cache_bytes(config, length, name, dtype), name * llama
            result = {"length": length, "loops": name, "cache_bytes": size, "cache_bytes_of_a_cache_per_loop": per_loop}
            result["ratio"] = round(size / llama, 5)
            result["prompt_peak_bytes"] = None
            if length <= arguments.longest_prompt:
                prompt = functools.partial(model, input_ids, use_cache=True, logits_to_keep=1, **kwargs)
                model(input_ids[:, :64], **kwargs)  # one-time allocations
                result["prompt_peak_bytes"] = peak_memory(prompt, arguments.device)
            results.append(result)
    rows = [
        [length, name, megabytes(size), megabytes(per_loop), ratio, megabytes(peak)]
        for length, name, size, per_loop, ratio, peak in (result.values() for result in results)
    ]
    columns = ["tokens", "loops R", "cache MB", "a cache per loop, MB", "cache over Llama's", "prompt's peak, MB"]
    report("What memory does a text take?", "memory", arguments, columns, rows, {"results": results})


if __name__ == "__main__":
    main()
