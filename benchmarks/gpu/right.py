# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Stage 1: are the results right on this device? Compares logits with the float64 oracle in `tests/reference.py`, and the
tokens of all ways to generate. Errors are relative to the oracle's largest logit.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from ... import IQuestPLTCoderConfig, IQuestPLTCoderForCausalLM
from ...compat_plt import CACHE_NAME
from .stage import Stage
from .syncs import synchronisations


FLOAT32_BOUND = 1e-4  # as in the CPU tests
BFLOAT16_BOUND = 0.08  # for four loops with random weights; one loop, which is a Llama, has 0.02
PROMPT, STEPS = 150, 50  # tokens; the prompt is longer than the window of 64


def small_model(stage: Stage, dtype=torch.float32, attention: str = "sdpa", **fields) -> IQuestPLTCoderForCausalLM:
    """Makes a model of three layers with the released window, norms away from 1 and gates away from 0.5."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8}
    shape |= {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512, "max_position_embeddings": 2048}
    plt = {"plt_window_size": [64, 0], "plt_emb_scale": 0.7, "plt_hidden_scale": 0.4, "plt_num_loops": 2}
    plt |= {"plt_gate_use_hidden_states": True, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.05}
    torch.manual_seed(0)
    model = IQuestPLTCoderForCausalLM(IQuestPLTCoderConfig(**shape | plt | fields)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
        elif "plt_gate" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.4)
    model.set_attn_implementation(attention)
    return model.to(stage.device, dtype)


def random_ids(stage: Stage, *shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(512, shape, generator=torch.Generator().manual_seed(seed)).to(stage.device)


def oracle(model, ids: torch.Tensor, num_loops: int) -> np.ndarray:
    """Returns the oracle's logits (time, vocabulary) for one row."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    try:
        from reference import Reference  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    weights = {name: weight.float() for name, weight in model.state_dict().items()}
    return Reference(model.config, weights)(ids.tolist(), num_loops)[0]


def error(logits: torch.Tensor, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest expected value."""
    logits = logits.detach().double().cpu().numpy()
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


@torch.no_grad()
def stepwise(model, ids: torch.Tensor, num_loops: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the logits (batch, time, vocabulary) of a prompt and then single tokens, with a cache."""
    cache = DynamicCache(config=model.config)
    logits = []
    for start, stop in [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, ids.shape[1]))]:
        seen = None if mask is None else mask[:, :stop]
        output = model(
            ids[:, start:stop], attention_mask=seen, num_loops=num_loops, use_cache=True, **{CACHE_NAME: cache}
        )
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def against_oracle(stage: Stage, attention: str, dtype: torch.dtype, loops, **fields) -> dict:
    """Compares whole sequences and cached steps with the oracle, for each number of loops."""
    model = small_model(stage, dtype, attention, **fields)
    ids = random_ids(stage, 1, PROMPT + STEPS)
    bound = FLOAT32_BOUND if dtype == torch.float32 else BFLOAT16_BOUND
    result = {"bound": bound, "errors": {}, "right": True}
    for num_loops in loops:
        expected = oracle(model, ids[0], num_loops)
        with torch.no_grad():
            whole = model(ids, num_loops=num_loops).logits[0]
        cached = stepwise(model, ids, num_loops)[0]
        errors = [error(whole, expected), error(cached, expected)]
        same = (cached.argmax(-1).cpu().numpy() == expected.argmax(-1)).mean()
        result["errors"][num_loops] = [*(float(f"{e:.2g}") for e in errors), round(float(same), 3)]
        result["right"] &= max(errors) <= bound
    result["columns"] = "error of a whole sequence, of cached steps, share of equal greedy tokens"
    return result


def flex_attention(stage: Stage, num_loops: int) -> dict:
    """
    Compares a prompt and cached steps with the oracle. Flex attention is compiled for the prompt's two branches, and
    again for those of a step, so the model has one layer and there are few steps.
    """
    model = small_model(stage, attention="flex_attention", num_hidden_layers=1)
    ids = random_ids(stage, 1, PROMPT + 3)
    logits = stepwise(model, ids, num_loops)[0]
    expected = oracle(model, ids[0], num_loops)
    errors = [error(logits[part], expected[part]) for part in (slice(0, PROMPT), slice(PROMPT, None))]
    return {
        "bound": FLOAT32_BOUND,
        "errors": [float(f"{e:.2g}") for e in errors],
        "right": max(errors) <= FLOAT32_BOUND,
        "columns": "error of a prompt, of cached steps",
    }


def padded_and_packed(stage: Stage, num_loops: int) -> dict:
    """Compares a left-padded row, and two documents in one row, with separate documents."""
    model = small_model(stage)
    ids, short = random_ids(stage, 2, PROMPT + 20), 37
    mask = torch.ones_like(ids)
    mask[1, : ids.shape[1] - short] = 0
    padded = stepwise(model, ids, num_loops, mask)[1, -short:]
    expected = oracle(model, ids[1, -short:], num_loops)
    lengths = (100, ids.shape[1] - 100)
    positions = torch.cat([torch.arange(n, device=stage.device) for n in lengths])[None]
    with torch.no_grad():
        packed = model(ids[:1], position_ids=positions, num_loops=num_loops).logits[0]
    parts = zip(packed.split(lengths), ids[0].split(lengths), strict=True)
    errors = [error(padded, expected), *(error(p, oracle(model, part, num_loops)) for p, part in parts)]
    return {"errors": [float(f"{e:.2g}") for e in errors], "right": max(errors) <= FLOAT32_BOUND}


def compile_config(stage: Stage, mode: str) -> CompileConfig:
    if stage.device.type == "cuda":
        return CompileConfig(mode=mode, fullgraph=True)
    config = CompileConfig(mode=None, backend="aot_eager", fullgraph=True)
    config._compile_all_devices = True
    return config


def generation(stage: Stage, num_loops: int, mode: str | None = None, padded: bool = False, **options) -> dict:
    """Compares the greedy tokens of one way to generate with those generated without a cache."""
    model = small_model(stage)
    ids = random_ids(stage, 2, 40)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :9] = 0
    new_tokens = 40 if stage.smoke else 300
    arguments = {"attention_mask": mask, "num_loops": num_loops, "max_new_tokens": new_tokens, "do_sample": False}
    arguments |= {"pad_token_id": 0}
    if "prompt_lookup_num_tokens" in options:
        ids, arguments["attention_mask"] = ids[:1], mask[:1]
    expected = model.generate(ids, use_cache=False, **arguments)
    torch._dynamo.reset()
    counters.clear()
    if mode is not None:
        options |= {"cache_implementation": "static", "compile_config": compile_config(stage, mode)}
    tokens = model.generate(ids, **arguments, **options)
    result = {"equal": int((tokens == expected)[:, 40:].sum()), "of": expected[:, 40:].numel()}
    result["right"] = result["equal"] == result["of"]
    if mode is not None:
        result["graphs"] = counters["stats"]["unique_graphs"]
        result["graph_breaks"] = sum(counters["graph_break"].values())
        result["cudagraph_skips"] = counters["inductor"]["cudagraph_skips"]
        result["right"] &= result["graphs"] == 1 and not result["graph_breaks"] and not result["cudagraph_skips"]
    return result


@torch.no_grad()
def waits(stage: Stage, num_loops: int, dtype=torch.float32) -> dict:
    """Counts how often the host waits for the device in one decode step, for each kind of mask."""
    model = small_model(stage, dtype)
    result = {"limit": 1, "right": True}
    for name, padding in (("no mask", None), ("mask", 0), ("padded mask", 9)):
        ids = random_ids(stage, 2, 81)
        mask = None if padding is None else torch.ones_like(ids)
        if padding:
            mask[0, :padding] = 0
        cache = DynamicCache(config=model.config)
        arguments = {CACHE_NAME: cache, "num_loops": num_loops, "use_cache": True}
        model(ids[:, :79], attention_mask=None if mask is None else mask[:, :79], **arguments)
        model(ids[:, 79:80], attention_mask=None if mask is None else mask[:, :80], **arguments)
        with synchronisations(stage.device) as places:
            model(ids[:, 80:], attention_mask=mask, **arguments)
        result[name] = list(places)
        result["right"] &= len(places) <= result["limit"]
    return result


def run(stage: Stage) -> None:
    loops = (2,) if stage.smoke else (1, 2, 3, 4)
    stage.run("oracle, sdpa, float32", against_oracle, stage, "sdpa", torch.float32, loops)
    stage.run("oracle, eager, float32", against_oracle, stage, "eager", torch.float32, loops)
    gate_on_query = {"plt_gate_use_hidden_states": False, "plt_normalize_per_loop": False}
    stage.run("oracle, gate on the query", against_oracle, stage, "sdpa", torch.float32, loops, **gate_on_query)
    stage.run("oracle, sdpa, bfloat16", against_oracle, stage, "sdpa", torch.bfloat16, loops)
    stage.run("padded and packed", padded_and_packed, stage, 3)
    stage.run("waits, R = 2", waits, stage, 2)
    stage.run("waits, R = 1", waits, stage, 1)
    stage.run("generate, dynamic", generation, stage, 2)
    stage.run("generate, static", generation, stage, 2, cache_implementation="static", disable_compile=True)
    stage.run("generate, CUDA graphs, R = 2", generation, stage, 2, mode="reduce-overhead", seconds=15)
    stage.run("generate, prompt lookup", generation, stage, 2, prompt_lookup_num_tokens=5)
    if stage.smoke:  # the compiler is slow, and an offloaded cache needs two devices
        return
    stage.run("generate, offloaded", generation, stage, 2, cache_implementation="offloaded")
    stage.run("generate, CUDA graphs, padded", generation, stage, 2, mode="reduce-overhead", padded=True, seconds=15)
    stage.run("generate, CUDA graphs, R = 4", generation, stage, 4, mode="reduce-overhead", seconds=15)
    stage.run("oracle, flex, float32", flex_attention, stage, 2, seconds=30)
    for version, is_available in ((2, is_flash_attn_2_available), (3, is_flash_attn_3_available)):
        if is_available():
            name = f"flash_attention_{version}"
            stage.run(f"oracle, {name}, bfloat16", against_oracle, stage, name, torch.bfloat16, (1, 2, 3))
    mode = "max-autotune-no-cudagraphs"
    stage.run(f"generate, {mode}", generation, stage, 2, mode=mode, seconds=30)
