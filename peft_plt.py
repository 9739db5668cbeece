# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What PEFT must know of this model to find the layers of a `LoraConfig` without `target_modules`."""

import sys


def add_peft_targets(model_type: str) -> None:
    """
    Enters a model type in PEFT's tables of default targets, one for each method, with Llama's: its layers have the same
    names. Does nothing while PEFT is not imported, and so costs nothing where it is not installed.
    """
    tables = vars(sys.modules.get("peft.utils.constants", object)).values()
    for table in [table for table in tables if isinstance(table, dict) and "llama" in table]:
        table.setdefault(model_type, table["llama"])


__all__ = ["add_peft_targets"]
