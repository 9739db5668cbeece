# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What do quantized weights bring in vLLM on this CPU? Times decode steps of the plugin in bf16, with 8-bit weights
(W8A16, `--quantize int8`), with 4-bit weights (W4A16, `--quantize int4`) by vLLM's kernel and by PyTorch's, and with
8-bit weights and inputs (W8A8). Weights are random; the runs take turns step by step. The loss is that of a trained
model on Python's standard library, for the formats that this package writes.

    python -m iquest_plt.benchmarks.vllm_quantized --hidden 2048 --layers 4
"""

import argparse
import gc
import math
import os
import sysconfig
import tempfile
from pathlib import Path

import torch

from ..conversion.convert import convert
from ..conversion.quantize import bytes_in, quantization_fields
from ..conversion.tokenizer import load_tokenizer
from ..modeling_plt import IQuestPLTCoderForCausalLM
from .common import add_shape_arguments, median_ms, parse, plt_config, report
from .vllm_decode import (
    add_engine_arguments,
    engine,
    keep_engines_in_this_process,
    step_times,
)
from .vllm_load import SMALL


SCHEMES = {"bf16": None, "W8A16": "int8", "W4A16": "int4", "W4A16, PyTorch": "int4", "W8A8": "int8"}
COLUMNS = ["batch", "weights", "R", "ms per step", "tokens per s", "over R = 1", "times bf16", "GB", "loss over bf16"]
PIECES, LENGTH = 16, 512  # texts for the loss, and their tokens


def fields(name: str) -> dict | None:
    """Returns the `quantization_config` of a scheme."""
    if SCHEMES[name] is None:
        return None
    stored = quantization_fields({}, SCHEMES[name])
    if name == "W8A8":
        (group,) = stored["config_groups"].values()
        inputs = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
        group["input_activations"] = inputs
        stored["format"] = "int-quantized"
    return stored


def start_engines(arguments: argparse.Namespace) -> dict:
    """Returns an engine for each scheme and number of loops."""
    from vllm import envs

    from ..serving.vllm.checks import CPU_KERNEL

    engines = {}
    for name in SCHEMES:
        envs.disable_envs_cache()  # starting an engine turns it on
        os.environ["VLLM_DISABLED_KERNELS"] = CPU_KERNEL if name == "W4A16, PyTorch" else ""
        for loops in arguments.loops:
            config = plt_config(arguments.hidden, arguments.layers)
            config.plt_num_loops = loops
            if fields(name):
                config.quantization_config = fields(name)
            engines[name, loops] = engine(config, arguments)
    return engines


def gigabytes(arguments: argparse.Namespace, name: str) -> float:
    """Returns the size of all weights."""
    with torch.device("meta"):
        model = IQuestPLTCoderForCausalLM(plt_config(arguments.hidden, arguments.layers))
    return bytes_in(model, SCHEMES[name]) / 1e9


def loss(path: Path, pieces: list[list[int]]) -> float:
    """Returns vLLM's mean loss per token, in nats."""
    from vllm import LLM, SamplingParams

    llm = LLM(str(path), dtype="bfloat16", enforce_eager=True, max_model_len=LENGTH + 1, skip_tokenizer_init=True)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in pieces], params, use_tqdm=False)
    losses = [
        -logprobs[token].logprob
        for output in outputs
        for token, logprobs in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    ]
    llm.llm_engine.engine_core.shutdown()
    return math.fsum(losses) / len(losses)


def losses(arguments: argparse.Namespace) -> dict[str, float]:
    """Returns the loss of `--model` in bf16 and with both of this package's schemes."""
    text = "\n".join(path.read_text() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-c]*.py")))
    ids = load_tokenizer(arguments.model)(text[: 16 * PIECES * LENGTH])["input_ids"]
    step = len(ids) // PIECES
    pieces = [ids[start : start + LENGTH] for start in range(0, PIECES * step, step)]
    found = {"bf16": loss(arguments.model, pieces)}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("W8A16", "W4A16"):
            path = Path(folder) / name
            convert(str(arguments.model), path, quantize=SCHEMES[name])
            found[name] = loss(path, pieces)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, hidden=2048, layers=4)
    parser.add_argument("--model", type=Path, default=SMALL, help="model folder with a tokenizer, for the loss")
    add_engine_arguments(parser, loops=[1, 2], prompt=128, tokens=20, dtypes=["bfloat16"])
    arguments = parse(parser)
    keep_engines_in_this_process()
    import vllm

    found = losses(arguments)
    gc.collect()
    engines, results = start_engines(arguments), []
    sizes = {name: round(gigabytes(arguments, name), 2) for name in SCHEMES}
    for batch in arguments.batch:
        times = step_times(engines, arguments, batch)
        for (name, loops), seconds in times.items():
            step = median_ms(seconds)
            results.append(
                {
                    "batch": batch,
                    "weights": name,
                    "loops": loops,
                    "ms_per_step": round(step, 2),
                    "tokens_per_s": round(1e3 * batch / step, 1),
                    "over_one_loop": round(step / median_ms(times[name, 1]), 2),
                    "times_bf16": round(median_ms(times["bf16", loops]) / step, 2),
                    "gigabytes": sizes[name],
                    "loss_over_bf16": f"{found[name] / found['bf16'] - 1:+.2%}" if name in found else "-",
                }
            )
    arguments.model = arguments.model.name
    data = {"vllm": vllm.__version__, "loss": found, "results": results}
    rows = [list(result.values()) for result in results]
    report("What do quantized weights bring in vLLM on this CPU?", "vllm_quantized", arguments, COLUMNS, rows, data)


if __name__ == "__main__":
    main()
