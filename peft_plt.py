# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
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
