# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`sweep`: compares loss, time, memory and diagnostics of each number of loops on one page."""

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..utils.figures import png, try_draw
from ..utils.terminal import printable
from .common import chosen_length, print_result
from .data import Data, read_texts, sample
from .diagnose import MaxLength, MaxTokens, Seed, token_bar
from .options import MAX_LOOPS, Device, DtypeOption, Json, Revision
from .output_folder import check_folder, report_folder, require_modules


if TYPE_CHECKING:
    from ..diagnostics.sweep import Sweep, Timing

RESULT, PAGE, PICTURE = "sweep.json", "sweep.md", "sweep.png"
FILES = frozenset({RESULT, PAGE, PICTURE, "sweep.csv"})
PROMPT, WARM_UP = 128, 3  # tokens before the timed ones


def sweep(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="One checkpoint to run with 1 to N loops, or one per number of loops."),
    ],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder, or an earlier sweep to replace.")],
    max_loops: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_LOOPS, help="N, for one checkpoint only; several use their own.", show_default="4"),
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens in the cache.", show_default="the models' maximum")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Decode steps to time per row.")] = 40,
    max_length: MaxLength = None,
    max_tokens: MaxTokens = 100_000,
    seed: Seed = 0,
    dtype: DtypeOption = None,
    device: Device = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Compare loss, tokens per second, cache size and diagnostics between numbers of loops: one table, one picture."""
    from ..conversion.loading import load_model
    from ..diagnostics import encode_documents, measure
    from ..diagnostics import sweep as sweeps
    from ..diagnostics.trace import MAX_LENGTH, check_model
    from ..utils.timing import environment

    require_modules("matplotlib", "greenlet")
    if len(paths) > 1 and max_loops is not None:
        raise typer.BadParameter("--max-loops needs a single checkpoint; several use their own number of loops.")
    check_folder(out, FILES, RESULT)
    texts = read_texts(data)
    loaded = [load_model(path, revision, dtype and dtype.value, device) for path in paths]
    models = [model for model, _ in loaded]
    maximum = min(model.config.max_position_embeddings for model in models)
    length, room = chosen_length(length, maximum), maximum - WARM_UP - 1
    if new_tokens >= room:
        raise ValueError(f"--new-tokens must be at most {room - 1} for these models, got {new_tokens}.")
    if max_length is None:  # the same for all models: else losses could not be compared
        max_length = min(MAX_LENGTH, maximum)
    chosen, note = sample(loaded[0][1], texts, max_tokens, seed)
    order = []
    for model in models:
        check_model(model)
        loops = (max_loops or 4) if len(paths) == 1 else model.config.plt_num_loops
        order += [(loop, model) for loop in range(1 if len(paths) == 1 else loops, loops + 1)]
    order.sort(key=lambda entry: entry[0])
    # Quick steps first: if one fails, no measurement is lost.
    timings = time_rows([(model, loop) for loop, model in order], length, new_tokens, min(PROMPT, room - new_tokens))
    results = {}
    for path, (model, tokenizer) in zip(paths, loaded, strict=True):
        documents = encode_documents(tokenizer, chosen)
        loops = max(loop for loop, other in order if other is model)
        with token_bar(f"Measuring {path}") as progress:
            results[id(model)] = measure(model, documents, loops, max_length, seed, progress=progress)
        results[id(model)].model["name"] = path
    dtype_name = results[id(order[0][1])].model["dtype"]
    about = environment(str(models[0].device)) | {"dtype": dtype_name, "new tokens": new_tokens}
    found = sweeps.sweep([(results[id(model)], loop) for loop, model in order], timings, length, about)
    write(out, found, [note] if note else [])
    titles, *lines = sweeps.table(found)
    table = Table(*titles, box=None)
    for line in lines:
        table.add_row(printable(line[0]), *(printable(cell).replace(" (", "\n(") for cell in line[1:]))
    if as_json:
        print_result(found.to_dict(), True, "")
    else:
        Console(highlight=False, markup=False, emoji=False).print(table)
        print_result({}, False, "\n" + "\n".join([*sweeps.sentences(found), f"{out / PAGE}"]))


def time_rows(rows: list[tuple], length: int, new_tokens: int, prompt: int) -> "list[Timing]":
    """
    Times rows of (model, loops), which take turns token by token. Ratios are over the first row with one loop or, if
    there is none, over the first model run with one loop.
    """
    import torch

    from ..diagnostics.sweep import Timing
    from ..utils.interleaved import decode_step_times

    runs: dict[int | str, tuple] = {
        index: (
            model,
            {"num_loops": loops, "min_new_tokens": WARM_UP + 1 + new_tokens},
        )  # end tokens do not stop it
        for index, (model, loops) in enumerate(rows)
    }
    base: int | str | None = next((index for index, (_, loops) in enumerate(rows) if loops == 1), None)
    if base is None:
        base, runs["base"] = "base", (rows[0][0], {**runs[0][1], "num_loops": 1})
    vocabulary = min(model.config.vocab_size for model, _ in rows)
    ids = torch.randint(vocabulary, (1, prompt), generator=torch.Generator().manual_seed(0))
    times = decode_step_times(runs, ids.to(rows[0][0].device), new_tokens, WARM_UP)
    return [
        Timing(
            seconds_per_token=statistics.median(times[index]),
            time_ratio=statistics.median(one / other for one, other in zip(times[index], times[base], strict=True)),
            kv_bytes_per_token=model.kv_bytes_per_token(loops),
            kv_bytes_per_sequence=model.kv_bytes_per_sequence(length, loops),
        )
        for index, (model, loops) in enumerate(rows)
    ]


def write(out: Path, found: "Sweep", notes: list[str]) -> None:
    """
    Writes all files of a sweep or none. If the picture fails, it is skipped with a note on standard error. Raises
    ValueError if the folder holds other files or the disk is full.
    """
    from ..diagnostics import plots  # matplotlib takes a second to import
    from ..diagnostics import sweep as sweeps

    picture = try_draw(PICTURE, lambda: png(plots.plot_sweep(found)))
    with report_folder(out, FILES, RESULT) as folder:
        folder.write_text(RESULT, json.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        folder.write_text("sweep.csv", sweeps.to_csv(found))
        folder.write_text(PAGE, sweeps.to_markdown(found, PICTURE if picture else None, notes))
        if picture:
            folder.write(PICTURE, [picture])
