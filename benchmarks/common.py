# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What every benchmark shares: the machine's description, timing of `generate()`, and the report."""

import argparse
import datetime
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, StoppingCriteria, StoppingCriteriaList

from ..configuration_plt import IQuestPLTCoderConfig


RESULTS = Path(__file__).parent / "results"


def shape(hidden_size: int, num_layers: int = 14, **overrides) -> dict:
    """
    A configuration's fields in the proportions of LoopCoder-V2: head_dim 128, five query heads per key/value head where
    they divide, intermediate size 5.4 and vocabulary 15 times the hidden size.
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
        **overrides,
    }


def plt_config(hidden_size: int, num_layers: int = 14, **overrides) -> IQuestPLTCoderConfig:
    """A PLT configuration of that shape with the released scales, window and gate."""
    plt = {"plt_emb_scale": 0.707, "plt_hidden_scale": 0.053, "plt_gate_use_hidden_states": True}
    return IQuestPLTCoderConfig(**shape(hidden_size, num_layers), **{**plt, **overrides})


def llama_config(hidden_size: int, num_layers: int = 14) -> LlamaConfig:
    """The Llama of the same shape."""
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    return LlamaConfig(**shape(hidden_size, num_layers), rms_norm_eps=1e-5, rope_parameters=rope)


class StepClock(StoppingCriteria):
    """Stamps the time after every generated token; stops nothing."""

    def __init__(self):
        self.stamps: list[float] = []

    def __call__(self, input_ids, scores, **kwargs):
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.stamps.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def decode_step_times(model, input_ids: torch.Tensor, new_tokens: int, **model_kwargs) -> list[float]:
    """Seconds of every decode step of a greedy `generate()`; the prompt and the two steps after it are left out."""
    clock = StepClock()
    model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
        **model_kwargs,
    )
    return [after - before for before, after in zip(clock.stamps[2:], clock.stamps[3:], strict=False)]


def median_ms(times: list[float]) -> float:
    """The median in milliseconds."""
    return 1e3 * statistics.median(times)


def environment(device: str) -> dict:
    """Device, threads and versions, as every report states them."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
        name = f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "date": datetime.date.today().isoformat(),
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def build(config, arguments: argparse.Namespace):
    """The model of `config` with random weights, as `--dtype`, `--attention` and `--device` say."""
    dtype = getattr(torch, arguments.dtype)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=arguments.attention)
    return model.eval().to(arguments.device)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """`--device`, `--dtype`, `--save`."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--save", metavar="NAME", help="also write benchmarks/results/DATE-NAME.md and .json")


def report(title: str, module: str, arguments: argparse.Namespace, columns: list[str], rows: list[list], data: dict):
    """Prints a Markdown table and, as the last line, everything as one JSON document; saves both with `--save`."""
    options = {k: v for k, v in vars(arguments).items() if k != "save"}
    flags = " ".join(
        f"--{k.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in options.items()
    )
    document = {"benchmark": module, "options": options, "environment": environment(arguments.device), **data}
    table = [columns, ["---"] * len(columns), *[[str(cell) for cell in row] for row in rows]]
    lines = [f"# {title}", "", f"    python -m iquest_plt.benchmarks.{module} {flags}", ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    lines += ["", ", ".join(f"{k} {v}" for k, v in document["environment"].items()) + "."]
    print("\n".join(lines), end="\n\n")
    print(json.dumps(document))
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"{document['environment']['date']}-{arguments.save}"
        stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
        stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
