# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`chat`: a conversation with the model, turn by turn."""

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..utils.terminal import printable
from .common import print_result, require_stop, require_text
from .options import (
    MAX_LOOPS,
    Device,
    DtypeOption,
    Greedy,
    Json,
    MaxNewTokens,
    Model,
    NumLoops,
    Revision,
    SamplingSeed,
    Stop,
    Temperature,
    TopK,
    TopP,
    sampling,
)


if TYPE_CHECKING:
    from .conversation import Conversation

HELP = (
    "/loops N   change the number of loops\n/system TEXT   start over with this system prompt\n"
    "/clear   start over\n/help   show this list\n/exit   leave"
)


def chat(
    path: Model,
    message: Annotated[str | None, typer.Option(help="Send this message, print the reply and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.", show_default="the template's")] = None,
    max_new_tokens: MaxNewTokens = 1024,
    num_loops: NumLoops = None,
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    stop: Stop = None,
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
    require_stop(stop)
    from transformers import set_seed

    from ..conversion.loading import load_model
    from .conversation import Conversation
    from .streamer import TextPrinter, print_text

    model, tokenizer = load_model(path, revision, dtype and dtype.value, device)
    options = sampling(model, max_new_tokens, greedy, temperature, top_p, top_k, stop)
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


def run_line(conversation: "Conversation", line: str, console: Console) -> None:
    """Runs one line: a command or a message to the model. An error ends the turn, not the chat."""
    if line.startswith("/"):
        console.print(run_command(conversation, line), style="dim", markup=False)
    else:
        run_message(conversation, line, console)


def run_command(conversation: "Conversation", line: str) -> str:
    """Runs a command and returns what to tell the user."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/loops":
        if not (re.fullmatch(r"\d{1,4}", rest) and 1 <= int(rest) <= MAX_LOOPS):
            return f"/loops needs a number from 1 to {MAX_LOOPS}, for example /loops 2"
        conversation.set_num_loops(int(rest))
        return f"{conversation.num_loops} loops from now on"
    if command == "/system" and not rest:
        return "/system needs a text, for example /system Be brief."
    if command in ("/clear", "/system"):
        conversation.clear(rest or None)
        return "a new chat with this system prompt" if rest else "a new chat"
    return HELP if command == "/help" else f"There is no command {printable(command)}. The commands are:\n{HELP}"


def run_message(conversation: "Conversation", line: str, console: Console) -> None:
    """Sends a message to the model and prints the reply."""
    from .streamer import TextPrinter, print_text

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
