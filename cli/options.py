# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Options shared by several commands, and the `generate()` arguments they set."""

from enum import Enum
from typing import Annotated, Any

import typer

from ..configuration_plt import MAX_LOOPS
from ..conversion.convert import FLOATS


Dtype = Enum("Dtype", {name: name for name in FLOATS})  # type: ignore[misc]

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
NumLoops = Annotated[int | None, typer.Option(min=1, max=MAX_LOOPS, help="Loops per token. [default: the model's]")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
Model = Annotated[str, typer.Argument(metavar="PATH", help="A model folder or a Hub repository id.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Always take the likeliest token, overriding the model's own settings.")
]
Temperature = Annotated[float | None, typer.Option(min=0.01, help="Sample at this temperature.")]
SamplingSeed = Annotated[int, typer.Option(help="Random seed for sampling.")]
Device = Annotated[str | None, typer.Option(help="[default: cuda if available, else cpu]")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="[default: as stored]")]


def sampling(model, max_new_tokens: int, greedy: bool, temperature: float | None) -> dict:
    """Returns arguments of `generate()` that override the model's generation configuration."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if greedy and temperature is not None:
        raise typer.BadParameter("--greedy and --temperature cannot be combined.")
    if greedy:
        options["do_sample"] = False
    elif temperature is not None:
        options |= {"do_sample": True, "temperature": temperature}
    if model.generation_config.pad_token_id is None:
        options["pad_token_id"] = 0
    return options
