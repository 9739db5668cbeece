# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What several rooms share. Nothing here knows of models' layouts, commands or training."""
