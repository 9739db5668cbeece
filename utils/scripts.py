# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""How scripts end: expected errors and Ctrl-C print one line instead of a traceback."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .terminal import printable


INTERRUPTED = 130  # the exit status with which shells report Ctrl-C
RESUME = "Run the same command again to resume."
RESUME_CHECKPOINT = "Run the same command again to resume from the last checkpoint."
NO_CHECKPOINT = "No checkpoint was saved. The same command starts from the beginning."


@contextmanager
def one_line_errors(*further: type[Exception], advice: str | Callable[[], str] = "") -> Iterator[None]:
    """
    Ends the program with a one-line message on ValueError, OSError, one of `further`, or Ctrl-C.

    Args:
        advice: what to do after Ctrl-C, or a function that says it. `RESUME` is for scripts that can resume.
    """
    expected: tuple[type[Exception], ...] = (ValueError, OSError, *further)
    try:
        yield
    except expected as error:
        raise SystemExit(f"error: {printable(' '.join(str(error).split()))}") from error
    except KeyboardInterrupt:
        said = advice if isinstance(advice, str) else advice()
        print(f"\nInterrupted. {said}".rstrip(), file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
