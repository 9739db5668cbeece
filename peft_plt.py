# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Tells PEFT which layers of this model to adapt by default, for a `LoraConfig` without `target_modules`."""

import sys


def add_peft_targets(model_type: str) -> None:
    """
    Adds a model type to PEFT's tables of default targets (one per method), with Llama's targets: the layers have the
    same names. Does nothing if PEFT has not been imported.
    """
    tables = vars(sys.modules.get("peft.utils.constants", object)).values()
    for table in [table for table in tables if isinstance(table, dict) and "llama" in table]:
        table.setdefault(model_type, table["llama"])


__all__ = ["add_peft_targets"]
