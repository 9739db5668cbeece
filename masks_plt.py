# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What the cells of a block look like to the layers: positions, the masks of both branches, which token follows which.

Padding may stand anywhere, also between tokens. The loops' shift and their windows count tokens, not columns, so that a
row gives what it gives alone. Most batches need none of it (`None` below) or no more than the library's masks.

Shapes: B batch, T new tokens, S keys of loop 0, W keys of a window, w how far a window reaches back, C head_dim.
"""

import copy
from dataclasses import dataclass, field, fields, replace

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .cache_layers_plt import is_exporting, last_tokens
from .compat_plt import CACHE_NAME
from .grid_plt import Block
from .kernels_plt import get_kernel


MASKED = -1e3  # an additive mask is 0 where a key is seen, and far below this where not
SMALLEST_TILE = 64  # queries: smaller tiles of the window branch only multiply the calls


@dataclass
class Window:
    """
    The window branch of loops >= 1.

    Attributes:
        left: w, how many tokens before its own a token sees.
        mask: as the attention kernel wants it; cut into tiles (B or 1, tiles, 1, heads per key head * tile_size,
            tile_size + w).
        tile_size: None, or how many queries a tile has, for memory and time in O(T · w).
        tile_kernel: the attention kernel of the tiles.
        is_token (B, W): which keys are tokens; None: all.
        keep (B, <= w): the keys that the cache keeps; None: the last.
    """

    left: int
    mask: torch.Tensor | None = None
    tile_size: int | None = None
    tile_kernel: str | None = None
    is_token: torch.Tensor | None = None
    keep: torch.Tensor | None = None


@dataclass
class Cells:
    """
    The cells of a block as a layer sees them.

    Attributes:
        loops: which loops they belong to; as many cells of each, one loop behind the other.
        position_embeddings: cosines and sines (B or 1, n, C) of the n tokens of a loop that enter the layer.
        global_mask: the mask of attention to loop 0's keys.
        window: see [`Window`]; None for one loop.
        num_outputs: how many of a loop's tokens, its last, leave the layer.
        is_recorded: whether attention weights and gates are recorded.
        is_tail: whether only the last new tokens enter the layer.
        starts, tail_mask: for `at`, see [`Block`]; the last rows of `global_mask`.
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

    @property
    def num_inputs(self) -> int:
        return self.position_embeddings[0].shape[1]

    def at(self, layer: int) -> "Cells":
        """The cells in one layer: at the end of a prompt they get fewer from layer to layer."""
        if not self.starts:
            return self
        num_tokens = self.num_inputs
        num_inputs, num_outputs = (num_tokens - self.starts[i] for i in (layer, layer + 1))
        mask = self.global_mask
        if num_outputs < num_tokens:  # no mask: a single query sees all keys
            mask = self.tail_mask if self.tail_mask is None else self.tail_mask[..., -num_outputs:, :]
        cos, sin = (states[:, -num_inputs:] for states in self.position_embeddings)
        return Cells(
            self.loops, (cos, sin), mask, self.window, num_outputs, self.is_recorded, is_tail=num_inputs < num_tokens
        )

    def to(self, device: torch.device, **kwargs) -> "Cells":
        """Moved to a device, as accelerate does where layers lie on several."""

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
    What all blocks of a pass share.

    Attributes:
        global_mask, window: as in [`Cells`].
        previous (B, T + 1): for each new token, and the next one, where the token before it stands: 0 is the last
            token of the cache, i + 1 column i. None: in the column before.
        position_embeddings: cosines and sines (B or 1, T, C).
    """

    global_mask: torch.Tensor | None
    window: Window | None = None
    previous: torch.Tensor | None = None
    position_embeddings: tuple[torch.Tensor, torch.Tensor] = field(default=(), repr=False)  # type: ignore[assignment]

    def allows_tails(self, cache: Cache | None) -> bool:
        """Whether loops >= 1 may run over the last tokens alone: in tiles, unless a rollback may need the others."""
        is_tiled = self.window is not None and self.window.tile_size is not None
        return is_tiled and not (cache is not None and cache.layers[0].record_past)

    def cells(self, config, inputs, blocks: list[Block]) -> list[Cells]:
        """The cells of each block of a pass, before any of them runs."""
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


class _CacheView:
    """
    What the library's mask functions ask of a cache: how many keys there are, and where the queries begin. `has_mask`:
    it is known that a step needs a mask, so they need not look, which would make the host wait for the device.
    """

    is_sliding = (True,)

    def __init__(self, keys: int, query_offset: int | torch.Tensor, has_mask: bool = False):
        self.keys = keys
        self.query_offset = query_offset
        self.is_compileable = has_mask  # of a static cache they make every mask

    @classmethod
    def of(cls, cache: Cache, num_tokens: int) -> "_CacheView":
        """A view of a cache in which padding is known to stand."""
        return cls(cache.get_mask_sizes(num_tokens, 0)[0], cache.get_seq_length(), has_mask=True)

    def get_query_offset(self, layer_idx: int = 0) -> int | torch.Tensor:
        return self.query_offset

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.keys, 0


def prepare_mask(config, inputs_embeds, attention_mask, position_ids, cache) -> dict[str, torch.Tensor | None]:
    """
    What `generate()` asks for ahead of a compiled step: of fixed shapes, `forward` takes it as `attention_mask`.

    Returns:
        `global_mask`, as in `Cells`, and `tokens` (B, T): which new columns are no padding; None: all.
    """
    global_mask = create_causal_mask(config, inputs_embeds, attention_mask, cache, position_ids=position_ids)
    tokens = None if attention_mask is None else attention_mask[:, -inputs_embeds.shape[1] :].bool()
    return {"global_mask": global_mask, "tokens": None if tokens is None or _is_known_true(tokens.all()) else tokens}


def create_layout(config, inputs) -> Layout:
    """The layout of a pass, from [`inputs_plt.Inputs`]. Of its embeddings only shape, dtype and device count."""
    mask, position_ids, cache = inputs.attention_mask, inputs.position_ids, inputs.cache
    embeds = _shape_of(inputs.embeds)
    if inputs.num_loops == 1:
        if isinstance(mask, dict):
            return Layout(mask["global_mask"])
        return Layout(create_causal_mask(config, embeds, mask, cache, position_ids=position_ids))
    if isinstance(mask, torch.Tensor) and mask.ndim == 4:
        return _layout_of_4d_mask(mask, config.loop_window)
    if isinstance(mask, dict):
        is_new = mask["tokens"]
        is_new = None if is_new is None or _is_known_true(is_new.all()) else is_new
        global_mask, is_padded, position_ids = mask["global_mask"], False, None
    else:
        mask, is_new = _drop_if_full(mask, embeds.shape[1])
        is_padded = mask is not None
        position_ids = position_ids if inputs.attention_mask is None or is_padded else None
        view = _CacheView.of(cache, embeds.shape[1]) if is_padded and cache is not None else cache
        global_mask = create_causal_mask(config, embeds, mask, view, position_ids=position_ids)
        position_ids = None if is_padded else position_ids
    layout = Layout(global_mask)
    if is_new is not None:
        layout.previous = _previous_tokens(is_new)
    elif cache is None and position_ids is not None:
        layout.previous = _previous_in_document(position_ids)
    layout.window = _create_window(config, inputs, is_new, position_ids, layout.previous)
    return layout


def _shape_of(embeds: torch.Tensor) -> torch.Tensor:
    """
    An empty tensor (B, T, 0) that tells the library's mask functions shape, dtype and device. Eager attention takes its
    softmax in float32, where the lowest float64 is -inf: a row all masked would be NaN.
    """
    dtype = torch.float32 if embeds.dtype == torch.float64 else embeds.dtype
    return embeds.new_empty((*embeds.shape[:2], 0), dtype=dtype)


def _drop_if_full(mask: torch.Tensor | None, num_tokens: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """A 2D mask, and its part for the new tokens; None for what holds no padding."""
    if mask is None:
        return None, None
    is_new = mask[:, -num_tokens:]
    is_full, is_new_full = _are_known_true(mask.all(), is_new.all())
    return None if is_full else mask, None if is_new_full else is_new


# -- the window branch ------------------------------------------------------------------------------------------------


def _create_window(config, inputs, is_new, position_ids, previous) -> Window:
    """`is_new` (B, T): which new columns are tokens, None for all. `position_ids`: if they tell documents apart."""
    window = Window(config.loop_window)
    num_tokens, cache = inputs.embeds.shape[1], inputs.cache
    past = cache.layers[0].window_length if cache is not None else 0
    window.is_token = _window_tokens(inputs, is_new, past)
    has_gaps = _has_padding_after_tokens(window.is_token, is_new, cache)
    if has_gaps and cache is not None:
        window.keep = last_tokens(window.is_token, window.left)  # type: ignore[arg-type]
    # Sizes decide nothing while a model is exported: the graph has to serve all.
    is_short = not is_exporting() and past + num_tokens <= window.left + 1
    takes_tiles = get_kernel(config._attn_implementation).takes_tiles and not inputs.records and not is_exporting()
    if takes_tiles and not has_gaps and num_tokens > window.left + 1:
        segments = _segments(window.is_token, previous, past + num_tokens, inputs.embeds.device)
        return _cut_into_tiles(config, inputs.embeds, window, segments)
    rows = inputs.num_loops - 1 if inputs.together else 1  # the loops of one token are rows of one call
    is_token = window.is_token if window.is_token is None else window.is_token.repeat(rows, 1)
    embeds = _shape_of(inputs.embeds)
    view = None if cache is None else _CacheView(past + num_tokens, past, has_mask=window.is_token is not None)
    arguments = {
        "inputs_embeds": embeds.new_empty((rows * embeds.shape[0], num_tokens, 0)),
        "attention_mask": is_token,
        CACHE_NAME: view,
        "position_ids": position_ids if rows == 1 else None,
    }
    window.mask = _window_mask(config, arguments, window.left, is_short, has_gaps)
    return window


def _window_mask(config, arguments: dict, left: int, is_short: bool, has_gaps: bool) -> torch.Tensor | None:
    if is_short:  # the window holds no more than the last token sees
        return create_causal_mask(config, **arguments)
    if has_gaps:
        is_token = arguments["attention_mask"]
        before = is_token.cumsum(-1) - is_token.long()  # how many tokens come before each column
        within = lambda b, h, q, k: before[b, q] - before[b, k] <= left  # noqa: E731
        return create_causal_mask(config, and_mask_function=within, **arguments)
    config = copy.copy(config)  # on the model's own this field would turn every layer into a window layer
    config.sliding_window = left + 1  # the library counts the token itself
    return create_sliding_window_causal_mask(config, **arguments)


def _window_tokens(inputs, is_new: torch.Tensor | None, past: int) -> torch.Tensor | None:
    """Which columns of the windows and the new ones are tokens, (B, past + T); None if all."""
    embeds, cache = inputs.embeds, inputs.cache
    batch, num_tokens = embeds.shape[:2]
    in_cache = cache.layers[0].get_window_tokens(batch, embeds.device) if cache is not None else None
    if is_new is None and in_cache is None:
        return None
    in_cache = embeds.new_ones((batch, past), dtype=torch.bool) if in_cache is None else in_cache
    is_new = embeds.new_ones((batch, num_tokens), dtype=torch.bool) if is_new is None else is_new
    return torch.cat([in_cache, is_new.to(embeds.device)], dim=1)


def _has_padding_after_tokens(is_token, is_new, cache) -> bool:
    """Whether windows have gaps. The cache itself leaves padding out, except while it records the past."""
    if is_token is None or not (is_new is not None or cache.layers[0].record_past):
        return False
    return is_exporting() or not _is_known_true((is_token[:, 1:] >= is_token[:, :-1]).all())


def _segments(is_token, previous, length: int, device) -> torch.Tensor:
    """A number for each key of the window branch, (B or 1, length), equal where one may see the other."""
    if is_token is not None:  # padding sees padding, so that no row is all masked
        return is_token.long()
    if previous is not None:
        return (previous[:, :-1] == 0).cumsum(dim=-1)
    return torch.ones(1, length, dtype=torch.long, device=device)


def _cut_into_tiles(config, embeds, window: Window, segments: torch.Tensor) -> Window:
    heads_per_key = config.num_attention_heads // config.num_key_value_heads
    size = max(window.left, SMALLEST_TILE)
    mask = _tile_mask(segments, embeds.shape[1], window.left, size).repeat(1, 1, 1, heads_per_key, 1)
    # Tiles are so small that a CPU multiplies them faster as matrices. Eager attention scales its scores after the
    # product, and takes its softmax in float32: not for float16 and float64.
    as_matrices = embeds.device.type == "cpu" and embeds.dtype in (torch.float32, torch.bfloat16)
    kernel = "eager" if as_matrices else config._attn_implementation
    if get_kernel(kernel).adds_masks:
        mask = as_additive(mask, _shape_of(embeds).dtype)
    return replace(window, mask=mask, tile_size=size, tile_kernel=kernel)


def _tile_mask(segments: torch.Tensor, num_queries: int, left: int, size: int) -> torch.Tensor:
    """
    Masks of the last queries in tiles of `size`, counted from the last; (B or 1, tiles, 1, size, size + left). A tile
    sees its own keys and the `left` before them. What is missing in front is one more segment.
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
    """The last rows of the global branch's mask; where that is None, those of a plain causal one."""
    if global_mask is not None:
        return global_mask[..., -num_queries:, :]
    time = embeds.shape[1]
    keys = time if cache is None else cache.get_mask_sizes(time, 0)[0]
    past_length = 0 if cache is None else cache.get_seq_length()
    view = _CacheView(keys, past_length + time - num_queries, cache is not None and cache.is_compileable)
    return create_causal_mask(config, _shape_of(embeds)[:, :num_queries], None, view)


def _layout_of_4d_mask(mask: torch.Tensor, left: int) -> Layout:
    """
    A mask (B, 1, T, T), boolean or additive, says of each token which others its text consists of, such as a prompt
    that several continuations share. The last of them is the one before it, the last `left` are its window.
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
    """Which keys a 4D mask lets a query see."""
    return mask if mask.dtype == torch.bool else mask > MASKED


def as_additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as one that is added to scores."""
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)


# -- which token comes before which -----------------------------------------------------------------------------------


def _previous_tokens(is_token: torch.Tensor) -> torch.Tensor:
    """See `Layout.previous`, for new columns of which those `is_token` (B, T) hold tokens."""
    columns = torch.where(is_token, torch.arange(1, is_token.shape[1] + 1, device=is_token.device), 0)
    count = is_token.cumsum(dim=-1)
    # The column of a row's n-th token, and 0 for n = 0. (Exporters know no `cummax` of the columns.)
    table = nn.functional.pad(torch.zeros_like(columns), (1, 0)).scatter(1, count * is_token, columns)
    return nn.functional.pad(table.gather(1, count), (1, 0))


def _previous_in_document(position_ids: torch.Tensor) -> torch.Tensor | None:
    """The same where any step of the positions other than +1 starts a document, as in the library's masks."""
    follows = torch.diff(position_ids) == 1
    if _is_known_true(follows.all()):
        return None
    columns = torch.arange(1, position_ids.shape[1], device=position_ids.device)
    previous = torch.where(follows, columns, 0)
    last = previous.new_full((previous.shape[0], 1), position_ids.shape[1])
    return torch.cat([torch.zeros_like(last), previous, last], dim=1)


def _are_known_true(*conditions: torch.Tensor) -> list[bool]:
    """Which scalar tensors are known to be true, in one transfer. While compiling none is: a graph has to serve all."""
    if torch.compiler.is_compiling():
        return [False] * len(conditions)
    return torch.stack([condition.to(conditions[0].device) for condition in conditions]).tolist()


def _is_known_true(condition: torch.Tensor) -> bool:
    return _are_known_true(condition)[0]


def has_gaps(attention_mask: torch.Tensor) -> torch.Tensor:
    """Whether padding stands between the tokens of a row of a 2D mask, as a scalar tensor."""
    starts = attention_mask[:, 1:] & ~attention_mask[:, :-1]
    return (attention_mask[:, 0].long() + starts.sum(-1) > 1).any()


__all__ = ["Cells", "Layout", "Window", "create_layout", "prepare_mask"]
