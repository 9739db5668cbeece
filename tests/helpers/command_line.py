# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the command `iquest-plt` in this process."""

from typer.testing import CliRunner

from iquest_plt import cli


def run(*arguments, **kwargs):
    """Runs the command as `main` does; returns (exit code, standard output, standard error)."""
    runner = CliRunner()
    result = runner.invoke(cli.app, [str(argument) for argument in arguments], **kwargs)
    if isinstance(result.exception, ValueError | OSError):
        return 1, result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
