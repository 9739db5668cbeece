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
What a block of tokens looks like to the layers: the masks of both branches, and which token comes before which.

Padding may stand anywhere, also between tokens. The loops' shift and their windows count tokens, not columns, so that a
row gives what it gives alone. Most batches need none of it (`None` below) or no more than the library's masks.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .cache_plt import last_tokens
from .compat_plt import CACHE_NAME


MASKED = -1e3  # an additive mask is 0 where a key is seen, and far below this where not
SMALLEST_BLOCK = 64  # queries: smaller blocks of the window branch only multiply the calls


@dataclass
class BlockLayout:
    """
    Attributes:
        global_mask: the mask of attention to loop 0's keys, as the attention kernel wants it.
        window_mask: the same for a loop's own window; of `window_block` queries each, (batch or 1, blocks, 1,
            heads per key head * window_block, window_block + w), where that is given.
        window_block: None, or into how many queries each the window branch is cut, for memory and time in O(T · w).
        window_kernel: the attention kernel of these blocks.
        window_tokens (batch, window + time): which keys of the window branch are tokens; None: all.
        window_keep (batch, <= w): the keys of the window branch that the cache keeps; None: the last.
        previous (batch, time + 1): for each new token, and the next one, where the token before it stands: 0 is the
            last token of the cache, i + 1 column i. None: in the column before.
    """

    global_mask: torch.Tensor | None
    window_mask: torch.Tensor | None = None
    window_block: int | None = None
    window_kernel: str | None = None
    window_tokens: torch.Tensor | None = None
    window_keep: torch.Tensor | None = None
    previous: torch.Tensor | None = None


class _CacheView:
    """What the library's mask functions ask of a cache: how many keys there are, and where the queries begin."""

    is_sliding = (True,)

    def __init__(self, keys: int, query_offset: int | torch.Tensor, is_compileable: bool = False):
        self.keys = keys
        self.query_offset = query_offset
        self.is_compileable = is_compileable

    def get_query_offset(self, layer_idx: int = 0) -> int | torch.Tensor:
        return self.query_offset

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.keys, 0


def prepare_mask(config, inputs_embeds, attention_mask, position_ids, cache) -> dict[str, torch.Tensor | None]:
    """
    What `generate()` asks for ahead of a compiled step: of fixed shapes, `forward` takes it as `attention_mask`.

    Returns:
        `global_mask`, as in `BlockLayout`, and `tokens` (batch, time): which new columns are no padding; None: all.
    """
    global_mask = create_causal_mask(config, inputs_embeds, attention_mask, cache, position_ids=position_ids)
    tokens = None if attention_mask is None else attention_mask[:, -inputs_embeds.shape[1] :].bool()
    return {"global_mask": global_mask, "tokens": None if tokens is None or _is_true(tokens.all()) else tokens}


def create_layout(
    config,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | dict | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    num_loops: int,
    looped_rows: int = 1,
    in_blocks: bool = False,
) -> BlockLayout:
    """
    The layout of a block of new tokens. Of `inputs_embeds` (batch, time, any) only shape, dtype and device count.
    `attention_mask` is (batch, past + time), or what `prepare_mask` returns, or without a cache (batch, 1, time, time);
    without it `position_ids` that restart tell documents apart. `looped_rows` loops share one call of the window
    branch: its mask gets as many rows a sequence. `in_blocks` lets the window branch be cut into blocks where it can.
    """
    batch, time = inputs_embeds.shape[:2]
    # Eager attention takes its softmax in float32, where the lowest float64 is -inf: a row all masked would be NaN.
    model_dtype = inputs_embeds.dtype
    dtype = torch.float32 if model_dtype == torch.float64 else model_dtype
    inputs_embeds = inputs_embeds.new_empty((batch, time, 0), dtype=dtype)
    if num_loops > 1 and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4:
        return _layout_of_4d_mask(attention_mask, config.loop_window, looped_rows)
    new = None
    if isinstance(attention_mask, dict):
        layout, new, position_ids = BlockLayout(attention_mask["global_mask"]), attention_mask["tokens"], None
        if new is not None and _is_true(new.all()):
            new = None
    else:
        if num_loops > 1 and attention_mask is not None:
            new = attention_mask[:, -time:].to(inputs_embeds.device).bool()
            is_full, is_new_full = _are_true(attention_mask.all(), new.all())
            if is_full:
                attention_mask = position_ids = None
            if is_new_full:
                new = None
        layout = BlockLayout(
            create_causal_mask(config, inputs_embeds, attention_mask, cache, position_ids=position_ids)
        )
    if num_loops == 1:
        return layout

    if new is not None:
        layout.previous = _previous_tokens(new)
    elif cache is None and attention_mask is None and position_ids is not None:
        layout.previous = _previous_in_document(position_ids)

    # CODEPATH: other values are controls for research.
    if config.plt_loop_attention == "shared":
        return layout

    left, length, tokens, has_gaps = config.loop_window, 0, None, False
    if cache is not None:
        length = cache.layers[0].window_length
        tokens = cache.layers[0].get_window_tokens(batch, inputs_embeds.device)
    if new is not None or tokens is not None:
        past = inputs_embeds.new_ones((batch, length), dtype=torch.bool) if tokens is None else tokens
        now = inputs_embeds.new_ones((batch, time), dtype=torch.bool) if new is None else new
        tokens = layout.window_tokens = torch.cat([past, now], dim=1)
        # Padding after a token. The cache itself leaves it out, except while it records the past.
        may_have_gaps = new is not None or cache.layers[0].record_past
        has_gaps = may_have_gaps and not _is_true((tokens[:, 1:] >= tokens[:, :-1]).all())
        if has_gaps:
            layout.window_keep = last_tokens(tokens, left)

    in_blocks = in_blocks and config._attn_implementation in ("eager", "sdpa")  # others have windows, or forms, of own
    if in_blocks and not has_gaps and time > left + 1:
        segments = _segments(tokens, layout.previous, length, time, inputs_embeds.device)
        layout.window_block = max(left, SMALLEST_BLOCK)
        heads_per_key = config.num_attention_heads // config.num_key_value_heads
        layout.window_mask = _block_mask(segments, time, left, layout.window_block).repeat(1, 1, 1, heads_per_key, 1)
        # Blocks are so small that a CPU multiplies them faster as matrices. Eager attention scales its scores after the
        # product, and takes its softmax in float32: not for float16 and float64.
        as_matrices = inputs_embeds.device.type == "cpu" and model_dtype in (torch.float32, torch.bfloat16)
        layout.window_kernel = "eager" if as_matrices else config._attn_implementation
        if layout.window_kernel == "eager":
            lowest = torch.finfo(inputs_embeds.dtype).min
            layout.window_mask = torch.where(layout.window_mask, 0.0, lowest).to(inputs_embeds.dtype)
        return layout

    arguments = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": tokens,
        CACHE_NAME: None if cache is None else _CacheView(length + time, length, cache.is_compileable),
        "position_ids": position_ids if attention_mask is None else None,
    }
    if looped_rows > 1:
        arguments["inputs_embeds"] = inputs_embeds.new_empty((looped_rows * batch, time, 0))
        arguments["attention_mask"] = tokens = None if tokens is None else tokens.repeat(looped_rows, 1)
        arguments["position_ids"] = None  # one token: no documents to tell apart
    if length + time <= left + 1:  # the window holds no more than the last token sees
        layout.window_mask = create_causal_mask(**arguments)
    elif has_gaps:
        before = tokens.cumsum(-1) - tokens.long()  # how many tokens come before each column
        layout.window_mask = create_causal_mask(
            **arguments, and_mask_function=lambda b, h, q, k: before[b, q] - before[b, k] <= left
        )
    else:  # On the model's own config this field would turn every layer into a window layer.
        arguments["config"] = copy.copy(config)
        arguments["config"].sliding_window = left + 1
        layout.window_mask = create_sliding_window_causal_mask(**arguments)
    return layout


def create_tail_mask(config, inputs_embeds, global_mask, cache: Cache | None, queries: int) -> torch.Tensor | None:
    """The last `queries` rows of the global branch's mask; where that is None, those of a plain causal one."""
    if global_mask is not None:
        return global_mask[..., -queries:, :]
    batch, time = inputs_embeds.shape[:2]
    keys = time if cache is None else cache.get_mask_sizes(time, 0)[0]
    past_length = 0 if cache is None else cache.get_seq_length()
    view = _CacheView(keys, past_length + time - queries, cache is not None and cache.is_compileable)
    return create_causal_mask(config, inputs_embeds.new_empty((batch, queries, 0)), None, view)


def _segments(tokens, previous, length: int, time: int, device) -> torch.Tensor:
    """A number for each key of the window branch, (batch or 1, length + time), equal where one may see the other."""
    if tokens is not None:  # padding sees padding, so that no row is all masked
        return tokens.long()
    if previous is not None:
        return (previous[:, :-1] == 0).cumsum(dim=-1)
    return torch.ones(1, length + time, dtype=torch.long, device=device)


def _block_mask(segments: torch.Tensor, time: int, left: int, block: int) -> torch.Tensor:
    """
    Masks of the last `time` queries in blocks of `block`, counted from the last; (batch or 1, blocks, 1, block,
    block + left). A block sees its own keys and the `left` before them. What is missing in front is one more segment.
    """
    blocks = -(-time // block)
    needed = blocks * block + left
    segments = nn.functional.pad(segments, (max(needed - segments.shape[1], 0), 0), value=-1)[:, -needed:]
    keys = segments.unfold(1, block + left, block)
    queries = segments[:, left:].unflatten(1, (blocks, block))
    distance = torch.arange(block, device=keys.device)[:, None] + left - torch.arange(block + left, device=keys.device)
    in_window = (distance >= 0) & (distance <= left)
    return (in_window & (queries[..., None] == keys[:, :, None]))[:, :, None]


def _layout_of_4d_mask(mask: torch.Tensor, left: int, looped_rows: int) -> BlockLayout:
    """
    A mask (batch, 1, time, time), boolean or additive, says of each token which others its text consists of, such as a
    prompt that several continuations share. The last of them is the one before it, the last `left` are its window.
    """
    seen = _seen(mask)[:, 0]
    time = seen.shape[-1]
    columns = torch.arange(1, time + 1, device=mask.device)
    previous = (seen.tril(-1) * columns).amax(dim=-1)
    last = previous.new_full((len(previous), 1), time)
    seen_after = seen.flip(-1).cumsum(-1).flip(-1) - seen.long()
    in_window = (seen_after <= left)[:, None]
    lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    window_mask = mask.masked_fill(~in_window, lowest).repeat(looped_rows, 1, 1, 1)
    return BlockLayout(mask, window_mask, previous=torch.cat([previous, last], dim=1))


def _seen(mask: torch.Tensor) -> torch.Tensor:
    """Which keys a 4D mask lets a query see."""
    return mask if mask.dtype == torch.bool else mask > MASKED


def _are_true(*conditions: torch.Tensor) -> list[bool]:
    """
    Which scalar tensors are known to be true, in one look at the device. While compiling none is, and the general case
    is built.
    """
    if torch.compiler.is_compiling():
        return [False] * len(conditions)
    return torch.stack([condition.to(conditions[0].device) for condition in conditions]).tolist()


def _is_true(condition: torch.Tensor) -> bool:
    """The same of one."""
    return _are_true(condition)[0]


def _previous_tokens(is_token: torch.Tensor) -> torch.Tensor:
    """See `BlockLayout.previous`, for new columns of which those `is_token` (batch, time) hold tokens."""
    columns = torch.arange(1, is_token.shape[1] + 1, device=is_token.device)
    last = torch.where(is_token, columns, 0).cummax(dim=-1).values
    return nn.functional.pad(last, (1, 0))


def _previous_in_document(position_ids: torch.Tensor) -> torch.Tensor | None:
    """The same where any step of the positions other than +1 starts a document, as in the library's masks."""
    follows = torch.diff(position_ids) == 1
    if _is_true(follows.all()):
        return None
    columns = torch.arange(1, position_ids.shape[1], device=position_ids.device)
    previous = torch.where(follows, columns, 0)
    last = previous.new_full((len(previous), 1), position_ids.shape[1])
    return torch.cat([torch.zeros_like(last), previous, last], dim=1)


def normalize_mask(attention_mask, attention_kernel: str, dtype: torch.dtype):
    """
    A mask in the one form that the rest reads: 2D of 0 and 1, where the library takes any number but 0 for a token; 4D
    as the attention kernel wants it, which adds a mask to its scores unless it is SDPA.

    Raises:
        ValueError: for a 4D mask with an attention kernel that takes none.
    """
    if not isinstance(attention_mask, torch.Tensor):
        return attention_mask
    if attention_mask.ndim == 2:
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    if attention_mask.ndim == 4 and "flash" in attention_kernel:
        raise ValueError(
            f"The attention kernel {attention_kernel!r} takes no 4D mask: pass a 2D one, or load the model with "
            '`attn_implementation="sdpa"`.'
        )
    if attention_mask.ndim == 4 and attention_mask.dtype == torch.bool and attention_kernel != "sdpa":
        return torch.where(attention_mask, 0.0, torch.finfo(dtype).min).to(dtype)
    return attention_mask


def has_gaps(attention_mask: torch.Tensor) -> bool:
    """Whether padding stands between the tokens of a row of a 2D mask. While compiling, it may."""
    starts = attention_mask[:, 1:] & ~attention_mask[:, :-1]
    return not _is_true((attention_mask[:, 0].long() + starts.sum(-1) <= 1).all())


def check_mask(attention_mask, past_length: int, time: int, has_cache: bool) -> None:
    """More than one loop needs to know which token comes before another. Raises ValueError where the mask hides it."""
    if attention_mask is None:
        return
    compiling = torch.compiler.is_compiling()
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        if not compiling and attention_mask.shape[1] != past_length + time:
            raise ValueError(
                f"The attention mask has {attention_mask.shape[1]} columns, but cached and new tokens are "
                f"{int(past_length + time)}: it must cover both."
            )
        return
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.shape[1:] != (1, time, time) or has_cache:
        raise ValueError(
            "A PLT model with more than one loop needs a 2D attention mask (batch, past + time), or without a cache a "
            "4D one (batch, 1, time, time): windows and carries of the cache are those of one text a row. For packed "
            "documents pass `position_ids` that restart, without a mask."
        )
    if attention_mask.dtype != torch.bool and not attention_mask.dtype.is_floating_point:
        raise ValueError(f"A 4D attention mask must be boolean or additive, got {attention_mask.dtype}.")
    if compiling:
        return
    seen = _seen(attention_mask)
    if attention_mask.dtype != torch.bool and bool((seen & (attention_mask != 0)).any()):
        raise ValueError("An additive 4D attention mask must be 0 where a key is seen, and very negative where not.")
    if bool(seen.triu(1).any()):
        raise ValueError("A 4D attention mask lets a token see later ones: the loops' shift needs a causal mask.")


def is_packed(position_ids, attention_mask, time: int, has_cache: bool) -> bool:
    """Whether the rows hold several documents. Raises ValueError if a mask is in the way of keeping them apart."""
    if position_ids is None or time == 1:
        return False
    if torch.compiler.is_compiling():  # a graph cannot look: without a cache, it serves packed rows as well
        return attention_mask is None and not has_cache
    steps = torch.diff(position_ids)
    if attention_mask is None:
        return bool((steps != 1).any())
    is_token = attention_mask[:, -time:].to(position_ids.device) != 0
    if attention_mask.ndim == 2 and bool(((steps <= 0) & is_token[:, 1:] & is_token[:, :-1]).any()):
        raise ValueError("For packed documents pass `position_ids` that restart, without an `attention_mask`.")
    return False


def packed_positions(cu_seq_lens: torch.Tensor, position_ids: torch.Tensor | None, time: int) -> torch.Tensor:
    """
    The positions (1, time) of documents whose first tokens stand at `cu_seq_lens[:-1]`; `position_ids` if given.

    Raises:
        ValueError: if the given positions start documents elsewhere.
    """
    tokens = torch.arange(time, device=cu_seq_lens.device)
    positions = (tokens - cu_seq_lens[torch.bucketize(tokens, cu_seq_lens, right=True) - 1]).unsqueeze(0)
    if position_ids is None:
        return positions
    if not torch.compiler.is_compiling():
        starts = (torch.diff(states) != 1 for states in (positions, position_ids.to(positions.device)))
        if not torch.equal(*(start.expand(len(position_ids), -1) for start in starts)):
            raise ValueError(
                "`position_ids` and `cu_seq_lens_q` start documents at different places: pass one of them."
            )
    return position_ids
