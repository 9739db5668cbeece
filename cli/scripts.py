# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`finetune`, `lora`, `sft` and `humaneval`: the training scripts as commands, with the scripts' own options."""

import argparse
import contextlib
from collections.abc import Callable, Iterator

import typer
from typer.core import TyperCommand

from ..training import options
from .startup import prepare


class Script(TyperCommand):
    """A command that leaves all arguments to a script's parser."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        ctx.args = args
        return args


def parse(ctx: typer.Context, parser: Callable[..., argparse.Namespace]) -> argparse.Namespace:
    """Parses the arguments, which may print help and exit. Then imports the package."""
    args = parser(ctx.args, f"iquest-plt {ctx.info_name}")
    prepare(ctx)
    return args


@contextlib.contextmanager
def naming_extra(extra: str) -> Iterator[None]:
    """Turns the ImportError of an optional library into a ValueError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed: pip install '.[{extra}]' in a checkout of iquest-plt"
        ) from None


def finetune(ctx: typer.Context) -> None:
    """Train all weights on text."""
    args = parse(ctx, options.parse_finetune)
    with naming_extra("training"):
        from ..training import common
        from ..training import finetune as script
    common.run(script.finetune, args)


def lora(ctx: typer.Context) -> None:
    """Train low-rank adapters on text, optionally on quantised weights."""
    args = parse(ctx, options.parse_lora)
    with naming_extra("training"):
        from ..training import common
        from ..training import lora as script
    common.run(script.adapt, args)


def sft(ctx: typer.Context) -> None:
    """Train on conversations."""
    args = parse(ctx, options.parse_sft)
    with naming_extra("training"):
        from ..training import common
        from ..training import sft as script
    common.run(script.tune, args)


def humaneval(ctx: typer.Context) -> None:
    """Complete HumanEval's functions, run their tests, and compute pass@k."""
    args = parse(ctx, options.parse_humaneval)
    from ..training import humaneval as script

    script.run_or_exit(args)
