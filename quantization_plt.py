# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Weights of 4 and 8 bits on a CPU: folders in the format of compressed-tensors, run by PyTorch's own kernels.

Decoding reads all weights once per token, so fewer bits mean more tokens per second. These kernels also multiply a few
rows in about the time of one, which is what lets the loops of a token run together. Elsewhere (`device_map="cuda"`) the
library's quantizer for compressed-tensors loads the same folder.
"""

import torch
from torch import nn
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin


METHOD = "plt-packed-cpu"
FORMAT = "pack-quantized"  # the name in compressed-tensors
MANY_ROWS = 64  # from here on, dequantizing 8-bit weights and multiplying in bf16 is faster


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


class PackedLinear(nn.Module):
    """
    A linear layer without bias: 4-bit integers with a scale and a zero point per row and group of columns, or 8-bit
    integers with one scale per row. Its tensors are those of a compressed-tensors checkpoint until `prepare` puts them
    into the order that PyTorch's CPU kernels read.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero_point: torch.Tensor
    values: torch.Tensor
    scale: torch.Tensor

    def __init__(self, in_features: int, out_features: int, bits: int, group_size: int | None, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features, self.bits, self.group_size = in_features, out_features, bits, group_size
        groups = in_features // group_size if group_size else 1
        self.register_buffer("weight_packed", torch.zeros(out_features, in_features * bits // 32, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.zeros(out_features, groups, dtype=dtype))
        self.register_buffer("weight_shape", torch.zeros(2, dtype=torch.int64))
        if bits == 4:
            self.register_buffer("weight_zero_point", torch.zeros(out_features * bits // 32, groups, dtype=torch.int32))

    @torch.no_grad()
    def prepare(self) -> None:
        """Orders the loaded weights for the kernels."""
        values, scale = unpack(self.weight_packed, self.bits), self.weight_scale
        if self.bits == 4:  # the kernel computes (unsigned value - 8) · scale + offset
            offset = -unpack(self.weight_zero_point.T, self.bits).T * scale
            values = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.to(torch.int32) + 8, 1)
            scale = torch.stack([scale.T, offset.T], -1).contiguous()
            del self.weight_zero_point
        else:
            scale = scale.squeeze(1)
        del self.weight_packed, self.weight_scale, self.weight_shape
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        rows, scale = states.flatten(0, -2), self.scale.to(states.dtype)
        if self.bits == 4:
            result = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.values, self.group_size, scale)
        elif len(rows) < MANY_ROWS:
            result = torch.ops.aten._weight_int8pack_mm(rows, self.values, scale)
        else:
            result = nn.functional.linear(rows, self.values.to(states.dtype)) * scale
        return result.view(*states.shape[:-1], self.out_features)

    def _apply(self, function, recurse=True):
        if "values" in self._buffers and function(torch.empty(0)).device.type != "cpu":
            raise ValueError(
                "These quantized weights are in the CPU's order and cannot be moved. "
                'Load the model with device_map="cuda" instead.'
            )
        return super()._apply(function, recurse)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"


def packed_scheme(stored: dict | QuantizationConfigMixin | None) -> "PackedConfig | None":
    """
    Returns the scheme of a `quantization_config` if the kernels here can run it, else None. They take weights of 4 bits
    in groups with zero points, or symmetric ones of 8 bits per row; unquantized activations; and the same scheme for
    all linear layers.
    """
    fields = stored.to_dict() if isinstance(stored, QuantizationConfigMixin) else stored or {}
    groups = list((fields.get("config_groups") or {}).values())
    if fields.get("quant_method") != "compressed-tensors" or fields.get("format") != FORMAT or len(groups) != 1:
        return None
    weights = groups[0].get("weights") or {}
    if groups[0].get("targets") != ["Linear"] or groups[0].get("input_activations") is not None:
        return None
    match tuple(weights.get(name) for name in ("type", "num_bits", "strategy", "symmetric")):
        case ("int", 4, "group", False):
            return PackedConfig(4, weights["group_size"], fields.get("ignore"))
        case ("int", 8, "channel", True):
            return PackedConfig(8, None, fields.get("ignore"))
    return None


class PackedConfig(QuantizationConfigMixin):
    """Selects these kernels. `ignore` are the names of linear layers that are not quantized."""

    def __init__(self, bits: int = 4, group_size: int | None = 32, ignore: list[str] | None = None, **kwargs):
        self.quant_method = METHOD
        self.bits, self.group_size, self.ignore = bits, group_size, list(ignore or [])


class PackedQuantizer(HfQuantizer):
    """Loads the tensors of a compressed-tensors checkpoint into [`PackedLinear`] layers."""

    requires_calibration = False
    quantization_config: PackedConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs) -> None:
        config = self.quantization_config
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name not in config.ignore:
                size = (module.in_features, module.out_features)
                with torch.device(module.weight.device):
                    packed = PackedLinear(*size, config.bits, config.group_size, module.weight.dtype)
                model.set_submodule(name, packed)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs) -> None:
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.prepare()

    def is_serializable(self, *args, **kwargs) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


# Not `register_quantizer`, which fails if a checkpoint's remote code is loaded beside the package.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = PackedConfig
AUTO_QUANTIZER_MAPPING[METHOD] = PackedQuantizer

__all__ = ["PackedConfig", "PackedLinear", "PackedQuantizer"]
