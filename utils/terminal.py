# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Makes untrusted text safe to print on a terminal."""

import re


# Control characters, lone surrogates, and marks that change the text direction.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, line_ends: bool = False) -> str:
    """
    Escapes characters that could move the cursor, change colours, reorder a line or fail to encode.

    Used for text from checkpoints, file names and errors. With `line_ends`, newlines and tabs are kept.
    """
    kept = "\n\t" if line_ends else ""
    return HIDDEN.sub(lambda match: match[0] if match[0] in kept else ascii(match[0])[1:-1], str(text))
