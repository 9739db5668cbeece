# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What do weights of 8 and 4 bits bring on this CPU? Times `generate()` per token for R loops together in bf16, int8 and
int4. Weights are random; the runs take turns token by token.

    python -m iquest_plt.benchmarks.quantized --hidden 2048 --layers 8
"""

import argparse
import copy
import time

import torch
from torch import nn

from ..conversion.quantize import SCHEMES, quantize
from ..quantization_plt import PackedLinear, pack
from ..utils.interleaved import decode_step_times
from .common import add_shape_arguments, build, bytes_read_per_token, median_ms, parse, plt_config, report
from .decode import add_arguments


COLUMNS = [
    "weights",
    "loops R",
    "ms per token",
    "over R = 1",
    "times as fast as bf16",
    "GB of weights",
    "share of limit",
]


def packed(linear: nn.Linear, scheme: str) -> PackedLinear:
    """Returns a layer with the quantized weights of `linear`."""
    bits, group_size = SCHEMES[scheme]
    pieces = [quantize(rows, bits, group_size) for rows in linear.weight.split(256)]
    values, scale, zero = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    layer = PackedLinear(linear.in_features, linear.out_features, bits, group_size, linear.weight.dtype)
    layer.weight_packed, layer.weight_scale = pack(values, bits), scale
    if bits == 4:
        layer.weight_zero_point = pack(zero.T, bits).T
    layer.prepare()
    return layer


def with_packed_weights(model: nn.Module, scheme: str) -> nn.Module:
    """Returns a copy of `model` with quantized linear layers. Everything else is shared."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    model = copy.deepcopy(model, memo=dict(shared))
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and ".layers." in name:
                model.set_submodule(name, packed(module, scheme))
    return model


def bytes_per_token(model: nn.Module) -> int:
    """Returns the bytes of weights that a decode step reads."""
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    return bytes_read_per_token(model) + sum(tensor.nbytes for layer in layers for tensor in layer.buffers())


def read_bandwidth() -> float:
    """Returns the bytes per second at which all threads together read memory: the best of ten sums over 1 GB."""
    data = torch.ones(1 << 28, dtype=torch.float32)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - start)
    return data.nbytes / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=2048)
    add_arguments(parser, loops=[1, 2, 3, 4], tokens=30)
    arguments = parse(parser)
    models = {"bf16": build(plt_config(arguments.hidden, arguments.layers), arguments)}
    models |= {scheme: with_packed_weights(models["bf16"], scheme) for scheme in SCHEMES}
    input_ids = torch.randint(models["bf16"].config.vocab_size, (1, arguments.prompt))
    runs = {(name, loops): (model, {"num_loops": loops}) for name, model in models.items() for loops in arguments.loops}
    times = decode_step_times(runs, input_ids, arguments.tokens)
    bandwidth = read_bandwidth()
    results = []
    for (name, loops), seconds in times.items():
        step, size = median_ms(seconds), bytes_per_token(models[name])
        results.append(
            {
                "weights": name,
                "loops": loops,
                "ms_per_token": round(step, 2),
                "over_one_loop": round(step / median_ms(times[name, 1]), 3),
                "times_bf16": round(median_ms(times["bf16", loops]) / step, 2),
                "gigabytes": round(size / 1e9, 3),
                "share_of_limit": round(size / bandwidth / step * 1e3, 2),
            }
        )
    data = {"bytes_per_second_read": round(bandwidth), "results": results}
    rows = [list(result.values()) for result in results]
    report("What do weights of 8 and 4 bits bring on this CPU?", "quantized", arguments, COLUMNS, rows, data)


if __name__ == "__main__":
    main()
