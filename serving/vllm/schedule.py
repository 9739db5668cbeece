# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Which tokens of a batch may run their loops together, and what attention must know of them alone.

A request with one new token waits for nothing that this step computes: all its loops go through the layers at once.
The tokens of a prompt, or of a draft to be verified, wait for each other: their loops run in sequence. A batch may have
both. vLLM's attention describes batches by metadata; of a batch with both kinds, each kind gets metadata of its own.
"""

import functools
from dataclasses import dataclass, replace

import torch
from vllm.forward_context import ForwardContext, get_forward_context
from vllm.v1.attention.backend import (
    AttentionBackend,
    CommonAttentionMetadata,
    subclass_attention_backend,
)
from vllm.v1.worker.ubatch_utils import UBatchSlice, split_attn_metadata


@dataclass(frozen=True)
class Part:
    """Some rows of the batch, and the context in which attention sees nothing but them."""

    rows: slice
    context: ForwardContext

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self.rows]


def single_tokens(batch: CommonAttentionMetadata) -> int:
    """How many requests at the front of the batch have one new token, no more. Looks at host memory only."""
    if batch.max_query_len == 1:
        return batch.num_reqs
    is_longer = batch.query_start_loc_cpu.diff() != 1
    return int(is_longer.int().argmax()) if is_longer.any() else batch.num_reqs


@functools.cache
def in_parts(backend: type[AttentionBackend]) -> type[AttentionBackend]:
    """The same backend, whose metadata has `parts` besides: that of the two kinds of requests, if there are both."""
    stock = backend.get_builder_cls()

    class Builder(stock):
        supports_update_block_table = False  # it would leave the parts as they were
        reorder_batch_threshold = 1  # requests with one new token come first

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            # Builders of their own, since some keep what they built in buffers.
            self._part_builders = functools.cache(lambda: [stock(*args, **kwargs) for _ in range(2)])

        def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
            batch = common_attn_metadata
            metadata = super().build(common_prefix_len, batch, fast_build)
            single, metadata.parts = single_tokens(batch), ()
            if 0 < single < batch.num_reqs:
                slices = [
                    UBatchSlice(slice(0, single), slice(0, single)),
                    UBatchSlice(slice(single, batch.num_reqs), slice(single, batch.num_actual_tokens)),
                ]
                metadata.parts = tuple(
                    builder.build(0, part)
                    for builder, part in zip(self._part_builders(), split_attn_metadata(slices, batch), strict=True)
                )
            return metadata

    return subclass_attention_backend("PLT", backend, Builder)


def split(layer_name: str | None, num_rows: int) -> tuple[Part, Part | None, Part | None]:
    """
    The whole batch of `num_rows` rows, the part whose loops run together, and the part whose loops run in sequence, or
    None. `layer_name` names a layer with `CarryMetadata`; None if there is one loop.
    """
    context = get_forward_context()
    whole = Part(slice(0, num_rows), context)
    if layer_name is None:
        return whole, None, None
    if not context.attn_metadata:  # a trial run, to measure memory
        return whole, None, whole
    metadata = context.attn_metadata[layer_name]
    requests = len(metadata.block_table)
    if metadata.single == requests == num_rows:
        return whole, whole, None
    if not metadata.parts:
        return whole, None, whole
    rows = slice(0, metadata.single), slice(metadata.single, num_rows)
    return whole, *(
        Part(
            part,
            replace(
                context,
                attn_metadata={name: of_layer.parts[index] for name, of_layer in context.attn_metadata.items()},
                slot_mapping={name: slots[part] for name, slots in context.slot_mapping.items()},
            ),
        )
        for index, part in enumerate(rows)
    )
