# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The differences between supported versions of Transformers, each with the version that introduced it.

This file is imported before the rest of the model, so it must import on any version.
"""

import functools
import re

import transformers
from transformers import cache_utils
from transformers.utils import logging


OLDEST = "5.16.1"
NEWEST = "5.24"  # the newest minor version tested; setup.cfg has the same range


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.match(r"[\d.]*\d", version)[0].split("."))  # type: ignore[index]


INSTALLED = _release(transformers.__version__)

if _release(OLDEST) > INSTALLED:
    raise ImportError(
        f"This model needs Transformers >= {OLDEST}, but {transformers.__version__} is installed. "
        f'Run `pip install "transformers>={OLDEST}"`.'
    )
if INSTALLED[:2] > _release(NEWEST):
    logging.get_logger("transformers").warning_once(
        f"This model was tested with Transformers {OLDEST} to {NEWEST}, but {transformers.__version__} is installed. "
        "Compare its output with that of a tested version before you rely on it."
    )

# 5.24 renamed the argument and output field `past_key_values` to `cache`. Here both names work in every version. Remove
# this once 5.24 is the oldest supported version: the library accepts the old name until 5.40.
CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = "cache" if INSTALLED >= (5, 24) else "past_key_values"  # the library's name for it


def take_cache(arguments: dict, default=None):
    """
    Removes the cache from keyword arguments, under either name, and returns it.

    Raises:
        ValueError: if two caches are given.
    """
    given = [value for name in CACHE_NAMES if (value := arguments.pop(name, None)) is not None]
    if len(given) > 1:
        raise ValueError("`cache` and `past_key_values` are two names for the same argument. Pass only one of them.")
    return given[0] if given else default


def accepts_both_cache_names(function):
    """Makes a method with an argument `cache` accept it as `past_key_values` too."""

    @functools.wraps(function)
    def with_either_name(self, *args, **kwargs):
        if "past_key_values" in kwargs:
            kwargs["cache"] = take_cache(kwargs)
        return function(self, *args, **kwargs)

    return with_either_name


class BothCacheNames:
    """A mixin for output classes: `.cache` and `.past_key_values` return the same field."""

    if CACHE_NAME == "past_key_values":
        cache = property(lambda self: self.past_key_values)
    else:
        past_key_values = property(lambda self: self.cache)  # unlike the library's, logs no warning


try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:  # new in 5.20

    def slice_logits_to_keep(hidden_states, logits_to_keep):
        return hidden_states[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


# New in 5.22; None before.
Fp8QuantizedLayer = getattr(cache_utils, "Fp8QuantizedLayer", None)
