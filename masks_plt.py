# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
How the layers see the cells of a block: positions, the masks of both branches, and which token precedes which.

Padding may be anywhere, even between tokens. The loops' shift and windows count tokens, not columns, so a row's result
does not depend on its padding. Most batches need no masks (`None` below) or only the library's masks.

Shapes: B batch, T new tokens, S keys of loop 0, W keys of a window, w how far a window reaches back, C head_dim.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .cache_layers_plt import is_exporting, last_tokens
from .compat_plt import CACHE_NAME
from .grid_plt import Block
from .kernels_plt import get_kernel
from .mask_views_plt import CacheView, ConfigView, shape_of


MASKED = -1e3  # an additive mask is 0 for visible keys, and far below this for hidden ones
SMALLEST_TILE = 64  # in queries; smaller tiles would not save work


@dataclass
class Window:
    """
    The window branch of loops >= 1.

    Attributes:
        left: w, the number of earlier tokens that a token sees.
        mask: in the attention kernel's format. With tiles: (B or 1, tiles, 1, heads per key head * tile_size,
            tile_size + w).
        tile_size: the number of queries per tile, for memory and time in O(T · w). None: no tiles.
        tile_kernel: the attention kernel for the tiles.
        is_token (B, W): which keys are tokens; None: all.
        keep (B, <= w): the keys that the cache keeps; None: the last ones.
        order (B, w + 1): the ring columns of the last w tokens and the next one; None: windows in the text's order.
    """

    left: int
    mask: torch.Tensor | None = None
    tile_size: int | None = None
    tile_kernel: str | None = None
    is_token: torch.Tensor | None = None
    keep: torch.Tensor | None = None
    order: torch.Tensor | None = None


@dataclass
class Cells:
    """
    The cells of a block as a layer sees them.

    Attributes:
        loops: the loops of the cells. The loops are concatenated. Each has the same number of cells, except in a
            staircase.
        position_embeddings: cosines and sines (B or 1, n, C) of the n tokens per loop that enter the layer.
        global_mask: the mask of attention to loop 0's keys, with a row for each new token. See `at`.
        window: see [`Window`]; None for one loop.
        num_outputs: the number of tokens per loop that leave the layer. These are the last ones.
        is_recorded: whether attention weights and gates are recorded.
        is_tail: whether only the last new tokens enter the layer.
        starts: for `at`; see [`Block`].
        tail_mask: for `at`; the last rows of `global_mask`.
        staircase: the [`Staircase`] if the loops run over different tokens. `position_embeddings` and masks then have a
            row for each cell, and `num_outputs` counts cells.
    """

    loops: range
    position_embeddings: tuple[torch.Tensor, torch.Tensor]
    global_mask: torch.Tensor | None
    window: Window | None
    num_outputs: int
    is_recorded: bool = False
    is_tail: bool = False
    starts: tuple[int, ...] = ()
    tail_mask: torch.Tensor | None = None
    staircase: Any = None

    @property
    def num_loop0(self) -> int:
        """The number of cells of loop 0. They come first."""
        if self.staircase is not None:
            return self.staircase.sizes[0]
        return self.num_outputs if self.loops.start == 0 else 0

    @property
    def num_inputs(self) -> int:
        """The number of tokens per loop that enter the layer."""
        return self.position_embeddings[0].shape[1]

    def at(self, layer: int) -> "Cells":
        """Returns the cells in one layer. At the end of a prompt, each layer has fewer cells than the one before."""
        if not self.starts:
            return self
        num_tokens = self.num_inputs
        num_inputs, num_outputs = (num_tokens - self.starts[i] for i in (layer, layer + 1))
        mask = self.global_mask
        if num_outputs < num_tokens:  # the mask may be None: a single query sees all keys
            mask = None if self.tail_mask is None else self.tail_mask[..., -num_outputs:, :]
        cos, sin = (states[:, -num_inputs:] for states in self.position_embeddings)
        return Cells(
            self.loops, (cos, sin), mask, self.window, num_outputs, self.is_recorded, is_tail=num_inputs < num_tokens
        )

    def to(self, device: torch.device, **kwargs) -> "Cells":
        """Moves the cells to a device, for accelerate models with layers on several devices."""

        def move(value):
            if isinstance(value, Window):
                return replace(value, **{f.name: move(getattr(value, f.name)) for f in fields(value)})
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value.to(device, **kwargs) if isinstance(value, torch.Tensor) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass
class Layout:
    """
    The masks and positions that all blocks of a pass share.

    Attributes:
        global_mask, window: as in [`Cells`].
        previous (B, T + 1): for each new token and the next one, the index of the token before it. Index 0 is the last
            token of the cache (or none), i + 1 is new column i. None: always the column before.
        position_embeddings: cosines and sines (B or 1, T, C). The model sets them.
    """

    global_mask: torch.Tensor | None
    window: Window | None = None
    previous: torch.Tensor | None = None
    position_embeddings: tuple[torch.Tensor, torch.Tensor] = field(default=(), repr=False)  # type: ignore[assignment]

    def allows_tails(self, cache: Cache | None) -> bool:
        """Returns whether loops >= 1 may run over only the last tokens: with tiles, unless the cache may roll back."""
        is_tiled = self.window is not None and self.window.tile_size is not None
        return is_tiled and not (cache is not None and cache.layers[0].record_past)

    def cells(self, config, inputs, blocks: list[Block]) -> list[Cells]:
        """Returns the cells of each block of a pass, before any block runs."""
        num_tokens = inputs.embeds.shape[1]
        fewer = [num_tokens - start for block in blocks for start in block.starts[1:] if start]
        tail_mask = _tail_mask(config, inputs.embeds, self.global_mask, inputs.cache, max(fewer)) if fewer else None
        return [
            Cells(
                loops=block.loops,
                position_embeddings=self.position_embeddings,
                global_mask=self.global_mask,
                window=self.window,
                num_outputs=num_tokens,
                is_recorded=inputs.records and block.loops.stop == inputs.num_loops,
                starts=block.starts,
                tail_mask=tail_mask,
            )
            for block in blocks
        ]


def prepare_mask(config, inputs_embeds, attention_mask, position_ids, cache) -> dict[str, torch.Tensor | None]:
    """
    Prepares masks of fixed shapes before a compiled step of `generate()`. `forward` takes them as `attention_mask`.

    Returns:
        `global_mask`, as in `Cells`, and `tokens` (B, T): which new columns are tokens; None: all.
    """
    if attention_mask is None and _needs_2d_mask(config, cache):
        attention_mask = _mask_without_padding(inputs_embeds, cache)
    global_mask = create_causal_mask(config, inputs_embeds, attention_mask, cache, position_ids=position_ids)
    tokens = None if attention_mask is None else attention_mask[:, -inputs_embeds.shape[1] :].bool()
    return {"global_mask": global_mask, "tokens": None if tokens is None or _is_known_true(tokens.all()) else tokens}


def create_layout(config, inputs) -> Layout:
    """Creates the layout of a pass from [`inputs_plt.Inputs`], without reading the values of the embeddings."""
    if inputs.staircase is not None:
        return inputs.staircase.layout(config, inputs.embeds)
    mask, cache = inputs.attention_mask, inputs.cache
    position_ids = inputs.position_ids if mask is None else None  # with a mask, they do not mark documents
    embeds = shape_of(inputs.embeds)
    keeps_mask = _needs_2d_mask(config, cache)
    if mask is None and keeps_mask:
        mask = _mask_without_padding(embeds, cache)
    if inputs.num_loops == 1:
        if isinstance(mask, dict):
            return Layout(mask["global_mask"])
        return Layout(create_causal_mask(config, embeds, mask, cache, position_ids=position_ids))
    if isinstance(mask, torch.Tensor) and mask.ndim == 4:
        return _layout_of_4d_mask(mask, config.loop_window)
    if isinstance(mask, dict):
        is_new = mask["tokens"]
        is_new = None if is_new is None or _is_known_true(is_new.all()) else is_new
        global_mask = mask["global_mask"]
    else:
        padded, is_new = _drop_if_full(mask, embeds.shape[1])
        mask = mask if keeps_mask else padded
        view = cache if mask is None or cache is None else CacheView.of(cache, embeds.shape[1])
        global_mask = create_causal_mask(config, embeds, mask, view, position_ids=position_ids)
    layout = Layout(global_mask)
    if is_new is not None:
        layout.previous = _previous_tokens(is_new)
    elif cache is None and position_ids is not None:
        layout.previous = _previous_in_document(position_ids)
    layout.window = _create_window(config, inputs, is_new, position_ids, layout.previous)
    return layout


def _needs_2d_mask(config, cache: Cache | None) -> bool:
    """Returns whether only a 2D mask can hide the unused columns of a static cache: flash attention takes no other."""
    is_static = cache is not None and cache.is_compileable
    return is_static and not get_kernel(config._attn_implementation).takes_4d_masks


def _mask_without_padding(embeds: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Returns a 2D mask of all cached and new tokens, whose length tells how many they are."""
    batch, num_tokens = embeds.shape[:2]
    return embeds.new_ones((batch, int(cache.get_seq_length()) + num_tokens), dtype=torch.bool)


def _drop_if_full(mask: torch.Tensor | None, num_tokens: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns a 2D mask and its part for the new tokens. Replaces each by None if it has no padding."""
    if mask is None:
        return None, None
    is_new = mask[:, -num_tokens:]
    is_full, is_new_full = _are_known_true(mask.all(), is_new.all())
    return None if is_full else mask, None if is_new_full else is_new


# -- the window branch ------------------------------------------------------------------------------------------------


def _create_window(config, inputs, is_new, position_ids, previous) -> Window:
    """`is_new` (B, T) marks the new columns that are tokens; None: all. `position_ids` only if they mark documents."""
    window, past = Window(config.loop_window), 0
    num_tokens, cache, embeds = inputs.embeds.shape[1], inputs.cache, inputs.embeds
    if cache is not None:
        past = cache.layers[0].window_length
        window.order = cache.layers[0].get_window_order(embeds.shape[0], embeds.device)
        if window.order is not None and num_tokens == 1:
            return _window_in_ring(config, inputs, is_new, window)
    window.is_token = _window_tokens(inputs, is_new, past)
    window_has_gaps = _has_padding_after_tokens(window.is_token, is_new, cache)
    if window_has_gaps and cache is not None:
        window.keep = last_tokens(window.is_token, window.left)  # type: ignore[arg-type]
    # No branch may depend on a size during export, because the graph must work for all sizes.
    is_short = not is_exporting() and past + num_tokens <= window.left + 1
    takes_tiles = get_kernel(config._attn_implementation).takes_tiles and not inputs.records and not is_exporting()
    if takes_tiles and not window_has_gaps and num_tokens > window.left + 1:
        segments = _segments(window.is_token, previous, past + num_tokens, embeds.device)
        return _cut_into_tiles(config, embeds, window, segments)
    documents = {"position_ids": None if inputs.together else position_ids}
    arguments = _mask_arguments(inputs, window.is_token, past) | documents
    window.mask = _window_mask(config, arguments, window.left, is_short, window_has_gaps)
    return window


def _window_in_ring(config, inputs, is_new: torch.Tensor | None, window: Window) -> Window:
    """A single new token and a static cache: it sees all tokens in the ring, and itself even if it is padding."""
    order: torch.Tensor = window.order  # type: ignore[assignment]
    is_own = torch.arange(order.shape[1], device=order.device) == order[:, -1:]
    others = inputs.cache.layers[0].get_ring_tokens(len(is_own), order.device)
    window.is_token = others | is_own if is_new is None else torch.where(is_own, is_new.to(order.device), others)
    window.mask = create_causal_mask(config, **_mask_arguments(inputs, others | is_own, window.left))
    return window


def _mask_arguments(inputs, is_token: torch.Tensor | None, past: int) -> dict:
    """Returns arguments of the library's mask functions for the window branch. `is_token`: as in [`Window`]."""
    batch, num_tokens = inputs.embeds.shape[:2]
    rows = inputs.num_loops - 1 if inputs.together else 1  # one call handles the loops of one token as batch rows
    view = CacheView(past + num_tokens, past, has_mask=is_token is not None)
    return {
        "inputs_embeds": shape_of(inputs.embeds).new_empty((rows * batch, num_tokens, 0)),
        "attention_mask": is_token if is_token is None else is_token.repeat(rows, 1),
        CACHE_NAME: None if inputs.cache is None else view,
    }


def _window_mask(config, arguments: dict, left: int, is_short: bool, window_has_gaps: bool) -> torch.Tensor | None:
    if is_short:  # the last token sees the whole window
        return create_causal_mask(config, **arguments)
    if window_has_gaps:
        is_token = arguments["attention_mask"]
        before = is_token.cumsum(-1) - is_token.long()  # the number of tokens before each column
        within = lambda b, h, q, k: before[b, q] - before[b, k] <= left  # noqa: E731
        return create_causal_mask(config, and_mask_function=within, **arguments)
    return create_sliding_window_causal_mask(ConfigView(config, left), **arguments)


def _window_tokens(inputs, is_new: torch.Tensor | None, past: int) -> torch.Tensor | None:
    """Returns which window columns and new columns are tokens, (B, past + T); None if all are."""
    embeds, cache, (batch, num_tokens) = inputs.embeds, inputs.cache, inputs.embeds.shape[:2]
    in_cache = cache.layers[0].get_window_tokens(batch, embeds.device) if cache is not None else None
    if is_new is None and in_cache is None:
        return None
    in_cache = embeds.new_ones((batch, past), dtype=torch.bool) if in_cache is None else in_cache
    is_new = embeds.new_ones((batch, num_tokens), dtype=torch.bool) if is_new is None else is_new
    return torch.cat([in_cache, is_new.to(embeds.device)], dim=1)


def _has_padding_after_tokens(is_token, is_new, cache) -> bool:
    """Returns whether windows have gaps. The cache removes padding itself, except while it records the past."""
    if is_token is None or (is_new is None and not cache.layers[0].record_past):
        return False
    return is_exporting() or not _is_known_true((is_token[:, 1:] >= is_token[:, :-1]).all())


def _segments(is_token, previous, length: int, device) -> torch.Tensor:
    """Returns a segment number per key of the window branch, (B or 1, length). Keys see only their own segment."""
    if is_token is not None:  # padding sees padding, so that no row is fully masked
        return is_token.long()
    if previous is not None:
        return (previous[:, :-1] == 0).cumsum(dim=-1)
    return torch.ones(1, length, dtype=torch.long, device=device)


def _cut_into_tiles(config, embeds, window: Window, segments: torch.Tensor) -> Window:
    heads_per_key = config.num_attention_heads // config.num_key_value_heads
    size = max(window.left, SMALLEST_TILE)
    mask = _tile_mask(segments, embeds.shape[1], window.left, size).repeat(1, 1, 1, heads_per_key, 1)
    # Tiles are small, so eager matrix products are faster on a CPU. Not for float16 and float64: eager attention scales
    # the scores only after the product, and computes its softmax in float32.
    as_matrices = embeds.device.type == "cpu" and embeds.dtype in (torch.float32, torch.bfloat16)
    kernel = "eager" if as_matrices else config._attn_implementation
    if get_kernel(kernel).adds_masks:
        mask = as_additive(mask, shape_of(embeds).dtype)
    return replace(window, mask=mask, tile_size=size, tile_kernel=kernel)


def _tile_mask(segments: torch.Tensor, num_queries: int, left: int, size: int) -> torch.Tensor:
    """
    Returns the masks of tiles of `size` queries, aligned to the last query: (B or 1, tiles, 1, size, size + left). A
    tile sees its own keys and the `left` keys before them. Missing keys at the front form a segment of their own.
    """
    num_tiles = -(-num_queries // size)
    needed = num_tiles * size + left
    segments = nn.functional.pad(segments, (max(needed - segments.shape[1], 0), 0), value=-1)[:, -needed:]
    keys = segments.unfold(1, size + left, size)
    queries = segments[:, left:].unflatten(1, (num_tiles, size))
    distance = torch.arange(size, device=keys.device)[:, None] + left - torch.arange(size + left, device=keys.device)
    in_window = (distance >= 0) & (distance <= left)
    return (in_window & (queries[..., None] == keys[:, :, None]))[:, :, None]


# -- the global branch ------------------------------------------------------------------------------------------------


def _tail_mask(config, embeds, global_mask, cache: Cache | None, num_queries: int) -> torch.Tensor | None:
    """Returns the last rows of the global branch's mask, or of a plain causal mask if that is None."""
    if global_mask is not None:
        return global_mask[..., -num_queries:, :]
    time = embeds.shape[1]
    keys = time if cache is None else cache.get_mask_sizes(time, 0)[0]
    past_length = 0 if cache is None else cache.get_seq_length()
    view = CacheView(keys, past_length + time - num_queries, cache is not None and cache.is_compileable)
    return create_causal_mask(config, shape_of(embeds)[:, :num_queries], None, view)


def _layout_of_4d_mask(mask: torch.Tensor, left: int) -> Layout:
    """
    Creates the layout for a mask (B, 1, T, T), boolean or additive, that marks the earlier tokens of each token's text.
    For example, several continuations may share a prompt. The last marked token is the previous one, and the last
    `left` are the window.
    """
    seen = is_seen(mask)[:, 0]
    time = seen.shape[-1]
    columns = torch.arange(1, time + 1, device=mask.device)
    previous = (seen.tril(-1) * columns).amax(dim=-1)
    last = previous.new_full((previous.shape[0], 1), time)
    seen_after = seen.flip(-1).cumsum(-1).flip(-1) - seen.long()
    in_window = (seen_after <= left)[:, None]
    lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    window = Window(left, mask.masked_fill(~in_window, lowest))
    return Layout(mask, window, torch.cat([previous, last], dim=1))


def is_seen(mask: torch.Tensor) -> torch.Tensor:
    """Returns which keys each query can see under a 4D mask."""
    return mask if mask.dtype == torch.bool else mask > MASKED


def as_additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Converts a boolean mask to one that is added to scores."""
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)


# -- which token comes before which -----------------------------------------------------------------------------------


def _previous_tokens(is_token: torch.Tensor) -> torch.Tensor:
    """Returns `Layout.previous` for a padded batch. `is_token` (B, T) marks the new columns that are tokens."""
    columns = torch.where(is_token, torch.arange(1, is_token.shape[1] + 1, device=is_token.device), 0)
    count = is_token.cumsum(dim=-1)
    # Maps n to the column of a row's n-th token, and 0 to 0. (Exporters do not support `cummax`.)
    table = nn.functional.pad(torch.zeros_like(columns), (1, 0)).scatter(1, count * is_token, columns)
    return nn.functional.pad(table.gather(1, count), (1, 0))


def _previous_in_document(position_ids: torch.Tensor) -> torch.Tensor | None:
    """Returns `Layout.previous` for packed documents. As in the library, any position step but +1 starts one."""
    follows = torch.diff(position_ids) == 1
    if _is_known_true(follows.all()):
        return None
    columns = torch.arange(1, position_ids.shape[1], device=position_ids.device)
    previous = torch.where(follows, columns, 0)
    last = previous.new_full((previous.shape[0], 1), position_ids.shape[1])
    return torch.cat([torch.zeros_like(last), previous, last], dim=1)


def _are_known_true(*conditions: torch.Tensor) -> list[bool]:
    """
    Checks several conditions with one device-to-host transfer. All count as false while compiling, because a graph must
    work for any values.
    """
    if torch.compiler.is_compiling():
        return [False] * len(conditions)
    return torch.stack([condition.to(conditions[0].device) for condition in conditions]).tolist()


def _is_known_true(condition: torch.Tensor) -> bool:
    return _are_known_true(condition)[0]


__all__ = ["Cells", "Layout", "Window", "create_layout", "prepare_mask"]
