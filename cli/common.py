# Copyright 2026 The iquest-plt authors. All rights reserved.
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
"""What the commands share: options, progress bars, and their two ways to answer."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from ..configuration_plt import MAX_LOOPS
from ..conversion.checkpoint import is_unicode
from ..utils.terminal import HIDDEN, visible


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
NumLoops = Annotated[int | None, typer.Option(min=1, max=MAX_LOOPS, help="Loops per token. [default: the model's]")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, of a repository on the Hub.")]


def parse_size(text: str) -> int:
    """Bytes of a size such as `5GB`. Raises typer.BadParameter if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2] or "B"]) if match else 0
    if size < 1:
        raise typer.BadParameter(f"{text!r} is not a size such as 5GB or 500MB.")
    return size


def human(size: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function that takes bytes done and bytes in all, and shows them on standard error if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def require_text(text: str | None, what: str) -> None:
    """Raises ValueError if `text` came from bytes that are no UTF-8: no tokenizer takes it."""
    if text is not None and not is_unicode(text):
        raise ValueError(f"{what} is no UTF-8 text: convert it.")


def answer(document: dict, as_json: bool, table: Table | str) -> None:
    """Prints the document as JSON, or the table, whose cells are `visible` texts."""
    if as_json:
        text = json.dumps(document, indent=1, ensure_ascii=False)
        print(HIDDEN.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text))
    else:
        table = visible(table, line_ends=True) if isinstance(table, str) else table
        Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False, emoji=False).print(table)
