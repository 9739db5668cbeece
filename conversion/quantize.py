# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Quantizes the linear layers to 4 or 8 bits, in the format of compressed-tensors, which Transformers and vLLM load.

Weights are rounded to the nearest multiple of a scale. With 8 bits, each row has a scale that covers its largest
weight. With 4 bits, each row has a scale and an offset (the zero point) per group of columns. The scale is chosen from
several to minimize the squared error. The gates, norms, embeddings and the output layer keep their dtype. Weights are
read in pieces of whole rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..packed_kernels_plt import ROWS, pack
from ..quantization_plt import FORMAT
from .layout import GATE
from .writer import Tensor, to_bytes


SCHEMES = {"int8": (8, None), "int4": (4, 32)}  # bits and columns per group
SHRINK = torch.linspace(1.0, 0.76, 7)  # candidates for 4 bits, relative to the scale that covers all weights
PIECE = 1 << 18  # weights per piece: fits into a cache


class QuantizedWeight:
    """A weight to be quantized. Its parts are written one after the other, but computed together."""

    def __init__(self, source: Tensor, bits: int, group_size: int | None):
        self.source, self.bits, self.group_size = source, bits, group_size
        self._small: dict[str, list[bytes]] = {}  # the parts that wait to be written, a few per cent of the whole

    def chunks(self, part: str) -> Iterator[bytes]:
        """Yields the bytes of a part. Those of the small parts are kept when `packed` is read, until they are read."""
        if part == "shape":
            yield to_bytes(torch.tensor(self.source.shape))
        elif part in self._small:
            yield from self._small.pop(part)
        else:
            small = part_shapes(self.source.shape, self.bits, self.group_size).keys() - {"packed", "shape"}
            kept: dict[str, list[bytes]] = {name: [] for name in small}
            for rows in read_rows(self.source):
                values, scale, zero = quantize(rows, self.bits, self.group_size)
                kept["scale"].append(to_bytes(scale))
                if "zero_point" in kept:
                    kept["zero_point"].append(to_bytes(pack(zero.T, self.bits).T))
                if part == "packed":
                    yield to_bytes(pack(values, self.bits))
            self._small = kept
            if part != "packed":
                yield from self._small.pop(part)


@dataclass(frozen=True)
class QuantizedPart:
    """One of the tensors that a quantized weight is stored as: `weight_packed`, `weight_scale` or `weight_shape`."""

    weight: QuantizedWeight
    part: str

    @property
    def dtype(self) -> torch.dtype:
        return {"scale": self.weight.source.dtype, "shape": torch.int64}.get(self.part, torch.int32)

    @property
    def shape(self) -> tuple[int, ...]:
        return part_shapes(self.weight.source.shape, self.weight.bits, self.weight.group_size)[self.part]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def chunks(self) -> Iterator[bytes]:
        return self.weight.chunks(self.part)


def part_shapes(shape: tuple[int, ...], bits: int, group_size: int | None) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that a weight (rows, columns) is stored as, by the end of their names."""
    rows, columns = shape
    shapes: dict[str, tuple[int, ...]] = {"packed": (rows, columns * bits // 32), "shape": (2,), "scale": (rows, 1)}
    if group_size is not None:
        shapes["scale"] = (rows, columns // group_size)
        shapes["zero_point"] = (rows * bits // 32, columns // group_size)
    return shapes


def quantize(rows: torch.Tensor, bits: int, group_size: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Returns int8 values (rows, columns), and scales and int8 zero points (rows, groups), such that
    (value - zero point) · scale is close to the weight. The scales have the dtype of `rows`. With 8 bits, all zero
    points are 0.
    """
    groups = rows.float().unflatten(1, (-1, group_size or rows.shape[1]))
    if bits == 8:
        candidates = [groups.abs().amax(-1, keepdim=True) / 127]
    else:
        span = (groups.amax(-1, keepdim=True).clamp(min=0) - groups.amin(-1, keepdim=True).clamp(max=0)) / 15
        candidates = [span * shrink for shrink in SHRINK]
    best = [torch.zeros_like(groups), *(torch.zeros_like(candidates[0]) for _ in range(2))]
    error = torch.full_like(candidates[0], torch.inf)
    for scale in candidates:
        scale = scale.to(rows.dtype).float()  # as it is stored
        scale = torch.where(scale > 0, scale, 1.0)
        zero = torch.zeros_like(scale)
        if bits == 4:
            zero = (-8 - groups.amin(-1, keepdim=True).clamp(max=0) / scale).round_()
            zero.clamp_(-8, 7)
        values = (groups / scale).round_().add_(zero).clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        found = ((values - zero) * scale - groups).square_().sum(-1, keepdim=True)
        best = [torch.where(found < error, new, old) for new, old in zip((values, scale, zero), best, strict=True)]
        error = torch.minimum(error, found)
    values, scale, zero = best
    return values.flatten(1).to(torch.int8), scale.squeeze(-1).to(rows.dtype), zero.squeeze(-1).to(torch.int8)


def read_rows(tensor: Tensor) -> Iterator[torch.Tensor]:
    """Yields the tensor (rows, columns) in pieces of whole rows, a multiple of ROWS."""
    width = tensor.shape[1] * tensor.dtype.itemsize
    unit = ROWS * width
    step = max(1, PIECE // (ROWS * tensor.shape[1])) * unit
    rest = b""
    for chunk in tensor.chunks():
        rest += chunk
        whole = len(rest) // unit * unit
        for start in range(0, whole, step):
            piece = bytearray(rest[start : min(start + step, whole)])
            yield torch.frombuffer(piece, dtype=tensor.dtype).view(-1, tensor.shape[1])
        rest = rest[whole:]


def can_quantize(name: str, shape: tuple[int, ...], scheme: str) -> bool:
    """Returns whether a tensor is the weight of a linear layer inside a decoder layer, in a size that kernels take."""
    bits, group_size = SCHEMES[scheme]
    return _is_linear(name, shape) and shape[0] % ROWS == 0 and shape[1] % (group_size or 32 // bits) == 0


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.startswith("model.layers.") and name.endswith(".weight") and GATE not in name


def quantized(tensors: Mapping[str, Tensor], scheme: str) -> dict[str, Tensor]:
    """Returns the tensors of a file with those of linear layers quantized."""
    result: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if can_quantize(name, tensor.shape, scheme):
            weight = QuantizedWeight(tensor, *SCHEMES[scheme])
            for part in part_shapes(tensor.shape, *SCHEMES[scheme]):
                result[f"{name}_{part}"] = QuantizedPart(weight, part)
        else:
            result[name] = tensor
    return result


def quantization_fields(shapes: dict[str, tuple[int, ...]], scheme: str) -> dict:
    """Returns the `quantization_config` of `config.json` for a model whose unquantized tensors have these shapes."""
    bits, group_size = SCHEMES[scheme]
    linear = [name for name, shape in shapes.items() if _is_linear(name, shape)]
    ignored = [name.removesuffix(".weight") for name in linear if not can_quantize(name, shapes[name], scheme)]
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "ignore": ["lm_head", *ignored],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": group_size is None,
                    "strategy": "group" if group_size else "channel",
                    "group_size": group_size,
                    "dynamic": False,
                },
            }
        },
    }


def quantized_shapes(shapes: dict[str, tuple[int, ...]], fields: dict) -> dict[str, tuple[int, ...]]:
    """
    Returns the tensors of a quantized model from those of the unquantized one. `fields` is its `quantization_config`.
    Raises ValueError for a format that this package does not write.
    """
    try:
        (group,) = fields["config_groups"].values()
        scheme = {8: "int8", 4: "int4"}[group["weights"]["num_bits"]]
        expected = quantization_fields({}, scheme) | {"ignore": fields["ignore"]}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError("config.json: this `quantization_config` cannot be checked.") from error
    if fields != expected:
        raise ValueError("config.json: this `quantization_config` cannot be checked.")
    result = {}
    for name, shape in shapes.items():
        if can_quantize(name, shape, scheme) and name.removesuffix(".weight") not in fields["ignore"]:
            parts = part_shapes(shape, *SCHEMES[scheme])
            result |= {f"{name}_{part}": part_shape for part, part_shape in parts.items()}
        else:
            result[name] = shape
    return result


def stored_bytes(shapes: dict[str, tuple[int, ...]], fields: dict | None, itemsize: int) -> int:
    """
    Returns the bytes of a model's weights. `shapes` are those of the unquantized parameters, `fields` is the
    `quantization_config` if there is one, and `itemsize` the bytes of a number that is not quantized.
    """
    sizes = {"packed": 4, "zero_point": 4, "shape": 8}
    stored = quantized_shapes(shapes, fields) if fields else shapes
    return sum(
        torch.Size(shape).numel() * sizes.get(name.split("weight_")[-1], itemsize) for name, shape in stored.items()
    )


def bytes_in(model: nn.Module, scheme: str | None, itemsize: int = 2) -> int:
    """
    Returns the bytes of the weights of `model`, which is not quantized, in a key of `SCHEMES`. None quantizes nothing.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return stored_bytes(shapes, quantization_fields(shapes, scheme) if scheme else None, itemsize)


def parameter_count(shapes: dict[str, tuple[int, ...]], fields: dict | None) -> int:
    """Returns the number of parameters of a model from the shapes of its stored tensors."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    if fields is None:
        return sum(sizes.values())
    (group,) = fields["config_groups"].values()
    per_word = 32 // group["weights"]["num_bits"]
    counts = {"packed": per_word, "scale": 0, "zero_point": 0, "shape": 0}
    return sum(size * counts.get(name.split("weight_")[-1], 1) for name, size in sizes.items())
