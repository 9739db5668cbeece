# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0

"""Measurements, one question a file. Run one with `python -m iquest_plt.benchmarks.NAME`."""

import importlib.util


if missing := [name for name in ("greenlet", "matplotlib") if importlib.util.find_spec(name) is None]:
    raise ImportError(f"No {' and no '.join(missing)}: what the benchmarks need comes with `iquest-plt[benchmarks]`.")
