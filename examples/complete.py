# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0

"""Completes Python code with the small model in `checkpoints/small`, then times both loop schedules.

Runs offline. For example: python examples/complete.py --prompt "def fibonacci(n):" --num-loops 1
"""

import argparse
import os
import statistics
import time
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"  # the checkpoint folder contains everything
CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "small"
PROMPT = '''\
import os


class PathError(OSError):
    """Raised when a path does not exist."""


def read_lines(path, encoding="utf-8"):
    """Return the lines of the file at *path* as a list of strings."""
'''


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default=PROMPT, help="text to continue (default: the start of a small module)")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--num-loops", type=int, help="loops per token (default: as the checkpoint was trained)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs per schedule (default: %(default)s)")
    parser.add_argument("--sample", action="store_true", help="sample instead of choosing the most likely token")
    parser.add_argument("--seed", type=int, default=0, help="seed for --sample (default: %(default)s)")
    parser.add_argument("--device", help="torch device (default: cuda if available, else cpu)")
    args = parser.parse_args()
    for name in ("num_loops", "max_new_tokens", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not args.prompt:
        parser.error("--prompt must not be empty")
    if not (args.checkpoint / "config.json").is_file():
        parser.exit(1, f"error: no checkpoint in {args.checkpoint} (`make train` makes the small one)\n")
    return args


def main() -> None:
    args = parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would mix with the text

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(args.checkpoint, trust_remote_code=True).to(device).eval()
    num_loops = args.num_loops or model.config.plt_num_loops
    inputs = tokenizer(args.prompt, return_tensors="pt").to(device)

    set_seed(args.seed)
    print(args.prompt, end="", flush=True)
    model.generate(
        **inputs,
        do_sample=args.sample,
        max_new_tokens=args.max_new_tokens,
        num_loops=num_loops,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )

    def seconds(schedule: str) -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=args.max_new_tokens,
            min_new_tokens=args.max_new_tokens,
            num_loops=num_loops,
            loop_schedule=schedule,
        )
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    times: dict[str, list[float]] = {"together": [], "sequence": []}
    for repeat in range(args.repeats + 1):
        for schedule, measured in times.items():
            elapsed = seconds(schedule)
            if repeat:  # the first round only warms up
                measured.append(elapsed)
    together, sequence = (statistics.median(measured) for measured in times.values())

    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"\n{size:.1f}M parameters, {num_loops} loops, {model.dtype}, {device}, greedy,", end=" ")
    print(f"{inputs.input_ids.shape[1]} + {args.max_new_tokens} tokens, median of {args.repeats}")
    print(f"  loops together:     {args.max_new_tokens / together:7.1f} tokens/s")
    print(f"  loops in sequence:  {args.max_new_tokens / sequence:7.1f} tokens/s")
    print(f"  together is {sequence / together:.2f} times as fast")


if __name__ == "__main__":
    main()
