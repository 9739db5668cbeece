# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Products with weights of 4 and 8 bits on a CPU, by PyTorch's kernels or OpenVINO's.

Both read a weight once for a few rows, which is what lets the loops of a token run together. Where the CPU has
instructions for products of 8-bit integers (VNNI), OpenVINO's also round the inputs to 8 bits, and two to four rows
take about the time of one.

Shapes are suffixes: N rows of the input, I in_features, O out_features, G groups of columns.
"""

import functools
import importlib
import importlib.util
import os
import threading
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn


VARIABLE = "IQUEST_PLT_PACKED_KERNELS"
ROWS = 16  # PyTorch's kernel for 4 bits needs weights with a multiple of this number of rows
MANY_ROWS = 32  # from here on, PyTorch is faster if 8-bit weights are dequantized first
INPUT_GROUP = 32  # columns of the input that share a scale in OpenVINO's products of 8-bit integers


class PackedWeight(NamedTuple):
    """
    A weight as compressed-tensors stores it: integers of `bits` bits, packed into int32 words, that mean
    (value - zero point) · scale.

    Attributes:
        packed: values (O, I · bits / 32), see `unpack`.
        scale: (O, G). With 8 bits, G is 1.
        zero_point: (O · bits / 32, G), packed along the rows. None with 8 bits, where all zero points are 0.
    """

    bits: int
    packed: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None

    @property
    def out_features(self) -> int:
        return len(self.packed)

    @property
    def in_features(self) -> int:
        return self.packed.shape[1] * 32 // self.bits

    @property
    def group_size(self) -> int:
        return self.in_features // self.scale.shape[1]

    def zeros(self) -> torch.Tensor:
        """Returns the zero points as int8 (O, G)."""
        if self.zero_point is None:
            return torch.zeros_like(self.scale, dtype=torch.int8)
        return unpack(self.zero_point.T, self.bits).T


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """
    Returns the integers (rows, columns) in int32 words (rows, columns · bits / 32), as compressed-tensors packs them:
    the first in the lowest bits, stored without sign. The result is int8, from -2^(bits-1) to 2^(bits-1) - 1.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    values = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return (values.flatten(1) - 2 ** (bits - 1)).to(torch.int8)


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `unpack`: int8 (rows, columns) -> int32 (rows, columns · bits / 32)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    words = (values.to(torch.int32) + 2 ** (bits - 1)).unflatten(1, (-1, 32 // bits)) << shifts
    return words.sum(-1, dtype=torch.int32)  # the bits do not overlap


class Product(Protocol):
    """A product with a fixed weight: (N, I) -> (N, O), in the dtype of the input."""

    def __init__(self, weight: PackedWeight): ...

    def __call__(self, rows_NI: torch.Tensor) -> torch.Tensor: ...


class TorchProduct(nn.Module):
    """Uses PyTorch's `_weight_int8pack_mm` and `_weight_int4pack_mm_for_cpu`, and multiplies many rows in full."""

    values: torch.Tensor
    scale: torch.Tensor

    @torch.no_grad()
    def __init__(self, weight: PackedWeight):
        super().__init__()
        self.bits, self.group_size = weight.bits, weight.group_size
        # In pieces, because the unpacked values take 4 bytes each.
        pieces = [self._ordered(words) for words in weight.packed.split(1024)]
        self.register_buffer("values", torch.cat(pieces))
        scale = weight.scale.squeeze(1)
        if self.bits == 4:  # the kernel computes (unsigned value - 8) · scale + offset
            scale = torch.stack([weight.scale.T, (-weight.zeros() * weight.scale).T], -1).contiguous()
        self.register_buffer("scale", scale)

    def _ordered(self, words: torch.Tensor) -> torch.Tensor:
        """Returns the values of some rows in the order that the kernel reads."""
        values = unpack(words, self.bits)
        if self.bits == 8:
            return values
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.to(torch.int32) + 8, 1)

    def forward(self, rows_NI: torch.Tensor) -> torch.Tensor:
        scale = self.scale.to(rows_NI.dtype)
        if self.bits == 4:
            return torch.ops.aten._weight_int4pack_mm_for_cpu(rows_NI, self.values, self.group_size, scale)
        if len(rows_NI) < MANY_ROWS:
            return torch.ops.aten._weight_int8pack_mm(rows_NI, self.values, scale)
        return nn.functional.linear(rows_NI, self.values.to(rows_NI.dtype)) * scale


class OpenVINOProduct:
    """
    A compiled OpenVINO model of one product. It computes in float32 and takes as many threads as PyTorch has when it is
    made. Several threads may call it.
    """

    def __init__(self, weight: PackedWeight):
        self.out_features = weight.out_features
        self._compiled = _compile(weight)
        self._requests = threading.local()  # a request runs once at a time

    @torch.compiler.disable
    def __call__(self, rows_NI: torch.Tensor) -> torch.Tensor:
        openvino = _openvino()
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        inputs_NI = rows_NI.detach().float().contiguous()
        outputs_NO = torch.empty(len(rows_NI), self.out_features)
        request.set_input_tensor(openvino.Tensor(inputs_NI.numpy(), shared_memory=True))
        request.set_output_tensor(openvino.Tensor(outputs_NO.numpy(), shared_memory=True))
        request.infer()
        return outputs_NO.to(rows_NI.dtype)

    def __deepcopy__(self, memo: dict) -> "OpenVINOProduct":
        return self  # the weight never changes


@functools.cache
def _openvino() -> Any:
    """Imports OpenVINO. With an import statement, Transformers would require it of everybody who loads this file."""
    return importlib.import_module("openvino")


@functools.cache
def _openvino_core() -> Any:
    return _openvino().Core()


def _compile(weight: PackedWeight) -> Any:
    """Returns OpenVINO's compiled model of `rows @ ((values - zero points) · scale).T`."""
    openvino = _openvino()
    ops, kind = openvino.opset13, {4: openvino.Type.u4, 8: openvino.Type.u8}[weight.bits]
    size, groups = [weight.out_features, weight.in_features], weight.scale.shape[1]
    is_grouped = groups > 1
    grouped = [weight.out_features, groups, weight.group_size] if is_grouped else size
    per_group = [*grouped[:-1], 1]

    def integers(words: torch.Tensor, shape: list[int]):
        # compressed-tensors and OpenVINO agree: unsigned integers, the first in the lowest bits.
        data = words.contiguous().flatten().view(torch.uint8).numpy()
        stored = openvino.Tensor(data, openvino.Shape(shape), kind)
        return ops.convert(ops.constant(stored, shared_memory=False), "f32")

    zeros = integers(pack(weight.zeros().reshape(1, -1), weight.bits), per_group)
    scale = ops.constant(weight.scale.float().reshape(per_group).numpy())
    full = ops.multiply(ops.subtract(integers(weight.packed, grouped), zeros), scale)
    if is_grouped:
        full = ops.reshape(full, ops.constant(torch.tensor(size).numpy()), False)
    rows = ops.parameter([-1, weight.in_features], openvino.Type.f32)
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": INPUT_GROUP,
    }
    model = openvino.Model([ops.matmul(rows, full, False, True)], [rows])
    return _openvino_core().compile_model(model, "CPU", options)


PRODUCTS: dict[str, type[Product]] = {"torch": TorchProduct, "openvino": OpenVINOProduct}


def installed_kernels() -> list[str]:
    """Returns the keys of `PRODUCTS` that this environment can run."""
    return [name for name in PRODUCTS if name != "openvino" or importlib.util.find_spec("openvino") is not None]


def packed_kernels() -> str:
    """
    Returns whose kernels multiply packed weights: "torch", or what the environment variable says. Raises ValueError if
    that is another name, or OpenVINO without being installed.
    """
    name = os.environ.get(VARIABLE, "torch")
    if name not in PRODUCTS:
        raise ValueError(f"{VARIABLE}={name} is not one of: {', '.join(PRODUCTS)}.")
    if name not in installed_kernels():
        raise ValueError(f"{VARIABLE}=openvino needs OpenVINO: pip install openvino")
    return name


__all__ = ["PackedWeight", "installed_kernels", "pack", "packed_kernels", "unpack"]
