# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Drawing of pictures: a failure does not lose the measurements."""

import io
import sys
from collections.abc import Callable

from .terminal import printable


def try_draw(name: str, draw: Callable, *arguments):
    """Returns `draw(*arguments)`, or None with a note on standard error if it fails."""
    try:
        return draw(*arguments)
    except Exception as error:
        note_missing(name, error)
        return None


def note_missing(name: str, error: Exception) -> None:
    """Notes on standard error that a picture is missing, and why."""
    reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))
    print(f"note: {name} was not drawn ({reason}); the numbers are complete", file=sys.stderr)


def png(figure) -> bytes:
    """Returns a matplotlib figure as a PNG. Equal figures give equal bytes."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return target.getvalue()
