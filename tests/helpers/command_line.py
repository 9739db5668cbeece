# Copyright 2026 The iquest-plt authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The command `iquest-plt`, run in this process."""

from typer.testing import CliRunner

from iquest_plt import cli


def run(*arguments, **kwargs):
    """The command in this process, as `main` runs it: (exit code, standard output, standard error)."""
    runner = CliRunner()
    result = runner.invoke(cli.app, [str(argument) for argument in arguments], **kwargs)
    if isinstance(result.exception, ValueError | OSError):
        return 1, result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
