# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Writes quantized folders as other tools do: AWQ, GPTQ, and compressed-tensors with rounded inputs (W8A8)."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from iquest_plt.conversion.quantize import quantize
from iquest_plt.packed_kernels_plt import pack


GROUP = 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the columns in a word, from the lowest bits on


def awq(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    values, scale, zero = quantize(weight, 4, GROUP)

    def words(matrix: torch.Tensor) -> torch.Tensor:
        return pack(matrix.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), 4)

    parts = {"qweight": words(values), "qzeros": words(zero), "scales": scale.T}
    return parts, dequantized(values, scale, zero)


def gptq(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    groups = weight.unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1) / 7
    values = (groups / scale.unsqueeze(-1)).round().flatten(1).to(torch.int8)
    zero = torch.zeros_like(scale, dtype=torch.int8)
    parts = {"qweight": pack(values, 4).T, "qzeros": pack(zero.T - 1, 4), "scales": scale.T}
    parts["g_idx"] = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
    return parts, dequantized(values, scale, zero)


def w8a8(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    values, scale, zero = quantize(weight, 8, None)
    return {"weight": values, "weight_scale": scale}, dequantized(values, scale, zero)


def dequantized(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    groups = values.float().unflatten(1, (scale.shape[1], -1)) - zero.unsqueeze(-1)
    return (groups * scale.float().unsqueeze(-1)).flatten(1)


def _integers(**fields) -> dict:
    return {"num_bits": 8, "type": "int", "symmetric": True, **fields}


FORMATS = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}),
    "w8a8": (
        w8a8,
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": _integers(strategy="channel"),
                    "input_activations": _integers(strategy="token", dynamic=True),
                }
            },
        },
    ),
}


def save_quantized(source: str, folder: Path, name: str) -> tuple[str, str]:
    """Writes a model folder in a format, and another with the same rounded weights in float32. Returns both paths."""
    split, fields = FORMATS[name]
    quantized, plain = {}, {}
    for key, tensor in load_file(Path(source) / "model.safetensors").items():
        plain[key] = tensor.float()
        if ".layers." in key and key.endswith("_proj.weight"):
            parts, plain[key] = split(tensor)
            quantized |= {key.removesuffix("weight") + part: value.contiguous() for part, value in parts.items()}
        else:
            quantized[key] = tensor
    config = json.loads((Path(source) / "config.json").read_text())
    paths = {}
    for kind, tensors in (("quantized", quantized), ("plain", plain)):
        paths[kind] = folder / f"{name}-{kind}"
        shutil.copytree(source, paths[kind])
        save_file(tensors, paths[kind] / "model.safetensors", metadata={"format": "pt"})
    config["quantization_config"] = fields
    (paths["quantized"] / "config.json").write_text(json.dumps(config))
    return str(paths["quantized"]), str(paths["plain"])
