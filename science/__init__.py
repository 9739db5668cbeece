# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Experiments on the number of loops, the shift and the window: a family of small models, and what they show."""
