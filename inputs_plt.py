# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Checks and completes the inputs of a forward pass. All unsupported inputs are rejected here.

Shapes: B batch, T new tokens, D hidden_size.
"""

import functools
import inspect
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import Cache, DynamicCache
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import TransformersKwargs

from .cache_layers_plt import is_exporting
from .cache_plt import check_cache, prepare_cache
from .cache_staircase_plt import Staircase
from .compat_plt import CACHE_NAMES
from .kernels_plt import get_kernel
from .masks_plt import as_additive, is_seen


logger = logging.get_logger(__name__)


@dataclass
class Inputs:
    """
    The inputs of a forward pass.

    Attributes:
        embeds (B, T, D): the embeddings of the new tokens.
        attention_mask: 2D and boolean, 4D in the attention kernel's format, or the result of `prepare_mask`.
        position_ids: as given. The model uses `positions`.
        cache: the cache to read and fill, or None.
        num_loops: the number of loops to run.
        records: whether layer outputs are recorded.
        keywords: further arguments for the attention kernels.
        together: whether all loops of a single new token form one block.
        keep: the number of final states of the last loop that the caller wants; None: all.
        staircase: the [`Staircase`] if the new tokens are drafts, of which each loop may have done some.
    """

    embeds: torch.Tensor
    attention_mask: torch.Tensor | dict | None
    position_ids: torch.Tensor | None
    cache: Cache | None
    num_loops: int
    records: bool
    keywords: dict = field(default_factory=dict)
    together: bool = False
    keep: int | None = None
    staircase: Staircase | None = None

    def positions(self) -> torch.Tensor:
        """Returns the positions (B or 1, T), by default counted from the end of the cache."""
        if self.position_ids is not None:
            return self.position_ids
        mask = self.attention_mask
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            return self._columns()
        tokens = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -self.embeds.shape[1] :]
        # Positions count tokens, because the query gate depends on absolute positions. One loop counts columns like
        # Llama, unless there is padding between tokens. (Decided on the device, so the host does not wait.)
        if self.num_loops > 1 or is_exporting():
            return tokens
        return torch.where(has_gaps(mask).to(tokens.device), tokens, self._columns())

    def _columns(self) -> torch.Tensor:
        """Returns positions (1, T) that count all columns from the start of the cache."""
        return (torch.arange(self.embeds.shape[1], device=self.embeds.device) + past_length(self.cache)).unsqueeze(0)


def past_length(cache: Cache | None) -> int:
    return cache.get_seq_length() if cache is not None else 0


def has_gaps(attention_mask: torch.Tensor) -> torch.Tensor:
    """Returns, as a scalar tensor, whether any row of a 2D mask has padding between its tokens."""
    starts = attention_mask[:, 1:] & ~attention_mask[:, :-1]
    return (attention_mask[:, 0].long() + starts.sum(-1) > 1).any()


def read_inputs(config, inputs: Inputs, use_cache: bool | None, schedule: str, recordable: tuple[str, ...]) -> Inputs:
    """
    Checks and completes the inputs of a forward pass. `schedule` is the argument `loop_schedule`. `recordable`
    names the outputs that can be recorded.

    Raises:
        ValueError: for unsupported inputs. The message suggests an alternative.
        TypeError: for a cache under an unknown argument name.
    """
    if schedule not in ("together", "sequence"):
        raise ValueError(f'`loop_schedule` must be "together" or "sequence", got {schedule!r}.')
    if inputs.embeds.shape[1] == 0:
        raise ValueError("The input has no tokens. Pass at least one.")
    check_keywords(inputs.keywords, config._attn_implementation, recordable)
    inputs.num_loops = config.check_num_loops(inputs.num_loops)
    if inputs.cache is not None:
        has_mask = inputs.attention_mask is not None
        check_cache(inputs.cache, config, inputs.num_loops, inputs.embeds.shape[0], has_mask)
    can_create_cache = _read_mask(config, inputs)
    if can_create_cache and use_cache and inputs.cache is None:
        inputs.cache = DynamicCache(config=config)
    if inputs.cache is not None:
        prepare_cache(inputs.cache, config, inputs.num_loops)
    is_alone = inputs.embeds.shape[1] == 1 and getattr(inputs.attention_mask, "ndim", 2) != 4
    inputs.together = is_alone and schedule == "together" and not inputs.records
    # CODEPATH: always shifted in LoopCoder-V2 and by default.
    if inputs.together and inputs.num_loops > 1 and not config.loops_can_run_together:
        inputs.together = False
        logger.warning_once(
            f"With `plt_cross_loop_shift={config.plt_cross_loop_shift!r}`, each loop of a token depends on the "
            "previous one, so decoding runs the loops in sequence."
        )
    return inputs


# -- masks and positions ----------------------------------------------------------------------------------------------


def _read_mask(config, inputs: Inputs) -> bool:
    """Checks and completes masks and positions. Returns whether each row holds one text, as a new cache requires."""
    num_tokens, has_cache = inputs.embeds.shape[1], inputs.cache is not None
    if inputs.keywords.get("cu_seq_lens_q") is not None:
        inputs.position_ids = packed_positions(inputs.keywords["cu_seq_lens_q"], inputs.position_ids, num_tokens)
    if isinstance(inputs.attention_mask, dict) and "global_mask" in inputs.attention_mask:
        if inputs.position_ids is None:
            raise ValueError("A prepared mask does not contain token positions. Pass `position_ids` with it.")
        return True
    mask = normalize_mask(inputs.attention_mask, config._attn_implementation, inputs.embeds)
    inputs.attention_mask = mask
    if inputs.num_loops > 1:
        check_mask(mask, past_length(inputs.cache), num_tokens, has_cache)
    if is_packed(inputs.position_ids, mask, num_tokens, has_cache):
        if has_cache:
            raise ValueError("Packed documents cannot share a cache. Leave out `cache`.")
        return False  # with a cache, the library's masks do not separate documents
    return inputs.num_loops == 1 or mask is None or mask.ndim != 4


def normalize_mask(attention_mask, attention_kernel: str, embeds: torch.Tensor):
    """
    Converts a mask to its standard form. A 2D mask becomes boolean: any number but 0 marks a token, as in the library.
    A 4D mask becomes additive for kernels that add masks to their scores, which is all of them except SDPA.

    Raises:
        ValueError: for a 4D mask with an attention kernel that does not accept one.
    """
    if not isinstance(attention_mask, torch.Tensor):
        return attention_mask
    if attention_mask.ndim == 2:
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    kernel = get_kernel(attention_kernel)
    if attention_mask.ndim == 4 and not kernel.takes_4d_masks:
        raise ValueError(
            f"The attention kernel {attention_kernel!r} does not accept a 4D mask. Pass a 2D mask, or load the model "
            'with `attn_implementation="sdpa"`.'
        )
    if attention_mask.ndim == 4 and attention_mask.dtype == torch.bool and kernel.adds_masks:
        return as_additive(attention_mask, embeds.dtype)
    return attention_mask


def check_mask(attention_mask, past_length: int, time: int, has_cache: bool) -> None:
    """Raises ValueError if a mask does not tell several loops which token precedes which."""
    if attention_mask is None:
        return
    compiling = torch.compiler.is_compiling()
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        if not compiling and attention_mask.shape[1] != past_length + time:
            raise ValueError(
                f"The attention mask has {attention_mask.shape[1]} columns, but there are {int(past_length + time)} "
                "cached and new tokens. The mask must cover both."
            )
        return
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.shape[1:] != (1, time, time) or has_cache:
        raise ValueError(
            "A PLT model with more than one loop needs a 2D attention mask (batch, past + time), or, without a cache, "
            "a 4D one (batch, 1, time, time): the cache keeps windows and carries for one text per row. For packed "
            "documents, pass `position_ids` that restart for each document, without a mask."
        )
    if attention_mask.dtype != torch.bool and not attention_mask.dtype.is_floating_point:
        raise ValueError(f"A 4D attention mask must be boolean or additive, got {attention_mask.dtype}.")
    if compiling:
        return
    seen = is_seen(attention_mask)
    if attention_mask.dtype != torch.bool and bool((seen & (attention_mask != 0)).any()):
        raise ValueError("An additive 4D attention mask must be 0 for visible keys and very negative for hidden ones.")
    if bool(seen.triu(1).any()):
        raise ValueError("The 4D attention mask lets tokens see later ones. The loops' shift needs a causal mask.")


def is_packed(position_ids, attention_mask, time: int, has_cache: bool) -> bool:
    """Returns whether rows hold several documents. Raises ValueError if they do and a 2D mask is given."""
    if position_ids is None or time == 1:
        return False
    if torch.compiler.is_compiling():  # a graph cannot check values, so without a cache it also handles packed rows
        return attention_mask is None and not has_cache
    steps = torch.diff(position_ids)
    if attention_mask is None:
        return bool((steps != 1).any())
    is_token = attention_mask[:, -time:].to(position_ids.device) != 0
    if attention_mask.ndim == 2 and bool(((steps <= 0) & is_token[:, 1:] & is_token[:, :-1]).any()):
        raise ValueError(
            "For packed documents, pass `position_ids` that restart for each document, without an `attention_mask`."
        )
    return False


def packed_positions(cu_seq_lens: torch.Tensor, position_ids: torch.Tensor | None, time: int) -> torch.Tensor:
    """
    Returns `position_ids` if given, else the positions (1, time) of documents that start at `cu_seq_lens[:-1]`.

    Raises:
        ValueError: if `position_ids` and `cu_seq_lens` disagree on where documents start.
    """
    tokens = torch.arange(time, device=cu_seq_lens.device)
    positions = (tokens - cu_seq_lens[torch.bucketize(tokens, cu_seq_lens, right=True) - 1]).unsqueeze(0)
    if position_ids is None:
        return positions
    if not torch.compiler.is_compiling():
        starts = (torch.diff(states) != 1 for states in (positions, position_ids.to(positions.device)))
        if not torch.equal(*(start.expand(len(position_ids), -1) for start in starts)):
            raise ValueError(
                "`position_ids` and `cu_seq_lens_q` start documents at different tokens. Pass only one of them."
            )
    return position_ids


# -- keywords and caches ----------------------------------------------------------------------------------------------


def check_keywords(keywords: dict, attention_kernel: str, recordable: tuple[str, ...] = ()) -> None:
    """
    Checks the extra keyword arguments of a forward pass. Warns once about any that the library's kernels and losses do
    not read, since they have no effect.

    Raises:
        TypeError: for a cache under an unknown name. If it were ignored, every step would start from an empty cache.
    """
    for name, value in keywords.items():
        if isinstance(value, Cache) or hasattr(value, "get_seq_length"):
            raise TypeError(
                f"forward() got a cache as `{name}`, but this model does not read that argument. Pass the cache as "
                f"{' or '.join(f'`{known}`' for known in CACHE_NAMES)}."
            )
    if torch.compiler.is_compiling():  # the first call, outside the graph, has already warned
        return
    known = _library_keywords(attention_kernel)
    unknown = [name for name in keywords if name not in known and name.removeprefix("output_") not in recordable]
    if unknown:
        names = ", ".join(f"`{name}`" for name in sorted(unknown))
        logger.warning_once(f"forward() ignores arguments that this model does not read: {names}.")


@functools.cache
def _library_keywords(attention_kernel: str) -> frozenset[str]:
    """
    Returns the names that the library's attention kernels, losses and decorators read from `**kwargs`. The argument
    only keys the cache: a kernel registered since the last call may read more names.
    """
    names = {"return_dict", "debug_io", "debug_io_dir", "prune_layers"}
    names.add("tokenizer")  # with stop strings, `generate()` also passes it to the model
    names |= TransformersKwargs.__annotations__.keys() | FlashAttentionKwargs.__annotations__.keys()
    functions = [ForCausalLMLoss, *ALL_ATTENTION_FUNCTIONS.values()]
    names |= {name for function in functions for name in inspect.signature(function).parameters}
    return frozenset(names - set(CACHE_NAMES))


__all__ = ["Inputs", "read_inputs"]
