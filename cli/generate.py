# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`generate`: continues a text or fills a gap in it."""

import sys
import time
from typing import Annotated

import typer

from .common import print_result, require_stop, require_text
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
    Stop,
    Temperature,
    TopK,
    TopP,
    sampling,
)


def generate(
    path: Model,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.", show_default="standard input")] = None,
    suffix: Annotated[str | None, typer.Option(help="Text after the gap, to fill in the middle.")] = None,
    max_new_tokens: MaxNewTokens = 256,
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
    """Continue a text or fill a gap in it."""
    require_text(prompt, "--prompt")
    require_text(suffix, "--suffix")
    require_stop(stop)
    import torch
    from transformers import set_seed

    from ..conversion.loading import load_model
    from ..tokenization.fim import fim_inputs
    from .length import bounded, note_if_cut
    from .streamer import TextPrinter, print_text

    model, tokenizer = load_model(path, revision, dtype and dtype.value, device)
    prompt = read_standard_input() if prompt is None else prompt
    if suffix is None:
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        inputs = fim_inputs(tokenizer, prompt, suffix)
    input_ids = inputs.input_ids.to(model.device)
    if not input_ids.shape[1]:
        raise ValueError("The prompt is empty. Pass some text with --prompt or on standard input.")
    options = sampling(model, max_new_tokens, greedy, temperature, top_p, top_k, stop)
    options = bounded(model, input_ids.shape[1], options)
    completion = []
    streamer = TextPrinter(tokenizer, completion.append if as_json else print_text)
    set_seed(seed)
    start = time.perf_counter()
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        num_loops=num_loops,
        streamer=streamer,
        tokenizer=tokenizer,
        **options,
    )
    seconds = time.perf_counter() - start
    note_if_cut(model, output[0])
    if as_json:
        document = {
            "prompt": prompt,
            "completion": "".join(completion)[:-1],
            "loops": model.config.check_num_loops(num_loops),
            "prompt_tokens": input_ids.shape[1],
            "new_tokens": output.shape[1] - input_ids.shape[1],
            "seconds": round(seconds, 3),
        }
        print_result(document, True, "")


def read_standard_input() -> str:
    """Reads standard input to its end. Raises ValueError if it is not UTF-8 text."""
    if sys.stdin.isatty():
        print("Type the prompt, then press Ctrl-D on a new line. (Or pass it with --prompt.)", file=sys.stderr)
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError:
        raise ValueError("Standard input is not UTF-8 text. Convert it to UTF-8.") from None
    require_text(text, "Standard input")
    return text
