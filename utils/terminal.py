# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Text that others wrote, for a terminal."""

import re


# Control characters, halves of surrogate pairs, and marks that change the direction of what follows.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, line_ends: bool = False) -> str:
    """
    Text of a checkpoint, a file name or an error, for a terminal: what could move its cursor, recolour it or reorder
    a line is written as an escape, and so is what cannot be encoded. Newlines and tabs stay with `line_ends`.
    """
    kept = "\n\t" if line_ends else ""
    return HIDDEN.sub(lambda match: match[0] if match[0] in kept else ascii(match[0])[1:-1], str(text))
