# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What do drafts bring? Times `generate()` per token: plain, with prompt lookup in the library's way, which runs all loops
of a draft one after the other, and with prompt lookup on the staircase.

    python -m iquest_plt.benchmarks.staircase --hidden 2048
    python -m iquest_plt.benchmarks.staircase --model PATH

`edit_task.py` describes the two texts. A logits processor makes the model write them, because its weights may be
random. The ways take turns, every few tokens.
"""

import argparse
import functools
import time
from pathlib import Path

import greenlet
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria

from ..drafting_plt import row_cost
from .common import add_common_arguments, add_shape_arguments, build, parse, plt_config, report
from .edit_task import TOKENIZER, edit_task, share_held, ways_to_decode, write


COLUMNS = [
    "text",
    "loops R",
    "drafts that hold",
    "way",
    "weights read per token",
    "ms per token",
    "times as fast as plain",
]
STRIDE = 16  # tokens between turns


class TakesTurns(StoppingCriteria):
    """Switches back to the parent greenlet when the text has `goal` tokens; never stops the generation."""

    goal = 0

    def __call__(self, input_ids, scores, **kwargs):
        while input_ids.shape[1] >= self.goal:
            greenlet.getcurrent().parent.switch()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def seconds_of_ways(ways: dict, prompt: torch.Tensor, text: torch.Tensor) -> dict[str, dict]:
    """
    Writes `text` (T,) after `prompt` (1, P) once for each way. Returns the seconds of each and how often it read the
    weights, without the prompt and the first token.
    """
    runs, reads, seconds = {}, dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for name, (model, arguments) in ways.items():
        turns = TakesTurns()
        runs[name] = turns, greenlet.greenlet(functools.partial(write, model, prompt, text, turns, **arguments))

    def count(module, args, kwargs):
        in_sequence = name == "library" and kwargs["input_ids"].shape[1] > 1
        reads[name] += module.config.plt_num_loops if in_sequence else 1

    with torch.no_grad(), model.model.register_forward_pre_hook(count, with_kwargs=True):
        for goal in [1, *range(1 + STRIDE, len(text) + 1, STRIDE)]:
            for name, (turns, run) in runs.items():
                turns.goal = prompt.shape[1] + goal
                start = time.perf_counter()
                run.switch()
                if goal > 1:
                    seconds[name] += time.perf_counter() - start
                else:
                    reads[name] = 0
        for _, run in runs.values():
            run.throw()
    return {name: {"seconds": seconds[name], "reads": reads[name], "tokens": goal - 1} for name in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=2048)
    add_common_arguments(parser, loops=[1, 2])
    parser.add_argument("--model", help="folder of a PLT to load instead of random weights")
    parser.add_argument("--tokens", type=int, default=400, help="the longest text to write")
    parser.add_argument("--drafts", type=int, default=10, help="`prompt_lookup_num_tokens`")
    arguments = parse(parser)
    if arguments.model:
        dtype, kernel = getattr(torch, arguments.dtype), arguments.attention
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, attn_implementation=kernel)
        model = model.eval().to(arguments.device)
        arguments.hidden, arguments.layers = model.config.hidden_size, model.config.num_hidden_layers
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        arguments.model = Path(arguments.model).name  # for the report
    else:
        model = build(plt_config(arguments.hidden, arguments.layers), arguments)
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    results = []
    for loops in arguments.loops:
        cost = row_cost(model, loops)
        for name, (prompt, text) in edit_task(tokenizer, model.config.vocab_size, arguments.tokens).items():
            prompt, text = prompt.to(arguments.device), text.to(arguments.device)
            measured = seconds_of_ways(ways_to_decode(model, loops, arguments.drafts), prompt, text)
            held = round(share_held(prompt, text, arguments.drafts), 3)
            for way, run in measured.items():
                results.append(
                    {
                        "text": name,
                        "loops": loops,
                        "drafts_held": held,
                        "way": way,
                        "reads_per_token": round(run["reads"] / run["tokens"], 3),
                        "ms_per_token": round(1e3 * run["seconds"] / run["tokens"], 2),
                        "times_plain": round(measured["plain"]["seconds"] / run["seconds"], 2),
                        "row_cost": round(cost, 4),
                    }
                )
                print(results[-1], flush=True)
    rows = [list(result.values())[: len(COLUMNS)] for result in results]
    report("What do drafts bring?", "staircase", arguments, COLUMNS, rows, {"results": results})


if __name__ == "__main__":
    main()
