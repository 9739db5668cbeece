# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Weights of 4 and 8 bits on a CPU, by PyTorch's kernels, as in the Transformers model.

vLLM 0.32 has no CPU kernel for 8-bit weights with unrounded inputs (`iquest-plt convert --quantize int8`), so this one
is used. For 4-bit weights it takes its own kernel, unless the environment variable `VLLM_DISABLED_KERNELS` names it.
"""

import torch
from torch import nn
from vllm.model_executor.kernels.linear import MPLinearKernel, MPLinearLayerConfig, register_linear_kernel
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

from ...packed_kernels_plt import ROWS, PackedWeight, TorchProduct


GROUP_SIZES = {8: (-1,), 4: (32, 64, 128, 256)}  # columns that share a scale, by bits; -1 for all
TYPES = (scalar_types.uint8b128, scalar_types.uint4b8, scalar_types.uint4)  # 8 and 4 bits, 4 bits with zero points


def outputs_first(part: nn.Parameter) -> torch.Tensor:
    """Returns a part of a weight with the outputs as its first dimension. GPTQ and AWQ store the transpose."""
    return part.data if part.output_dim == 0 else part.data.t().contiguous()  # type: ignore[attr-defined]


class PackedKernel(MPLinearKernel):
    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        if c.weight_type not in TYPES or c.group_size not in GROUP_SIZES[c.weight_type.size_bits]:
            return False, f"it takes integers of 8 or 4 bits with a scale for these numbers of columns: {GROUP_SIZES}"
        if c.partition_weight_shape[1] % ROWS:
            return False, f"it takes a multiple of {ROWS} outputs"
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        packed, scale, zero_point = self._get_weight_params(layer)
        weight = PackedWeight(
            self.config.weight_type.size_bits,
            outputs_first(packed),
            outputs_first(scale),
            outputs_first(zero_point) if self.config.zero_points else None,
        )
        self.product = TorchProduct(weight)
        replace_parameter(layer, self.w_q_name, self.product.values)  # frees the packed words
        replace_parameter(layer, self.w_s_name, self.product.scale)

    def apply_weights(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        output = self.product(x.flatten(0, -2)).view(*x.shape[:-1], -1)
        return output if bias is None else output + bias


register_linear_kernel(PackedKernel, PlatformEnum.CPU)  # once per process, as this module is imported once
