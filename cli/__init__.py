# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The command `iquest-plt`. Exit codes: 0 for success, 1 for an error (explained in one line), 2 for wrong arguments.

No command executes Python files from a checkpoint.
"""

import os
import sys

import typer
from transformers.utils import logging
from typer.core import TyperGroup

from ..utils.terminal import printable
from . import chat, checkpoints, diagnose, generate, mlx, serve, sweep
from .data import ManyFiles


class Commands(TyperGroup):
    """Command group that passes errors about arguments through `printable`: they may quote file names."""

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
app.command(context_settings=mlx.PASS_ON)(mlx.mlx)
for command_of_files in (diagnose.diagnose, sweep.sweep):
    app.command(cls=ManyFiles)(command_of_files)


def main() -> None:
    """
    Runs the command line. Errors are printed as one line on standard error; IQUEST_PLT_DEBUG=1 shows the traceback.
    """
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        app()
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("IQUEST_PLT_DEBUG"):
            raise
        name = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        sys.exit(f"error: {name}{printable(' '.join(str(error).split()))}")
