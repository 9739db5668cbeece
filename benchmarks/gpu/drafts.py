# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Stage 3: what do drafts bring at the released size? Times `generate()` with the default cache, in milliseconds per
token: plain, with prompt lookup in the library's way, and with prompt lookup on the staircase.
"""

import time

import torch
from transformers import AutoTokenizer, StoppingCriteria

from ...drafting_plt import row_cost
from ..edit_task import TOKENIZER, edit_task, share_held, ways_to_decode, write
from .models import full_size_models
from .stage import Stage, peak_gb, synchronize


DRAFTS = 10  # tokens


class Clock(StoppingCriteria):
    """Reads the time after the first tokens, which the prompt's pass gives; never stops the generation."""

    started = None

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, input_ids, scores, **kwargs):
        if self.started is None:
            synchronize(self.device)
            self.started, self.length = time.perf_counter(), input_ids.shape[1]
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def written(
    stage: Stage, model, arguments: dict, prompt: torch.Tensor, text: torch.Tensor, loops: int, held: float
) -> dict:
    """Times one text (T,) after `prompt` (1, P). A share `held` of its drafts is right."""
    clock = Clock(stage.device)
    output = write(model, prompt, text, clock, **arguments)
    synchronize(stage.device)
    seconds = (time.perf_counter() - clock.started) / (output.shape[1] - clock.length)
    if not torch.equal(output[0, prompt.shape[1] :], text):
        raise ValueError("another text was written")
    cost = round(row_cost(model, loops), 4)
    return {
        "loops": loops,
        "ms": round(1e3 * seconds, 3),
        "held": held,
        "row_cost": cost,
        "peak_gb": peak_gb(stage.device),
    }


def run(stage: Stage) -> None:
    plt, _ = full_size_models(stage)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for loops in (2, 1, 4):
        for name, (prompt, text) in edit_task(tokenizer, plt.config.vocab_size, 30 if stage.smoke else 200).items():
            held = round(share_held(prompt, text, DRAFTS), 3)  # on the CPU: one token at a time
            prompt, text = prompt.to(stage.device), text.to(stage.device)
            for way, (model, arguments) in ways_to_decode(plt, loops, DRAFTS).items():
                case = f"{name}, {way} R={loops}"
                stage.run(case, written, stage, model, arguments, prompt, text, loops, held, seconds=15)
