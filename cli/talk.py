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
"""`generate` and `chat`: commands that run the model."""

import re
import sys
import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import set_seed

from ..conversion import layout
from ..conversion.convert import FLOATS
from ..conversion.download import FILES, fetch
from ..conversion.tokenizer import load_tokenizer
from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..tokenization.fim import fim_inputs
from .common import Json, NumLoops, Revision, answer, require_text, visible
from .conversation import Conversation
from .streamer import TextPrinter, print_text
from .weights import Dtype


HELP = (
    "/loops N   another number of loops\n/system TEXT   begin anew with this system prompt\n/clear   begin anew\n/exit"
)

Model = Annotated[str, typer.Argument(metavar="PATH", help="A model folder, or the id of a repository on the Hub.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Take the likeliest token, whatever the model recommends.")]
Temperature = Annotated[float | None, typer.Option(min=0.01, help="Sample at this temperature.")]
Seed = Annotated[int, typer.Option(help="Of the random numbers, for sampling.")]
Device = Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")]
OfDtype = Annotated[Dtype | None, typer.Option(help="[default: as stored]")]


def generate(
    path: Model,
    prompt: Annotated[str | None, typer.Option(help="Text to continue. [default: standard input]")] = None,
    suffix: Annotated[str | None, typer.Option(help="Text behind the gap, to fill in the middle.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    num_loops: NumLoops = None,
    greedy: Greedy = False,
    temperature: Temperature = None,
    seed: Seed = 0,
    dtype: OfDtype = None,
    device: Device = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Continue a text, or fill a gap in it."""
    require_text(prompt, "--prompt")
    require_text(suffix, "--suffix")
    model, tokenizer = load(path, revision, dtype, device)
    prompt = read_standard_input() if prompt is None else prompt
    if suffix is None:
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        inputs = fim_inputs(tokenizer, prompt, suffix)
    input_ids = inputs.input_ids.to(model.device)
    if not input_ids.shape[1]:
        raise ValueError("The prompt is empty.")
    completion = []
    streamer = TextPrinter(tokenizer, completion.append if as_json else print_text)
    set_seed(seed)
    start = time.perf_counter()
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        num_loops=num_loops,
        streamer=streamer,
        **sampling(model, max_new_tokens, greedy, temperature),
    )
    seconds = time.perf_counter() - start
    if as_json:
        document = {
            "prompt": prompt,
            "completion": "".join(completion)[:-1],
            "loops": model.config.check_num_loops(num_loops),
            "prompt_tokens": input_ids.shape[1],
            "new_tokens": output.shape[1] - input_ids.shape[1],
            "seconds": round(seconds, 3),
        }
        answer(document, True, "")


def chat(
    path: Model,
    message: Annotated[str | None, typer.Option(help="Ask this, print the reply and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt. [default: the template's]")] = None,
    max_new_tokens: MaxNewTokens = 1024,
    num_loops: NumLoops = None,
    greedy: Greedy = False,
    temperature: Temperature = None,
    seed: Seed = 0,
    dtype: OfDtype = None,
    device: Device = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Talk with the model. Each turn reads only what is new; /help lists what can be typed besides messages."""
    if as_json and message is None:
        raise typer.BadParameter("--json needs --message.")
    require_text(message, "--message")
    require_text(system, "--system")
    model, tokenizer = load(path, revision, dtype, device)
    options = sampling(model, max_new_tokens, greedy, temperature)
    conversation = Conversation(model, tokenizer, system, num_loops, **options)
    set_seed(seed)
    if message is not None:
        reply = conversation.ask(message, None if as_json else TextPrinter(tokenizer, print_text))
        if as_json:
            answer({"loops": conversation.num_loops, "message": reply}, True, "")
        return
    console = Console(stderr=True, highlight=False)
    console.print(f"{model.num_parameters():,} parameters, {conversation.num_loops} loops. /help, /exit", style="dim")
    while True:
        try:
            line = input("> ").strip()
            line.encode()  # under some locales, bytes that are no UTF-8 come as halves of surrogate pairs
        except (EOFError, KeyboardInterrupt):
            return
        except UnicodeError:
            console.print("That is no UTF-8 text.", style="dim")
            continue
        if line == "/exit":
            return
        if line:
            turn(conversation, line, console)


def turn(conversation: Conversation, line: str, console: Console) -> None:
    """Does what a line asks for: a command, or a message to the model. An error ends the turn, not the chat."""
    command, _, rest = line.partition(" ")
    if command == "/loops" and re.fullmatch(r"[1-9]\d{0,2}", rest.strip()):
        conversation.set_num_loops(int(rest))
        console.print(f"{conversation.num_loops} loops from here on", style="dim")
    elif command in ("/clear", "/system"):
        conversation.clear(rest.strip() or None)
    elif command.startswith("/"):
        console.print(HELP, style="dim")
    else:
        read, start = conversation.cached_tokens, time.perf_counter()
        try:
            conversation.ask(line, TextPrinter(conversation.tokenizer, print_text))
        except KeyboardInterrupt:
            console.print("\ninterrupted; this turn is forgotten", style="dim")
            return
        except Exception as error:  # such as a template that does not know a role
            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            console.print(f"{visible(f'{name}{error}')}; this turn is forgotten", style="dim", markup=False)
            return
        seconds = time.perf_counter() - start
        news = conversation.cached_tokens - read
        console.print(f"{conversation.num_loops} loops, {news} tokens more in {seconds:.1f} s", style="dim")


def read_standard_input() -> str:
    """All of it. Raises ValueError if it is no UTF-8 text."""
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError:
        raise ValueError("Standard input is no UTF-8 text: convert it.") from None
    require_text(text, "Standard input")
    return text


def load(path: str, revision: str | None, dtype: Dtype | None, device: str | None):
    """The model in evaluation mode and its tokenizer. Raises ValueError if there are none."""
    small = [name for name in FILES if "safetensors" not in name]
    folder, _ = fetch(path, revision, files=small, check_hashes=False)  # `convert` checks; at every start it takes long
    layout.read_plt_config(folder)
    layout.check_json(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"{path} has no tokenizer.json: see `iquest-plt convert`, which makes one of tokenizer.model.")
    folder, _ = fetch(path, revision, check_hashes=False)
    kind = FLOATS[dtype.value] if dtype else "auto"
    with layout.refusals("The weights cannot be loaded"):
        model, found = IQuestPLTCoderForCausalLM.from_pretrained(folder, dtype=kind, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            raise ValueError(f"The weights do not fit ({what}: {next(iter(found[what]))}): see `iquest-plt verify`.")
    try:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ValueError(f"The model cannot be moved to {device}: {error}") from error
    return model.eval(), tokenizer


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
