# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The entry point of the command `iquest-plt`, a top-level module beside the package.

Importing `iquest_plt` imports PyTorch and Transformers, which takes seconds. Here the package's `__init__.py` waits
until a command runs (`iquest_plt.cli.startup`), so help and wrong arguments are answered at once.
"""

import importlib.util
import sys


def main() -> None:
    spec = importlib.util.find_spec("iquest_plt")
    sys.modules["iquest_plt"] = importlib.util.module_from_spec(spec)  # not executed yet; its submodules can be found
    from iquest_plt.cli import main as run

    run()
