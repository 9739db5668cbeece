# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Decides which tokens of a batch may run their loops together, and builds attention metadata for each kind.

A request with one new token does not depend on anything else in this step, so all its loops go through the layers
together. The tokens of a prompt, or of a draft to verify, depend on each other, so their loops run in sequence. A batch
may contain both kinds. vLLM's attention describes a batch by metadata, and here each kind gets separate metadata.

Only the logits of a prompt's last token are needed, and for loops >= 1 these depend only on the end of the prompt: a
token's state in a layer depends on the window before it in the layer below, and on one token before it in the previous
loop. The same holds for what the cache keeps for later tokens, the last window's keys and the last token's states. On
request (`TAIL`), loops >= 1 run over only the end of every prompt chunk. The omitted part is then missing from the
cache, so other requests must not share it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from vllm.config import VllmConfig
from vllm.forward_context import ForwardContext, get_forward_context
from vllm.v1.attention.backend import (
    AttentionBackend,
    CommonAttentionMetadata,
    subclass_attention_backend,
)
from vllm.v1.worker.ubatch_utils import UBatchSlice, split_attn_metadata


TAIL = "plt_prompt_tail"  # in vLLM's `additional_config`


def tail_lengths(vllm_config: VllmConfig) -> tuple[int, ...]:
    """Returns how many of a request's last new tokens loops 1, 2, … run over; empty if they run over all."""
    config, lengths, needed = vllm_config.model_config.hf_config, [], 1
    if not (vllm_config.additional_config or {}).get(TAIL):
        return ()
    for _ in range(1, config.plt_num_loops):
        lengths.append(needed + config.plt_window_size[0] * config.num_hidden_layers)
        needed = lengths[-1] + 1
    return tuple(reversed(lengths))


@dataclass(frozen=True)
class Part:
    """
    Some rows of the batch, and a context in which attention sees only these rows. `tails` are the ends of its requests
    for loops 1, 2, …, with rows counted within this part. Empty if every loop runs over all rows. The rows of a tail
    are counted from row `first` of the batch.
    """

    rows: slice | torch.Tensor
    context: ForwardContext
    tails: tuple["Part", ...] = ()
    first: int = 0

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self.rows]


def single_tokens(batch: CommonAttentionMetadata, vllm_config: VllmConfig) -> int:
    """
    Returns how many requests at the front of the batch may run their loops together: those with a single new token
    whose previous token's state is in the cache. Reads only host memory.

    Requests can share the blocks of a prefix as soon as these are scheduled, before they are computed. If two requests
    with the same prefix arrive together, the second may need what the first computes in this step. This happens if its
    token is the first of a block, and the token before it is among the new tokens of another request.
    """
    cache = vllm_config.cache_config
    counts = batch.query_start_loc_cpu.diff()
    waits = counts > 1
    if cache.enable_prefix_caching and batch.num_reqs > 1:
        ends = batch.seq_lens_cpu_upper_bound
        ends = (batch.seq_lens.cpu() if ends is None else ends).to(counts.dtype)
        first_of_block = (counts == 1) & (ends > 1) & ((ends - 1) % cache.block_size == 0)
        if first_of_block.any():
            before = (ends - 2)[:, None]
            waits |= first_of_block & ((ends - counts <= before) & (before < ends)).any(1)
    return int(waits.int().argmax()) if waits.any() else batch.num_reqs


def shorten(batch: CommonAttentionMetadata, length: int) -> tuple[CommonAttentionMetadata, torch.Tensor]:
    """Shortens each request to at most its last `length` new tokens. Also returns their row numbers in the batch."""
    starts = batch.query_start_loc_cpu.long()
    counts = starts.diff().clamp(max=length)
    ends = counts.cumsum(0)
    rows = torch.arange(int(ends[-1])) + (starts[1:] - ends).repeat_interleave(counts)
    rows = rows.to(batch.slot_mapping.device)
    new_starts = torch.cat([ends.new_zeros(1), ends]).to(batch.query_start_loc_cpu.dtype)
    shorter = replace(
        batch,
        query_start_loc=new_starts.to(batch.query_start_loc.device),
        query_start_loc_cpu=new_starts,
        num_actual_tokens=len(rows),
        max_query_len=int(counts.max()),
        slot_mapping=batch.slot_mapping[rows],
    )
    return shorter, rows


@functools.cache
def in_parts(backend: type[AttentionBackend], lengths: tuple[int, ...]) -> type[AttentionBackend]:
    """
    Returns the same backend with two more fields in its metadata. `parts` is the metadata of each kind of request if
    the batch has both. `tails` is for requests that run their loops in sequence: for each of `lengths`, the metadata
    and rows of the requests' last tokens, if any request has more tokens.
    """
    stock = backend.get_builder_cls()

    class Builder(stock):  # type: ignore[valid-type, misc]
        supports_update_block_table = False  # it would not update the parts
        reorder_batch_threshold = 1  # requests with one new token come first

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            # Separate builders, since some reuse buffers for their results.
            self._builders = functools.cache(lambda count: [stock(*args, **kwargs) for _ in range(count)])

        def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
            batch = common_attn_metadata
            metadata = super().build(common_prefix_len, batch, fast_build)
            single, metadata.parts, metadata.tails = single_tokens(batch, self.vllm_config), (), ()
            *builders, first, second = self._builders(len(lengths) + 2)
            if 0 < single < batch.num_reqs:
                slices = [
                    UBatchSlice(slice(0, single), slice(0, single)),
                    UBatchSlice(slice(single, batch.num_reqs), slice(single, batch.num_actual_tokens)),
                ]
                singles, batch = split_attn_metadata(slices, batch)
                metadata.parts = first.build(0, singles), second.build(0, batch)
            if lengths and single < common_attn_metadata.num_reqs and batch.max_query_len > lengths[-1]:
                shorter = [shorten(batch, length) for length in lengths]
                metadata.tails = tuple(
                    (builder.build(0, part), rows) for builder, (part, rows) in zip(builders, shorter, strict=True)
                )
            return metadata

    return subclass_attention_backend("PLT", backend, Builder)


def split(layer_name: str | None, num_rows: int) -> tuple[Part | None, Part | None]:
    """
    Splits a batch of `num_rows` rows into the part with loops run together and the part with loops run in sequence.
    An empty part is None. `layer_name` is a layer with `CarryMetadata`, or None for one loop.
    """
    context = get_forward_context()
    whole = Part(slice(0, num_rows), context)
    if layer_name is None or not context.attn_metadata:  # one loop, or vLLM's memory profiling run
        return None, whole
    metadata = context.attn_metadata[layer_name]
    requests = len(metadata.block_table)
    if metadata.single == requests == num_rows:
        return whole, None
    together, first_row, rest = None, 0, whole
    if metadata.parts:
        first_row = metadata.single
        together, rest = (
            Part(rows, _narrow(context, rows, lambda of_layer, index=index: of_layer.parts[index]))
            for index, rows in enumerate((slice(0, first_row), slice(first_row, num_rows)))
        )
    tails = tuple(
        Part(
            rows,
            _narrow(context, rows + first_row, lambda of_layer, index=index: of_layer.tails[index][0]),
            first=first_row,
        )
        for index, (_, rows) in enumerate(metadata.tails)
    )
    return together, replace(rest, tails=tails)


def _narrow(context: ForwardContext, rows: slice | torch.Tensor, choose: Callable) -> ForwardContext:
    """Returns the context of some rows. `choose` selects their metadata from a layer's."""
    return replace(
        context,
        attn_metadata={name: choose(of_layer) for name, of_layer in context.attn_metadata.items()},
        slot_mapping={name: slots[rows] for name, slots in context.slot_mapping.items()},
    )
