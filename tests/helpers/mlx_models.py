# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""MLX copies of Transformers models, and their logits. Importing this skips a test file if MLX is not installed."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from iquest_plt.conversion.mlx_folder import require_mlx


os.environ.setdefault("MLX_DISABLE_COMPILE", "1")  # on a CPU, compiling takes longer than these small models
try:
    require_mlx()
except ValueError as error:
    pytest.skip(str(error), allow_module_level=True)

mx, nn = importlib.import_module("mlx.core"), importlib.import_module("mlx.nn")
utils = importlib.import_module("mlx_lm.utils")
launcher = importlib.import_module("iquest_plt.serving.mlx.launcher")


TOLERANCE = 1e-4  # of logits in float32, absolute


def mlx_copy(model, folder: Path):
    """Returns an MLX model with the weights of a Transformers model, saved to `folder`."""
    launcher.register()
    model.save_pretrained(folder)
    return utils.load_model(Path(folder))[0]


def expected_logits(model, ids: torch.Tensor, **kwargs) -> np.ndarray:
    """Returns the Transformers model's logits (batch, time, vocabulary)."""
    with torch.no_grad():
        return model(ids, use_cache=False, **kwargs).logits.numpy()


def args_of(config):
    """Returns the arguments of the MLX model for a configuration."""
    from iquest_plt.serving.mlx.plt_mlx import ModelArgs

    return ModelArgs.from_dict(config.to_dict())


def array(ids: torch.Tensor):
    return mx.array(ids.numpy())


def fed_in_chunks(model, ids: torch.Tensor, sizes: list[int], unread: int = 0) -> np.ndarray:
    """
    Returns the logits after feeding `ids` (batch, time) in chunks. As in mlx-lm, the logits of the first `unread`
    chunks are never read, and only the caches are evaluated. Those chunks are not in the result.
    """
    assert sum(sizes) == ids.shape[1]
    cache, logits, start = model.make_cache(), [], 0
    for number, size in enumerate(sizes):
        output = model(array(ids[:, start : start + size]), cache=cache)
        mx.eval([one.state for one in cache])
        if number >= unread:
            logits.append(np.array(output.astype(mx.float32)))
        start += size
    return np.concatenate(logits, axis=1)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape and np.isfinite(found).all()
    return float(np.abs(found - expected).max())
