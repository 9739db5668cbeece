# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`diagnose`: reports what each loop of a checkpoint gains and costs."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..utils.figures import note_missing, png, try_draw
from ..utils.terminal import printable
from .common import print_result
from .data import Data, read_text, read_texts, sample
from .options import MAX_LOOPS, Device, DtypeOption, Json, Model, Revision
from .output_folder import check_folder, report_folder, require_modules


if TYPE_CHECKING:
    from ..diagnostics import AttentionMaps, GainCost, LoopLens

RESULT, REPORT = "gain_cost.json", "report.html"
PICTURES = ("gain_cost.png", "rule.png", "metrics.png", "gates.png", "attention.png")
FILES = frozenset({RESULT, "gain_cost.csv", "lens.json", REPORT, *PICTURES})
LENS_BYTES = 16_000  # of text shown in the lens, to keep the report small
MAP_TOKENS = 48

MaxLength = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens per piece of a long text.", show_default="1024, or the model's maximum"),
]
MaxTokens = Annotated[
    int,
    typer.Option(min=1, help="Draw documents at random up to this many tokens; longer documents are cut."),
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of the draw and of the intervals.")]


def diagnose(
    path: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder, or an earlier report to replace.")],
    max_loops: Annotated[int, typer.Option(min=1, max=MAX_LOOPS, help="Largest number of loops to measure.")] = 4,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text for the lens and the attention maps.", show_default="the first of FILES"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the report.", show_default="PATH")] = None,
    note: Annotated[str | None, typer.Option(help="A sentence about the data to put in the report.")] = None,
    max_length: MaxLength = None,
    max_tokens: MaxTokens = 100_000,
    seed: Seed = 0,
    dtype: DtypeOption = None,
    device: Device = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Measure what each loop gains and costs on held-out text, and write an HTML report with numbers and pictures."""
    from ..conversion.loading import load_model
    from ..diagnostics import attention_maps, encode_documents, loop_lens, measure
    from ..diagnostics.interpretation import documents_text

    require_modules("matplotlib")
    check_folder(out, FILES, RESULT)
    texts = read_texts(data)
    title, shown = (text.name, read_text(text)) if text else next(iter(texts.items()))
    if not shown:
        raise ValueError(f"{title} is empty. Choose another text with --text.")
    model, tokenizer = load_model(path, revision, dtype and dtype.value, device)
    chosen, left_out = sample(tokenizer, texts, max_tokens, seed)
    documents = encode_documents(tokenizer, chosen)
    part = beginning(shown, LENS_BYTES)
    title = title if part == shown else f"{title} (beginning)"
    # Quick steps first: if one fails, no measurement is lost.
    lens = loop_lens(model, tokenizer, part, max_loops, max_length, title)
    maps = attention_maps(model, tokenizer, part, max_loops, MAP_TOKENS)
    with token_bar("Measuring") as progress:
        result = measure(model, documents, max_loops, max_length, seed, progress=progress)
    result.model["name"] = name or path
    write(out, result, lens, maps, [sentence for sentence in (left_out, note) if sentence])
    advice = result.recommendation
    rules = f"{advice.loops} of {advice.limit} loops by effective rank and loss, {advice.loops_by_loss} by the loss"
    found = f"{rules} alone" if advice.limit > 1 else "1 loop"
    measured = f"{documents_text(len(documents))}, {result.tokens:,} tokens"
    summary = f"{out / REPORT}: {found} ({measured})\n{result.reason}"
    print_result(result.to_dict(), as_json, summary)


def write(out: Path, result: "GainCost", lens: "LoopLens", maps: "AttentionMaps", notes: list[str]) -> None:
    """
    Writes all files of a report or none. If a picture or the HTML page fails, it is skipped with a note on standard
    error. Raises ValueError if the folder holds other files or the disk is full.
    """
    from ..diagnostics import plots, report  # matplotlib takes a second to import

    draws = (
        lambda: plots.plot(result),
        lambda: plots.plot_rule(result),
        lambda: plots.plot_metrics(result),
        lambda: plots.plot_gates(result),
        lambda: plots.plot_attention(maps),
    )
    with report_folder(out, FILES, RESULT) as folder:
        folder.write_text(RESULT, result.to_json())
        folder.write_text("gain_cost.csv", report.to_csv(result))
        folder.write_text("lens.json", json.dumps(report.lens_data(lens), allow_nan=False) + "\n")
        for file, draw in zip(PICTURES, draws, strict=True):
            picture = try_draw(file, _png, draw)
            if picture is not None:
                folder.write(file, [picture])
        try:
            folder.write_text(REPORT, report.render(result, lens, maps, notes, on_error=note_missing))
        except (ValueError, OSError):  # errors that the user can act on
            raise
        except Exception as error:
            note_missing(REPORT, error)


def _png(draw: Callable) -> bytes | None:
    """Returns the drawn picture, or None if there is nothing to draw."""
    figure = draw()
    return None if figure is None else png(figure)


def beginning(text: str, size: int) -> str:
    """Returns at most `size` bytes of a text, cut at a line end if possible."""
    raw = text.encode()
    if len(raw) <= size:
        return text
    part = raw[:size].decode(errors="ignore")
    return part[: part.rfind("\n") + 1] or part


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "", style="progress.data.speed")


@contextlib.contextmanager
def token_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (tokens done, total tokens) that updates a bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    title = TextColumn("{task.description}", markup=False)
    columns = (title, BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(printable(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
