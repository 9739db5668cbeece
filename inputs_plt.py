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
"""What a forward pass is given: keywords that would vanish are named here, not swallowed."""

import functools
import inspect

import torch
from transformers.cache_utils import Cache
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import TransformersKwargs

from .compat_plt import CACHE_NAMES


logger = logging.get_logger(__name__)


def check_keywords(keywords: dict, attention_kernel: str, recorded: tuple[str, ...] = ()) -> None:
    """
    Checks what a forward pass got beyond its own arguments. Some of it the library's kernels and losses read; anything
    else would have no effect, and a warning, once, says so.

    Raises:
        TypeError: for a cache under a name that no layer reads. Without it every step would start from an empty past.
    """
    for name, value in keywords.items():
        if isinstance(value, Cache) or hasattr(value, "get_seq_length"):
            raise TypeError(
                f"forward() got a cache as `{name}`, which this model does not read: pass it as "
                f"{' or '.join(f'`{known}`' for known in CACHE_NAMES)}."
            )
    if torch.compiler.is_compiling():  # the first call, outside the graph, has said it
        return
    known = _library_keywords(attention_kernel)
    unknown = [name for name in keywords if name not in known and name.removeprefix("output_") not in recorded]
    if unknown:
        names = ", ".join(f"`{name}`" for name in sorted(unknown))
        logger.warning_once(f"forward() got {names}, which this model does not read: without effect.")


@functools.cache
def _library_keywords(attention_kernel: str) -> frozenset[str]:
    """What the library passes through a model's `**kwargs` to attention kernels, losses and its own decorators."""
    names = {"return_dict", "debug_io", "debug_io_dir", "prune_layers"}
    names |= TransformersKwargs.__annotations__.keys() | FlashAttentionKwargs.__annotations__.keys()
    functions = [ForCausalLMLoss, *ALL_ATTENTION_FUNCTIONS.values()]
    names |= {name for function in functions for name in inspect.signature(function).parameters}
    return frozenset(names - set(CACHE_NAMES))


__all__ = ["check_keywords"]
