# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Stage 4: how long until the first token? Times prompts of 2K to 128K tokens at the released size.

`end` computes only the last logits, as `generate()` does: later loops run over the end of the prompt.
`all` computes the states of all positions in every loop, as training and scoring do.
"""

import torch
from transformers import DynamicCache

from ...compat_plt import CACHE_NAME
from .decode import LLAMA
from .models import Hardware, full_size_models
from .stage import Stage, peak_gb, seconds_each


@torch.no_grad()
def first_token(stage: Stage, model, length: int, loops: int | str, positions: str) -> dict:
    """Times a forward pass over a prompt that fills a cache."""
    prompt = torch.randint(model.config.vocab_size, (1, length), device=stage.device)
    arguments = {} if loops == LLAMA else {"num_loops": loops}
    whole = positions == "all"

    def step():
        cache = DynamicCache(config=model.config)
        if whole:  # without the head, whose logits would take more memory than the model
            return model.model(prompt, use_cache=True, **{CACHE_NAME: cache}, **arguments).last_hidden_state
        return model(prompt, use_cache=True, logits_to_keep=1, **{CACHE_NAME: cache}, **arguments).logits

    count = 1 if length > 20_000 else 3
    seconds = seconds_each(step, stage.device, count, warm_up=1)
    flops = prompt_flops(model.config, length, 1 if loops == LLAMA or not whole else loops)
    return {
        "loops": loops,
        "length": length,
        "positions": positions,
        "ms": round(1e3 * seconds, 2),
        "tflops_per_second": round(flops / seconds / 1e12, 1),
        "peak_gb": peak_gb(stage.device),
    }


def prompt_flops(config, length: int, num_loops: int) -> int:
    """Returns the operations of the layers over a prompt: products with weights, and causal attention in loop 0."""
    attention = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    weights = config.hidden_size * (2 * attention + 2 * keys + 3 * config.intermediate_size)
    return num_loops * config.num_hidden_layers * (2 * length * weights + 2 * attention * length**2)


def run(stage: Stage) -> None:
    plt, llama = full_size_models(stage)
    stage.result["hardware"] = vars(Hardware.measure(stage))
    lengths = (100, 200) if stage.smoke else (8192, 32768, 2048, 131072)
    for length in lengths:
        for loops, positions in ((1, "end"), (2, "end"), (LLAMA, "end"), (4, "end"), (2, "all"), (4, "all")):
            if length > 100_000 and (positions == "all" or loops == 4):
                continue
            model = llama if loops == LLAMA else plt
            rounds = loops if positions == "all" else 1
            seconds = 1 + rounds * length / 131072 * (20 if length > 100_000 else 12)
            name = f"R={loops} length={length} positions={positions}"
            stage.run(name, first_token, stage, model, length, loops, positions, seconds=seconds)
