# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What do weights of 8 and 4 bits bring on this CPU? Times `generate()` per token for R loops together in bf16, int8 and
int4, with PyTorch's kernels and OpenVINO's. Weights are random; the runs take turns token by token.

    python -m iquest_plt.benchmarks.quantized --hidden 2048 --layers 8
"""

import argparse
import copy
import itertools
import time

import torch
from torch import nn

from ..conversion.quantize import SCHEMES, bytes_in
from ..packed_kernels_plt import PRODUCTS, installed_kernels
from ..quantization_plt import PackedLinear
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


def packed(linear: nn.Linear, scheme: str, kernels: str) -> PackedLinear:
    """Returns a layer of the same size with random integers as weights."""
    bits, group_size = SCHEMES[scheme]
    layer = PackedLinear(linear.in_features, linear.out_features, bits, group_size, linear.weight.dtype)
    for words in (layer.weight_packed, layer.weight_zero_point):
        if words is not None:
            words.random_(-(2**31), 2**31)
    layer.weight_scale.fill_(linear.weight.std() / 2 ** (bits - 2))
    layer.prepare(kernels)
    return layer


def with_packed_weights(model: nn.Module, scheme: str, kernels: str) -> nn.Module:
    """Returns a copy of `model` with quantized linear layers. Everything else is shared."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    model = copy.deepcopy(model, memo=dict(shared))
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and ".layers." in name:
                model.set_submodule(name, packed(module, scheme, kernels))
    return model


def bytes_per_token(model: nn.Module, scheme: str | None) -> int:
    """Returns the bytes of weights that a decode step reads if the layers of `model` are quantized with a scheme."""
    whole, quantized = (bytes_in(model, name, model.dtype.itemsize) for name in (None, scheme))
    return bytes_read_per_token(model) - whole + quantized


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
    parser.add_argument("--kernels", nargs="+", choices=PRODUCTS, default=installed_kernels(), help="default: all")
    arguments = parse(parser)
    models = {"bf16": build(plt_config(arguments.hidden, arguments.layers), arguments)}
    sizes = {"bf16": bytes_per_token(models["bf16"], None)}
    for scheme, kernels in itertools.product(SCHEMES, arguments.kernels):
        name = f"{scheme}, {kernels}"
        models[name] = with_packed_weights(models["bf16"], scheme, kernels)
        sizes[name] = bytes_per_token(models["bf16"], scheme)
    input_ids = torch.randint(models["bf16"].config.vocab_size, (1, arguments.prompt))
    runs = {(name, loops): (model, {"num_loops": loops}) for name, model in models.items() for loops in arguments.loops}
    times = decode_step_times(runs, input_ids, arguments.tokens)
    bandwidth = read_bandwidth()
    results = []
    for (name, loops), seconds in times.items():
        step, size = median_ms(seconds), sizes[name]
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
