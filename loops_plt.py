# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps a model's number of loops when it is loaded again by path. Builds models that share one set of weights."""

import functools
import weakref
from typing import Any

import torch
import yaml
from torch import nn


class ModelPath(str):
    """
    The path that a model was loaded from, with its number of loops. A model loaded from it gets the same number.

    Trainers load their reference model this way. Everywhere else it acts as a plain string.
    """

    plt_num_loops: int | None

    def __new__(cls, path: str, plt_num_loops: int | None = None):
        self = super().__new__(cls, path)
        self.plt_num_loops = plt_num_loops
        return self


for _dumper in ("Dumper", "SafeDumper", "CDumper", "CSafeDumper"):
    if hasattr(yaml, _dumper):  # makes model cards contain the path as plain text
        getattr(yaml, _dumper).add_representer(ModelPath, lambda dumper, path: dumper.represent_str(str(path)))


class Family(weakref.WeakSet):
    """The models that share one set of weights. A copied model has its own weights, so it starts a new family."""

    def __reduce__(self):
        return Family, ()


# Attributes that are bound to their module, besides methods replaced on the instance.
_BOUND = {"_compiled_call", "_compiled_call_impl", "_hf_hook", "_old_forward", "_original_forward"}


def share_parts(module: nn.Module, config) -> Any:
    """
    Returns a module with another configuration that shares all parts of `module`: the weights, and also the
    dictionaries of submodules and hooks. Later changes (adapters, a resized embedding) thus show in both.
    """
    kept = {
        name: value
        for name, value in vars(module).items()
        if name not in _BOUND and not callable(getattr(type(module), name, None))
    }
    twin = object.__new__(type(module))
    vars(twin).update(kept, config=config)
    hook = vars(module).get("_hf_hook")  # accelerate's hook, which moves inputs and outputs between devices
    if hook is not None:
        twin.forward = functools.partial(_forward_with_hook, twin, hook)
    return twin


def _forward_with_hook(module: nn.Module, hook, *args, **kwargs):
    args, kwargs = hook.pre_forward(module, *args, **kwargs)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not hook.no_grad):
        output = type(module).forward(module, *args, **kwargs)
    return hook.post_forward(module, output)


__all__ = ["Family", "ModelPath", "share_parts"]
