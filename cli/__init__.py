# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The command `iquest-plt`. Exit codes: 0 for success, 1 for an error (explained in one line), 2 for wrong arguments.

No command executes Python files from a checkpoint. Modules of this folder import PyTorch and Transformers only inside
functions, so that help is fast (`startup.py`).
"""

import importlib.metadata
import os
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from ..utils.terminal import printable
from . import chat, checkpoints, demo, diagnose, generate, mlx, scripts, serve, sweep
from .data import ManyFiles
from .startup import Command


class Commands(TyperGroup):
    """
    Command group that passes errors about arguments through `printable`: they may quote file names. Its help does not
    list `--show-completion`.
    """

    def get_params(self, ctx):
        for parameter in self.params:
            if parameter.name == "show_completion":
                parameter.hidden = True
        return super().get_params(ctx)

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
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"iquest-plt {importlib.metadata.version('iquest-plt')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Parallel Loop Transformers (PLT, LoopCoder-V2): convert, check, describe, run and train checkpoints."""


for command in (
    checkpoints.convert,
    checkpoints.verify,
    checkpoints.info,
    generate.generate,
    chat.chat,
    demo.demo,
    serve.serve,
):
    app.command(cls=Command)(command)
app.command(cls=Command, context_settings=mlx.PASS_ON)(mlx.mlx)
for command_of_files in (diagnose.diagnose, sweep.sweep):
    app.command(cls=ManyFiles)(command_of_files)
for script in (scripts.finetune, scripts.lora, scripts.sft, scripts.humaneval):
    app.command(cls=scripts.Script, add_help_option=False, rich_help_panel="Training and evaluation")(script)


def be_quiet() -> None:
    """Hides Transformers' warnings, and its progress bars unless a person can watch them."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def main() -> None:
    """
    Runs the command line. Errors are printed as one line on standard error; IQUEST_PLT_DEBUG=1 shows the traceback.
    """
    try:
        app(obj=be_quiet)
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("IQUEST_PLT_DEBUG"):
            raise
        name = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        sys.exit(f"error: {name}{printable(' '.join(str(error).split()))}")
