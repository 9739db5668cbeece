# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Weights of 8 bits with one scale per row on a CPU, the format of `iquest-plt convert --quantize int8`. vLLM 0.32 has CPU
kernels for 4-bit weights and for products of 8-bit integers, but none that leaves the inputs as they are.
"""

import torch
from torch import nn
from vllm.model_executor.kernels.linear import MPLinearKernel, MPLinearLayerConfig, register_linear_kernel
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

from ...packed_kernels_plt import PackedWeight, TorchProduct


class PackedInt8Kernel(MPLinearKernel):
    """Uses PyTorch's kernel, as the Transformers model does."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        if c.weight_type != scalar_types.uint8b128 or c.group_size != -1:
            return False, "it takes symmetric 8-bit weights with one scale per row"
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        packed, scale, _ = self._get_weight_params(layer)
        if packed.input_dim == 0:  # GPTQ stores both transposed
            packed, scale = packed.t(), scale.t()
        self.product = TorchProduct(PackedWeight(8, packed.data, scale.data))
        replace_parameter(layer, self.w_q_name, self.product.values)  # frees the packed words
        replace_parameter(layer, self.w_s_name, self.product.scale)

    def apply_weights(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        output = self.product(x.flatten(0, -2)).view(*x.shape[:-1], -1)
        return output if bias is None else output + bias


register_linear_kernel(PackedInt8Kernel, PlatformEnum.CPU)  # once per process, as this module is imported once
