# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Stage 5: what does a training step cost? Times forward, backward and an SGD update at the released size, in bf16."""

import torch

from .decode import LLAMA
from .models import full_size_models
from .stage import Stage, peak_gb, seconds_each


def training_step(stage: Stage, model, length: int, loops: int | str, checkpointing: bool) -> dict:
    """Times a step over one sequence. The peak memory includes weights, gradients and activations."""
    tokens = torch.randint(model.config.vocab_size, (1, length), device=stage.device)
    arguments = {} if loops == LLAMA else {"num_loops": loops}
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, foreach=False)

    def step():
        model(tokens, labels=tokens, use_cache=False, **arguments).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    try:
        seconds = seconds_each(step, stage.device, 2, warm_up=1)
    finally:
        model.zero_grad(set_to_none=True)
    return {
        "loops": loops,
        "length": length,
        "checkpointing": checkpointing,
        "ms": round(1e3 * seconds, 1),
        "tokens_per_second": round(length / seconds, 1),
        "peak_gb": peak_gb(stage.device),
    }


def run(stage: Stage) -> None:
    plt, llama = full_size_models(stage)
    length = 64 if stage.smoke else 4096
    for checkpointing in (True, False):
        for loops in (1, 2, LLAMA):
            model = (llama if loops == LLAMA else plt).train()
            name = f"R={loops} checkpointing={'on' if checkpointing else 'off'}"
            stage.run(name, training_step, stage, model, length, loops, checkpointing, seconds=8)
