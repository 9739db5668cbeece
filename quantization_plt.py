# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Weights of 4 and 8 bits on a CPU: folders in the format of compressed-tensors, run by the kernels of
`packed_kernels_plt.py`.

Decoding reads all weights once per token, so fewer bits mean more tokens per second. Elsewhere (`device_map="cuda"`)
the library's quantizer for compressed-tensors loads the same folder.
"""

from typing import Any

import torch
from torch import nn
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from .packed_kernels_plt import PRODUCTS, PackedWeight, packed_kernels


METHOD = "plt-packed-cpu"
FORMAT = "pack-quantized"  # the name in compressed-tensors


class PackedLinear(nn.Module):
    """
    A linear layer without bias: 4-bit integers with a scale and a zero point per row and group of columns, or 8-bit
    integers with one scale per row. Its tensors are those of a compressed-tensors checkpoint until `prepare` hands them
    to a kernel.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero_point: torch.Tensor | None
    product: Any  # a Product after `prepare`, None before

    def __init__(self, in_features: int, out_features: int, bits: int, group_size: int | None, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features, self.bits, self.group_size = in_features, out_features, bits, group_size
        groups = in_features // group_size if group_size else 1
        self.register_buffer("weight_packed", torch.zeros(out_features, in_features * bits // 32, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.zeros(out_features, groups, dtype=dtype))
        self.register_buffer("weight_shape", torch.zeros(2, dtype=torch.int64))
        zero_point = torch.zeros(out_features * bits // 32, groups, dtype=torch.int32) if bits == 4 else None
        self.register_buffer("weight_zero_point", zero_point)
        self.product = None

    @property
    def weight(self) -> PackedWeight:
        """The stored weight, until `prepare`."""
        return PackedWeight(self.bits, self.weight_packed, self.weight_scale, self.weight_zero_point)

    def prepare(self, kernels: str) -> None:
        """Hands the loaded weight to `kernels`, a key of `PRODUCTS`."""
        self.product = PRODUCTS[kernels](self.weight)
        del self.weight_packed, self.weight_scale, self.weight_shape, self.weight_zero_point

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        return self.product(states.flatten(0, -2)).view(*states.shape[:-1], self.out_features)

    def _apply(self, function, recurse=True):
        if self.product is not None and function(torch.empty(0)).device.type != "cpu":
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
    """
    Selects these kernels, for 4 bits in groups of `group_size` columns or 8 bits per row. `ignore` are the names of
    linear layers that are not quantized.
    """

    def __init__(self, bits: int = 4, group_size: int | None = None, ignore: list[str] | None = None, **kwargs):
        self.quant_method = METHOD
        self.bits, self.ignore = bits, list(ignore or [])
        self.group_size = (group_size or 32) if bits == 4 else None


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
        kernels = packed_kernels()
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.prepare(kernels)

    def is_serializable(self, *args, **kwargs) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


# Not `register_quantizer`, which fails if a checkpoint's remote code is loaded beside the package.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = PackedConfig
AUTO_QUANTIZER_MAPPING[METHOD] = PackedQuantizer

__all__ = ["PackedConfig", "PackedLinear", "PackedQuantizer"]
