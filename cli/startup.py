# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Commands that import PyTorch and Transformers only when they run. Their help does not wait for these imports."""

import importlib

import typer
from typer.core import TyperCommand


def load_package() -> None:
    """Executes the package's `__init__.py`, which registers the model type, unless it has been executed."""
    package = importlib.import_module("iquest_plt")
    if not hasattr(package, "IQuestPLTCoderConfig"):  # put off by the launcher
        package.__spec__.loader.exec_module(package)  # type: ignore[union-attr]


def prepare(ctx: typer.Context) -> None:
    """Loads the package, then runs the function that `main` passes in the context."""
    load_package()
    if callable(ctx.obj):
        ctx.obj()


class Command(TyperCommand):
    """A command that needs the package."""

    def invoke(self, ctx):
        prepare(ctx)
        return super().invoke(ctx)
