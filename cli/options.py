# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Options shared by several commands, and the `generate()` arguments they set."""

from enum import Enum
from typing import Annotated, Any

import typer

from ..utils.dtypes import FLOAT_NAMES


MAX_LOOPS = 1000  # as in configuration_plt.py, which imports Transformers
Dtype = Enum("Dtype", {name: name for name in FLOAT_NAMES})  # type: ignore[misc]

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
NumLoops = Annotated[
    int | None, typer.Option(min=1, max=MAX_LOOPS, help="Loops per token.", show_default="the model's")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
Model = Annotated[str, typer.Argument(metavar="PATH", help="A model folder or a Hub repository id.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Always take the likeliest token, overriding the model's own settings.")
]
Temperature = Annotated[
    float | None, typer.Option(min=0.01, help="Sample at this temperature.", show_default="the model's")
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        max=1,
        help="Sample from the likeliest tokens that together have this probability.",
        show_default="the model's",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(min=1, help="Sample from this many of the likeliest tokens.", show_default="the model's"),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End the reply after this text. Can be given several times."),
]
SamplingSeed = Annotated[int, typer.Option(help="Random seed for sampling.")]
Device = Annotated[
    str | None, typer.Option(help="Device that runs the model.", show_default="cuda if available, else cpu")
]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Type of the weights.", show_default="as stored")]


def sampling(
    model,
    max_new_tokens: int,
    greedy: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    stop: list[str] | None = None,
) -> dict:
    """
    Returns arguments of `generate()` that override the model's generation configuration. `generate()` also needs the
    tokenizer, for stop texts.
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given = {name: value for name, value in given.items() if value is not None}
    if greedy and given:
        (name, *_) = given
        raise typer.BadParameter(f"--greedy and --{name.replace('_', '-')} cannot be combined.")
    if greedy:
        options["do_sample"] = False
    elif given:
        options |= {"do_sample": True, **given}
    if stop:
        options["stop_strings"] = stop
    if model.generation_config.pad_token_id is None:
        options["pad_token_id"] = 0
    return options
