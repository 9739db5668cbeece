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
"""Text that others wrote, for a terminal."""

import re


# Control characters, halves of surrogate pairs, and marks that change the direction of what follows.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object, line_ends: bool = False) -> str:
    """
    Text of a checkpoint, a file name or an error, for a terminal: what could move its cursor, recolour it or reorder
    a line is written as an escape, and so is what cannot be encoded. Newlines and tabs stay with `line_ends`.
    """
    kept = "\n\t" if line_ends else ""
    return HIDDEN.sub(lambda match: match[0] if match[0] in kept else ascii(match[0])[1:-1], str(text))
