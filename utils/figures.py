# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures, which may fail without a loss to what was measured."""

import io
import sys
from collections.abc import Callable

from .terminal import printable


def try_draw(name: str, draw: Callable, *arguments):
    """What `draw(*arguments)` returns. If it fails, None: a picture must not cost what was measured."""
    try:
        return draw(*arguments)
    except Exception as error:
        note_missing(name, error)
        return None


def note_missing(name: str, error: Exception) -> None:
    """Says on standard error that a picture is missing, and why."""
    reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))
    print(f"note: {name} was not drawn ({reason}); the numbers are complete", file=sys.stderr)


def png(figure) -> bytes:
    """A matplotlib figure as a PNG, the same for the same figure."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return target.getvalue()
