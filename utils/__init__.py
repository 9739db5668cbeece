# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by several packages, independent of checkpoint layouts, commands and training."""
