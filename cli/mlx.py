# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`mlx`: mlx-lm's commands for PLT models."""

from typing import Annotated

import typer


COMMANDS = ("generate", "chat", "server", "cache_prompt", "convert", "lora", "fuse")
# Everything after the command's name belongs to mlx-lm, options such as --help included.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def mlx(
    context: typer.Context,
    command: Annotated[str, typer.Argument(metavar="COMMAND", help=f"One of {', '.join(COMMANDS)}.")],
) -> None:
    """Run one of mlx-lm's commands on a PLT, with mlx-lm's options: iquest-plt mlx generate --model PATH ..."""
    from ..serving.mlx import launcher

    launcher.run([command, *context.args])
