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
"""Options that several commands have, and the arguments of `generate()` that follow from them."""

from enum import Enum
from typing import Annotated

import typer

from ..configuration_plt import MAX_LOOPS
from ..conversion.convert import FLOATS


Dtype = Enum("Dtype", {name: name for name in FLOATS})

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
    options = {"max_new_tokens": max_new_tokens}
    if greedy and temperature is not None:
        raise typer.BadParameter("--greedy and --temperature exclude each other.")
    if greedy:
        options["do_sample"] = False
    elif temperature is not None:
        options |= {"do_sample": True, "temperature": temperature}
    if model.generation_config.pad_token_id is None:
        options["pad_token_id"] = 0
    return options
