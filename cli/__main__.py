# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m iquest_plt.cli` runs the command `iquest-plt`."""

from . import main


main()
