# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Names of floating-point types, for options that are read before PyTorch is imported."""

FLOAT_NAMES = ("float64", "float32", "float16", "bfloat16")  # conversion/convert.py maps them to PyTorch
