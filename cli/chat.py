# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`chat`: a conversation with the model, turn by turn."""

import re
import time
from typing import Annotated

import typer
from rich.console import Console
from transformers import set_seed

from ..conversion.loading import load_model
from ..utils.terminal import printable
from .common import print_result, require_text
from .conversation import Conversation
from .options import (
    Device,
    DtypeOption,
    Greedy,
    Json,
    MaxNewTokens,
    Model,
    NumLoops,
    Revision,
    SamplingSeed,
    Temperature,
    sampling,
)
from .streamer import TextPrinter, print_text


HELP = (
    "/loops N   change the number of loops\n/system TEXT   start over with this system prompt\n"
    "/clear   start over\n/exit   leave"
)


def chat(
    path: Model,
    message: Annotated[str | None, typer.Option(help="Send this message, print the reply and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt. [default: the template's]")] = None,
    max_new_tokens: MaxNewTokens = 1024,
    num_loops: NumLoops = None,
    greedy: Greedy = False,
    temperature: Temperature = None,
    seed: SamplingSeed = 0,
    dtype: DtypeOption = None,
    device: Device = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Chat with the model. Each turn processes only the new tokens; /help lists the commands."""
    if as_json and message is None:
        raise typer.BadParameter("--json needs --message.")
    require_text(message, "--message")
    require_text(system, "--system")
    model, tokenizer = load_model(path, revision, dtype and dtype.value, device)
    options = sampling(model, max_new_tokens, greedy, temperature)
    conversation = Conversation(model, tokenizer, system, num_loops, **options)
    set_seed(seed)
    if message is not None:
        reply = conversation.ask(message, None if as_json else TextPrinter(tokenizer, print_text))
        if as_json:
            print_result({"loops": conversation.num_loops, "message": reply}, True, "")
        return
    console = Console(stderr=True, highlight=False)
    console.print(f"{model.num_parameters():,} parameters, {conversation.num_loops} loops. /help, /exit", style="dim")
    while True:
        try:
            line = input("> ").strip()
            line.encode()  # under some locales, input that is not UTF-8 arrives as lone surrogates
        except (EOFError, KeyboardInterrupt):
            return
        except UnicodeError:
            console.print("That is not valid UTF-8 text.", style="dim")
            continue
        if line == "/exit":
            return
        if line:
            run_line(conversation, line, console)


def run_line(conversation: Conversation, line: str, console: Console) -> None:
    """Runs one line: a command or a message to the model. An error ends the turn, not the chat."""
    command, _, rest = line.partition(" ")
    if command == "/loops" and re.fullmatch(r"[1-9]\d{0,2}", rest.strip()):
        conversation.set_num_loops(int(rest))
        console.print(f"{conversation.num_loops} loops from now on", style="dim")
    elif command in ("/clear", "/system"):
        conversation.clear(rest.strip() or None)
    elif command.startswith("/"):
        console.print(HELP, style="dim")
    else:
        read, start = conversation.cached_tokens, time.perf_counter()
        try:
            conversation.ask(line, TextPrinter(conversation.tokenizer, print_text))
        except KeyboardInterrupt:
            console.print("\ninterrupted; this turn was discarded", style="dim")
            return
        except Exception as error:  # for example, a template that rejects a role
            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            console.print(f"{printable(f'{name}{error}')}; this turn was discarded", style="dim", markup=False)
            return
        seconds = time.perf_counter() - start
        news = conversation.cached_tokens - read
        console.print(f"{conversation.num_loops} loops, {news} new tokens in {seconds:.1f} s", style="dim")
