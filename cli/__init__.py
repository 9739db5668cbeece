# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The command `iquest-plt`. Exit codes: 0 done, 1 refused, with a reason in one line, 2 not understood.

No command executes Python files of a checkpoint.
"""

import os
import sys

import typer
from transformers.utils import logging
from typer.core import TyperGroup

from ..utils.terminal import printable
from . import chat, checkpoints, diagnose, generate, serve, sweep
from .data import ManyFiles


class Commands(TyperGroup):
    """The commands, whose errors about arguments, such as names of files, are `printable` texts."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(getattr(error, "message", None), str) and hasattr(error, "format_message"):
                error.message = printable(error.message)
            raise


app = typer.Typer(
    cls=Commands,
    name="iquest-plt",
    help="Parallel Loop Transformers (PLT, LoopCoder-V2): convert, check, describe and run checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    checkpoints.convert,
    checkpoints.verify,
    checkpoints.info,
    generate.generate,
    chat.chat,
    serve.serve,
):
    app.command()(command)
for command_of_files in (diagnose.diagnose, sweep.sweep):
    app.command(cls=ManyFiles)(command_of_files)


def main() -> None:
    """
    Runs the command line; what cannot be done ends in one line on standard error. IQUEST_PLT_DEBUG=1 shows where.
    """
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        app()
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("IQUEST_PLT_DEBUG"):
            raise
        name = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        sys.exit(f"error: {name}{printable(' '.join(str(error).split()))}")
