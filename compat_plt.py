# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Every difference between the versions of Transformers that this model runs on, each with the version that made it.

This file is imported before anything else of the model, so it must itself import on any version.
"""

import functools
import re

import transformers
from transformers import cache_utils
from transformers.utils import logging


OLDEST = "5.16.1"
NEWEST = "5.24"  # the newest minor version that the tests were run with; setup.cfg has the same range


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.match(r"[\d.]*\d", version)[0].split("."))  # type: ignore[index]


INSTALLED = _release(transformers.__version__)

if _release(OLDEST) > INSTALLED:
    raise ImportError(
        f"This model needs Transformers >= {OLDEST}, and {transformers.__version__} is installed: "
        f'run `pip install "transformers>={OLDEST}"`.'
    )
if INSTALLED[:2] > _release(NEWEST):
    logging.get_logger("transformers").warning_once(
        f"This model was tested with Transformers {OLDEST} to {NEWEST}, and {transformers.__version__} is installed: "
        "compare its output with one of those versions before you rely on it."
    )

# 5.24 renamed the argument `past_key_values` to `cache`, and so the field of outputs. Both names work here in every
# version. Can go when 5.24 is the oldest: the library itself takes the old name until 5.40.
CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = "cache" if INSTALLED >= (5, 24) else "past_key_values"  # what the library calls it


def take_cache(arguments: dict, default=None):
    """
    Removes the cache from keyword arguments, whichever of its names it has, and returns it.

    Raises:
        ValueError: if two caches are given.
    """
    given = [value for name in CACHE_NAMES if (value := arguments.pop(name, None)) is not None]
    if len(given) > 1:
        raise ValueError("`cache` and `past_key_values` are two names of one argument: pass one of them.")
    return given[0] if given else default


def accepts_both_cache_names(function):
    """For a method whose argument is `cache`: takes it as `past_key_values` too."""

    @functools.wraps(function)
    def with_either_name(self, *args, **kwargs):
        if "past_key_values" in kwargs:
            kwargs["cache"] = take_cache(kwargs)
        return function(self, *args, **kwargs)

    return with_either_name


class BothCacheNames:
    """For an output class: `.cache` and `.past_key_values` are one field, whatever the library calls it."""

    if CACHE_NAME == "past_key_values":
        cache = property(lambda self: self.past_key_values)
    else:
        past_key_values = property(lambda self: self.cache)  # the library's own logs a warning


try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:  # new in 5.20

    def slice_logits_to_keep(hidden_states, logits_to_keep):
        return hidden_states[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


# New in 5.22; None before.
Fp8QuantizedLayer = getattr(cache_utils, "Fp8QuantizedLayer", None)
