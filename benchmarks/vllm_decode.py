# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What does one more loop cost in vLLM? Times decode steps of the plugin for R loops run together, the same loops in
sequence, and vLLM's own Llama of the same shape. Weights are random; the runs take turns step by step. With
`--throughput`, measures tokens per second of 16 requests, compared with Transformers' `generate()`. With
`--first-token`, times a prompt with loops >= 1 over all of it, or only over its end. With `--compiled`, compares decode
steps of models that vLLM compiles with those that it does not.

    python -m iquest_plt.benchmarks.vllm_decode --hidden 2048 --layers 8 --batch 1 8
    python -m iquest_plt.benchmarks.vllm_decode --hidden 2048 --layers 8 --throughput
    python -m iquest_plt.benchmarks.vllm_decode --hidden 1024 --layers 8 --first-token --prompt 4096
    python -m iquest_plt.benchmarks.vllm_decode --hidden 2048 --layers 4 --compiled --loops 1 2 --batch 1 8 32
"""

import argparse
import contextlib
import copy
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig

from ..conversion.layout import shared_fields
from .common import add_shape_arguments, build, median_ms, parse, plt_config, ratios, report


COLUMNS = ["batch", "model", "schedule", "ms per token", "over R = 1", "over Llama"]
REQUESTS, WARM_UP = 16, 3


def engine(config, arguments: argparse.Namespace, **options):
    """Starts vLLM's engine in this process, for a model with random weights."""
    from vllm import LLM

    requests = max(*arguments.batch, REQUESTS)
    options.setdefault("enforce_eager", True)
    config.architectures = ["LlamaForCausalLM" if isinstance(config, LlamaConfig) else "IQuestPLTCoderForCausalLM"]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        llm = LLM(
            folder,
            dtype=arguments.dtype,
            load_format="dummy",
            skip_tokenizer_init=True,
            block_size=128,
            max_model_len=arguments.prompt + max(arguments.prompt, 2 * (arguments.tokens + WARM_UP) + requests + 2),
            max_num_seqs=requests,
            max_num_batched_tokens=max(4096, arguments.prompt),
            enable_prefix_caching=False,
            **options,
        )
    return llm.llm_engine


def share_weights(engine, other) -> None:
    """Makes `engine` use the weights of `other`, so that their place in memory makes no difference."""
    ((model,), (theirs,)) = (owner.apply_model(lambda model: model) for owner in (engine, other))
    theirs = dict(theirs.named_modules())
    for name, module in model.named_modules():
        if name in theirs:
            module._parameters.update(theirs[name]._parameters)
            if hasattr(module, "cpu_linear"):  # has the weights in the CPU kernel's layout
                module.cpu_linear = theirs[name].cpu_linear


def add_requests(engine, lengths: list[int], new_tokens: int) -> list[list[int]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    prompts = [torch.randint(1000, (length,)).tolist() for length in lengths]
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    return prompts


def decode_begins(engine, batch: int) -> None:
    """Steps until all requests of a batch decode. Their prompts get their first tokens in different steps."""
    begun = set()
    while len(begun) < batch:
        begun |= {output.request_id for output in engine.step()}


def stop(engine, batch: int) -> None:
    """Ends the requests of a batch."""
    engine.abort_request([str(index) for index in range(batch)])
    while engine.has_unfinished_requests():
        engine.step()


@contextlib.contextmanager
def in_sequence():
    """Runs the loops of all rows in sequence inside the `with` block."""
    from iquest_plt.serving.vllm import model

    split = model.split

    def never_together(layer_name, num_rows):
        together, rest = split(layer_name, num_rows)  # never both: all requests decode, or all start
        return None, together or rest

    model.split = never_together
    try:
        yield
    finally:
        model.split = split


def step_times(
    engines: dict,
    arguments: argparse.Namespace,
    batch: int,
    runs: dict | None = None,
    when_warm: Callable[[], None] = lambda: None,
) -> dict[Any, list[float]]:
    """
    Decodes `batch` requests in every engine, step by step in turns. Returns the seconds of every step, by run.

    Args:
        runs: the engine's name, and a function that returns the context of its steps, for each run. An engine may have
            several. By default each engine has one, of its own name.
        when_warm: called before the first step that is timed.
    """
    runs = runs or {name: (name, contextlib.nullcontext) for name in engines}
    most = max(Counter(name for name, _ in runs.values()).values())
    times: dict[Any, list[float]] = {run: [] for run in runs}
    for plugin in engines.values():
        add_requests(plugin, [arguments.prompt] * batch, most * (arguments.tokens + WARM_UP) + batch + 2)
        decode_begins(plugin, batch)
    for step in range(WARM_UP + arguments.tokens):
        if step == WARM_UP:
            when_warm()
        for run, (name, context) in runs.items():
            with context():
                start = time.perf_counter()
                engines[name].step()
                seconds = time.perf_counter() - start
            if step >= WARM_UP:
                times[run].append(seconds)
    for plugin in engines.values():
        stop(plugin, batch)
    return times


def measure(engines: dict, arguments: argparse.Namespace, batch: int) -> list[dict]:
    """Times decode steps of all engines in turns, looped ones in both schedules; returns rows of `COLUMNS`."""
    schedules = {"together": contextlib.nullcontext, "sequence": in_sequence}
    runs = {("Llama", "-"): ("Llama", contextlib.nullcontext), (1, "-"): (1, contextlib.nullcontext)}
    for loops in arguments.loops:
        if loops > 1:
            runs |= {(loops, schedule): (loops, context) for schedule, context in schedules.items()}
    times = step_times(engines, arguments, batch, runs)
    return [
        {
            "batch": batch,
            "model": name if name == "Llama" else f"R = {name}",
            "schedule": schedule,
            "ms_per_token": round(median_ms(seconds), 3),
            **ratios(seconds, times[1, "-"], times["Llama", "-"]),
        }
        for (name, schedule), seconds in times.items()
    ]


def throughput(arguments: argparse.Namespace) -> list[dict]:
    """Measures tokens per second of `REQUESTS` simultaneous requests, with prompts of 1/4 to 4/4 of `--prompt`."""
    config = plt_config(arguments.hidden, arguments.layers)
    lengths = [arguments.prompt * (4 + 12 * index // (REQUESTS - 1)) // 16 for index in range(REQUESTS)]
    plugin = engine(config, arguments)
    add_requests(plugin, [32] * REQUESTS, 4)
    while plugin.has_unfinished_requests():
        plugin.step()
    prompts = add_requests(plugin, lengths, arguments.tokens)
    start = time.perf_counter()
    while plugin.has_unfinished_requests():
        plugin.step()
    seconds = {"vLLM": time.perf_counter() - start}

    arguments.attention = "sdpa"
    model = build(copy.deepcopy(config), arguments)
    longest = max(lengths)
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])
    with torch.no_grad():
        model.generate(padded[:, -8:], attention_mask=mask[:, -8:], max_new_tokens=2, do_sample=False, pad_token_id=0)
        start = time.perf_counter()
        model.generate(
            padded, attention_mask=mask, max_new_tokens=arguments.tokens, do_sample=False, pad_token_id=0, num_loops=2
        )
        seconds["Transformers"] = time.perf_counter() - start
    tokens = REQUESTS * arguments.tokens
    return [
        {"server": name, "tokens_per_s": round(tokens / took, 2), "ratio": round(seconds["Transformers"] / took, 3)}
        for name, took in seconds.items()
    ]


def first_token(arguments: argparse.Namespace) -> list[dict]:
    """Times a prompt of `--prompt` tokens up to its first new token, in turns."""
    from ..serving.vllm.schedule import TAIL

    config, engines = plt_config(arguments.hidden, arguments.layers), {}
    for loops in arguments.loops:
        config.plt_num_loops = loops
        for ends in (False, True) if loops > 1 else (False,):
            engines[loops, ends] = engine(config, arguments, additional_config={TAIL: ends})
    times = {run: [] for run in engines}
    for turn in range(4):
        for run, plugin in engines.items():
            add_requests(plugin, [arguments.prompt], 1)
            start = time.perf_counter()
            while plugin.has_unfinished_requests():
                plugin.step()
            if turn > 0:
                times[run].append(time.perf_counter() - start)
    base = times[1, False]
    return [
        {
            "model": f"R = {loops}",
            "loops >= 1 over": "-" if loops == 1 else "the end" if ends else "all of it",
            "seconds": round(median_ms(seconds) / 1000, 3),
            "over_one_loop": round(statistics.median(a / b for a, b in zip(seconds, base, strict=True)), 3),
        }
        for (loops, ends), seconds in times.items()
    ]


def compiled(arguments: argparse.Namespace) -> list[dict]:
    """Times decode steps of compiled models and of the same models without, in turns."""
    plt, engines = plt_config(arguments.hidden, arguments.layers), {}
    for name in ("Llama", *arguments.loops):
        if name != "Llama":
            plt.plt_num_loops = name
        config = LlamaConfig(**shared_fields(plt, LlamaConfig)) if name == "Llama" else plt
        for eager in (False, True):
            engines[name, eager] = engine(config, arguments, enforce_eager=eager)
        share_weights(engines[name, True], engines[name, False])
    results = []
    for batch in arguments.batch:
        times = step_times(engines, arguments, batch)
        for name in ("Llama", *arguments.loops):
            pairs = zip(times[name, False], times[name, True], strict=True)
            ratio = round(statistics.median(compiled / plain for compiled, plain in pairs), 3)
            model = name if name == "Llama" else f"R = {name}"
            results.append({"batch": batch, "model": model, "over_uncompiled": ratio})
    return results


def add_engine_arguments(
    parser: argparse.ArgumentParser, loops: list[int], prompt: int, tokens: int, dtypes: list[str]
) -> None:
    """Adds the options that `engine` and a timing of decode steps read, and `--save`."""
    parser.add_argument("--loops", type=int, nargs="+", default=loops)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=prompt, help="prompt length in tokens")
    parser.add_argument("--tokens", type=int, default=tokens, help="tokens timed per run")
    parser.add_argument("--dtype", default=dtypes[0], choices=dtypes)
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--save", metavar="NAME", help="also write benchmarks/results/DATE-NAME.md and .json")


def keep_engines_in_this_process() -> None:
    """Sets vLLM's environment so that this process can step the engines."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=2048, layers=8)
    add_engine_arguments(parser, loops=[1, 2, 4], prompt=256, tokens=40, dtypes=["bfloat16", "float32"])
    parser.add_argument("--throughput", action="store_true", help="compare vLLM and Transformers on 16 requests")
    parser.add_argument("--first-token", action="store_true", help="time a prompt")
    parser.add_argument("--compiled", action="store_true", help="compare compiled models with uncompiled ones")
    arguments = parse(parser)
    keep_engines_in_this_process()

    if arguments.compiled:
        results = compiled(arguments)
        columns = ["batch", "model", "compiled over uncompiled"]
        title = "What does compiling bring at decode, in vLLM?"
    elif arguments.throughput:
        results = throughput(arguments)
        columns, title = ["server", "tokens per s", "over Transformers"], "Does vLLM serve 16 requests faster?"
    elif arguments.first_token:
        results = first_token(arguments)
        columns, title = ["model", "loops >= 1 over", "seconds", "over R = 1"], "What does a prompt cost, in vLLM?"
    else:
        plt = plt_config(arguments.hidden, arguments.layers)
        engines = {"Llama": engine(LlamaConfig(**shared_fields(plt, LlamaConfig)), arguments)}
        for loops in arguments.loops:
            plt.plt_num_loops = loops
            engines[loops] = engine(plt, arguments)
            share_weights(engines[loops], engines["Llama"])
        results = [result for batch in arguments.batch for result in measure(engines, arguments, batch)]
        columns, title = COLUMNS, "What does one more loop cost at decode, in vLLM?"
    import vllm

    rows = [list(result.values()) for result in results]
    report(title, "vllm_decode", arguments, columns, rows, {"vllm": vllm.__version__, "results": results})


if __name__ == "__main__":
    main()
