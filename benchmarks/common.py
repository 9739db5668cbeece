# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by the benchmarks: models, arguments, timing, and the report."""

import argparse
import ctypes
import json
import platform
import statistics
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

from ..configuration_plt import IQuestPLTCoderConfig
from ..conversion.layout import shared_fields
from ..utils.markdown import table
from ..utils.timing import environment, timed  # noqa: F401 (benchmarks import it from here)


RESULTS = Path(__file__).parent / "results"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # parameters of glibc's mallopt
RELEASED = Path(__file__).parents[1]  # folder of the released `config.json`


def _shape(hidden_size: int, num_layers: int) -> dict:
    """
    Returns configuration fields in the proportions of LoopCoder-V2: head_dim 128, intermediate size 5.4 times and
    vocabulary 15 times the hidden size. About five query heads share a key/value head: 8 at 1024, 4 at 2048, 5 at 2560.
    """
    heads = max(1, hidden_size // 128)
    kv_heads = next(k for k in (heads // 5, heads // 4, heads // 2, 1) if k and heads % k == 0)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "intermediate_size": round(5.4 * hidden_size / 128) * 128,
        "vocab_size": 15 * hidden_size,
        "max_position_embeddings": 131072,
        "eos_token_id": None,
    }


def plt_config(hidden_size: int, num_layers: int) -> IQuestPLTCoderConfig:
    """Returns a PLT configuration of this shape with the released scales, window and gate."""
    plt = {"plt_emb_scale": 0.707, "plt_hidden_scale": 0.053, "plt_gate_use_hidden_states": True}
    return IQuestPLTCoderConfig(**_shape(hidden_size, num_layers), **plt)


def llama_of(plt):
    """Builds the Llama of the same shape, dtype, device and kernel. It shares all weights of `plt` except the gates."""
    config = LlamaConfig(**shared_fields(plt.config, LlamaConfig))
    attention = plt.config._attn_implementation
    with torch.device("meta"):
        llama = AutoModelForCausalLM.from_config(config, dtype=plt.dtype, attn_implementation=attention).eval()
    llama.load_state_dict({k: v for k, v in plt.state_dict().items() if "plt_gate" not in k}, assign=True)
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config).to(plt.device)
    return llama


def bytes_read_per_token(model) -> int:
    """Returns the bytes of all weights except the embedding, since a token reads only one of its rows."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights - (0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.nbytes)


def ratios(times: list[float], one_loop: list[float], llama: list[float]) -> dict[str, float]:
    """Returns `ratio` (to one loop) and `ratio_llama`: medians over rounds of the ratio of the two times."""
    named = {"ratio": one_loop, "ratio_llama": llama}
    return {
        name: round(statistics.median(one / other for one, other in zip(times, base, strict=True)), 3)
        for name, base in named.items()
    }


def median_ms(times: list[float]) -> float:
    """Returns the median in milliseconds."""
    return 1e3 * statistics.median(times)


def build(config, arguments: argparse.Namespace):
    """Builds a model with random weights, for the options `--dtype`, `--attention` and `--device`."""
    dtype = getattr(torch, arguments.dtype)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=arguments.attention)
    return model.eval().to(arguments.device)


def keep_freed_memory() -> None:
    """
    Makes glibc keep freed memory from now on. By default it returns large tensors to the system at once, and mapping
    new memory may take longer than the computation and distort the timing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def peak_memory(function, device: torch.device | str) -> int:
    """
    Returns the peak memory of `function()` in bytes, beyond what the process holds before. On a CPU this needs Linux
    and glibc, which is set to return tensors of 1 MB or more at once.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**20)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_status("VmRSS")
    function()
    return max(memory_status("VmHWM") - before, 0)


def memory_status(name: str, pid: int | str = "self") -> int:
    """Returns a field of a process's status in bytes, or 0 if the process has just ended. Needs Linux."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def add_shape_arguments(parser: argparse.ArgumentParser, hidden: int, layers: int = 14) -> None:
    """Adds `--hidden` and `--layers` of the random model."""
    parser.add_argument("--hidden", type=int, default=hidden)
    parser.add_argument("--layers", type=int, default=layers)


def add_common_arguments(parser: argparse.ArgumentParser, loops: list[int], kernels: list[str] | None = None) -> None:
    """Adds `--loops`, `--attention` (one of `kernels` if given), `--device`, `--dtype` and `--save`."""
    parser.add_argument("--loops", type=int, nargs="+", default=loops)
    parser.add_argument("--attention", default="sdpa", choices=kernels)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--save", metavar="NAME", help="also write benchmarks/results/DATE-NAME.md and .json")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses and checks the arguments, seeds random numbers, and turns off Transformers' warnings."""
    arguments = parser.parse_args()
    if getattr(arguments, "loops", [1])[0] != 1:
        parser.error("--loops must begin with 1, since the others are compared with one loop.")
    for name in ("tokens", "repeats", "steps"):
        if getattr(arguments, name, 1) < 1:
            parser.error(f"--{name} must be at least 1.")
    logging.set_verbosity_error()
    torch.manual_seed(0)
    return arguments


def report(title: str, module: str, arguments: argparse.Namespace, columns: list[str], rows: list[list], data: dict):
    """Prints a Markdown table, and everything as JSON in the last line; saves both with `--save`."""
    options = {k: v for k, v in vars(arguments).items() if k != "save"}
    flags = " ".join(_flag(name, value) for name, value in options.items() if not (value is None or value is False))
    document = {
        "benchmark": module,
        "options": options,
        "environment": environment(getattr(arguments, "device", "cpu")),
        **data,
    }
    lines = [f"# {title}", "", f"    python -m iquest_plt.benchmarks.{module} {flags}", "", table(columns, rows)]
    lines += ["", ", ".join(f"{k} {v}" for k, v in document["environment"].items()) + "."]
    print("\n".join(lines), end="\n\n")
    print(json.dumps(document))
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"{document['environment']['date']}-{arguments.save}"
        stem.with_name(f"{stem.name}.md").write_text("\n".join(lines) + "\n")
        stem.with_name(f"{stem.name}.json").write_text(json.dumps(document, indent=1) + "\n")


def _flag(name: str, value) -> str:
    """Formats an option as on a command line."""
    values = value if isinstance(value, list) else [] if value is True else [value]
    return " ".join([f"--{name.replace('_', '-')}", *map(str, values)])
