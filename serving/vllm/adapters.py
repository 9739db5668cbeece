# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
LoRA adapters, several in one batch.

vLLM's LoRA layers look up the adapter of each input row, and expect one row per token of the batch. A pass through the
layers of a PLT has other rows: loops that run together repeat the tokens, and later loops run over some of them. So the
decoder layers get a lookup of their own here, which the model fills before every pass.
"""

from collections.abc import Sequence

import torch
from vllm.lora.model_manager import DEFAULT_LANGUAGE_WRAPPER_KEY, LoRAModelManager
from vllm.lora.punica_wrapper import get_punica_wrapper
from vllm.platforms import current_platform

from .schedule import Part


class CPULookup:
    """
    Computes the adapters' share of a linear layer. vLLM's own class for CPUs gives rows without an adapter the one in
    the last slot, and copies the adapter's weights for every row.
    """

    def fill(self, slots: torch.Tensor) -> None:
        """`slots` (rows,) are the places of the rows' adapters in the layers' weights, -1 for none."""
        self.groups = [(slot, (slots == slot).nonzero()[:, 0]) for slot in slots.unique().tolist() if slot >= 0]

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        lora_b_stacked: Sequence[torch.Tensor],
        scale: float,
        output_slices: Sequence[int],
        **kwargs,
    ) -> torch.Tensor:
        """
        Adds `scale · B A x` to the rows of `y` (rows, outputs). Each slice of the outputs has its own weights A (slots,
        1, rank, inputs) and B (slots, 1, outputs, rank).
        """
        for slot, rows in self.groups:
            inputs, start = x[rows], 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                y[rows, start : start + size] += scale * (inputs @ a[slot, 0].T @ b[slot, 0].T)
                start += size
        return y


class Adapters:
    """The adapters of a batch's tokens, and the lookup of the decoder layers."""

    def __init__(self, manager: LoRAModelManager, num_loops: int):
        self.of_batch = manager.punica_wrapper_mapping[DEFAULT_LANGUAGE_WRAPPER_KEY]
        if current_platform.is_cpu():
            lookup = CPULookup()
            self._fill = lookup.fill
        else:
            most = manager.max_num_batched_tokens + (num_loops - 1) * manager.max_num_seqs
            lookup = get_punica_wrapper(most, most, manager.device, lora_config=manager.lora_config)
            self._fill = lookup.token_mapping_meta.prepare_tensors
        for module in manager.modules.values():
            module.set_mapping(lookup)
        # vLLM ignores adapters of layers that it cannot wrap. Without this name, it rejects those of the gates.
        if "plt_gate" in manager.supported_lora_modules:
            manager.supported_lora_modules.remove("plt_gate")

    def prepare(self, parts: list[tuple[Part, int]]) -> None:
        """Fills the lookup for a pass over the rows of these parts, each repeated for a number of loops."""
        slots = self.of_batch.token_lora_indices
        self._fill(torch.cat([part.of(slots[part.first :]).repeat(loops) for part, loops in parts]))
