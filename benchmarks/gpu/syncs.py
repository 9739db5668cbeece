# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Counts where the host waits for the device. Each such place stalls a decode step and prevents graph capture."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode


# Operations that read a tensor's values on the host, or whose result's shape depends on them.
CONVERSIONS = {"__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist", "cpu", "numpy"}
WAITING = CONVERSIONS | {"equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "is_nonzero"}


class _Counter(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        is_selection = name == "__getitem__" and _holds_mask(args[1])
        if name in WAITING or is_selection:
            self.places.append(name)
        return function(*args, **(kwargs or {}))


def _holds_mask(index) -> bool:
    indices = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in indices)


@contextlib.contextmanager
def synchronisations(device: torch.device) -> Iterator[list[str]]:
    """Collects the places where the host waits: as reported by CUDA, or by operation on other devices."""
    if device.type != "cuda":
        with _Counter() as counter:
            yield counter.places
        return
    places: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
            places += [f"{w.filename}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]
