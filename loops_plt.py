# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""One number of loops wherever a model goes: to a second model on the same weights, and through a reload by path."""

import functools
import weakref
from typing import Any

import torch
import yaml
from torch import nn


class ModelPath(str):
    """
    The path that a model was loaded from, with its number of loops: who loads a model from it gets the same number.

    Trainers load their reference model so. To everything else this is the path alone.
    """

    plt_num_loops: int | None

    def __new__(cls, path: str, plt_num_loops: int | None = None):
        self = super().__new__(cls, path)
        self.plt_num_loops = plt_num_loops
        return self


for _dumper in ("Dumper", "SafeDumper", "CDumper", "CSafeDumper"):
    if hasattr(yaml, _dumper):  # model cards write the path: as text, not as an object
        getattr(yaml, _dumper).add_representer(ModelPath, lambda dumper, path: dumper.represent_str(str(path)))


class Family(weakref.WeakSet):
    """The models on one set of weights. A copy has weights of its own, and so a family of its own."""

    def __reduce__(self):
        return Family, ()


# What a module keeps that calls that very module, besides the methods that are replaced on it.
_BOUND = {"_compiled_call", "_compiled_call_impl", "_hf_hook", "_old_forward", "_original_forward"}


def share_parts(module: nn.Module, config) -> Any:
    """
    A module with another configuration, on the same parts: not only the weights, but the very dictionaries of
    submodules and hooks. So what is replaced or added later (adapters, a resized embedding) is there in both.
    """
    kept = {
        name: value
        for name, value in vars(module).items()
        if name not in _BOUND and not callable(getattr(type(module), name, None))
    }
    twin = object.__new__(type(module))
    vars(twin).update(kept, config=config)
    hook = vars(module).get("_hf_hook")  # accelerate's: moves inputs and outputs between devices
    if hook is not None:
        twin.forward = functools.partial(_forward_with_hook, twin, hook)
    return twin


def _forward_with_hook(module: nn.Module, hook, *args, **kwargs):
    args, kwargs = hook.pre_forward(module, *args, **kwargs)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not hook.no_grad):
        output = type(module).forward(module, *args, **kwargs)
    return hook.post_forward(module, output)


__all__ = ["Family", "ModelPath", "share_parts"]
