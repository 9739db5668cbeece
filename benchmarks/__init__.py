# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0

"""Measurements, one question a file. Run one with `python -m iquest_plt.benchmarks.NAME`."""
