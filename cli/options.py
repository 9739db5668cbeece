# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have, and the arguments of `generate()` that follow from them."""

from enum import Enum
from typing import Annotated, Any

import typer

from ..configuration_plt import MAX_LOOPS
from ..conversion.convert import FLOATS


Dtype = Enum("Dtype", {name: name for name in FLOATS})  # type: ignore[misc]

Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
NumLoops = Annotated[int | None, typer.Option(min=1, max=MAX_LOOPS, help="Loops per token. [default: the model's]")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, of a repository on the Hub.")]
Model = Annotated[str, typer.Argument(metavar="PATH", help="A model folder, or the id of a repository on the Hub.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Take the likeliest token, whatever the model recommends.")]
Temperature = Annotated[float | None, typer.Option(min=0.01, help="Sample at this temperature.")]
SamplingSeed = Annotated[int, typer.Option(help="Of the random numbers, for sampling.")]
Device = Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="[default: as stored]")]


def sampling(model, max_new_tokens: int, greedy: bool, temperature: float | None) -> dict:
    """Arguments of `generate()`: the model's own generation configuration, but for what is asked for."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if greedy and temperature is not None:
        raise typer.BadParameter("--greedy and --temperature exclude each other.")
    if greedy:
        options["do_sample"] = False
    elif temperature is not None:
        options |= {"do_sample": True, "temperature": temperature}
    if model.generation_config.pad_token_id is None:
        options["pad_token_id"] = 0
    return options
