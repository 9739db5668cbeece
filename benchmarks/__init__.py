# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0

"""Benchmarks: each file answers one question. Run one with `python -m iquest_plt.benchmarks.NAME`."""
