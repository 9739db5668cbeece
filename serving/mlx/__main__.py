# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m iquest_plt.serving.mlx COMMAND ...`: mlx-lm's commands for PLT models."""

import sys

from .launcher import run


try:
    run(sys.argv[1:])
except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
