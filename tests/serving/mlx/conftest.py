# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Skips these tests without mlx-lm, and converts the small checkpoint for them."""

import os

import pytest
from paths import SMALL


os.environ.setdefault("MLX_DISABLE_COMPILE", "1")  # compiling takes longer than these tests' models save
collect_ignore_glob = []
try:
    import mlx.core
    import mlx_lm  # noqa: F401
except ImportError:
    collect_ignore_glob.append("test_*.py")


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """The small checkpoint for mlx-lm, in float32."""
    from iquest_plt.conversion.convert import convert

    folder = tmp_path_factory.mktemp("mlx") / "small"
    convert(str(SMALL), folder, to="mlx", dtype="float32")
    return folder


@pytest.fixture(scope="session")
def small(small_folder):
    """The same, loaded."""
    from mlx_lm import utils

    from iquest_plt.serving.mlx import launcher

    launcher.register()
    return utils.load(str(small_folder))
