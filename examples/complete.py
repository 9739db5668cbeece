# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0

"""Completes Python code with the small model in `checkpoints/small`, and shows what loops gain and what they cost.

* The gain: the loss of a fixed text with one to four loops of the small model.
* The cost: the time per token of a larger model with random weights. The small model is too small to show it: most of
  its time is not spent on reading weights.

Runs offline. For example: python examples/complete.py --prompt "def fibonacci(n):" --num-loops 1
"""

import argparse
import os
import statistics
import time
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"  # the checkpoint folder contains everything
ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "checkpoints" / "small"
PROMPTS = ROOT / "training" / "prompts.txt"  # the first one is completed
TEXT = '''\
def read_lines(path, encoding="utf-8"):
    """Return the lines of the file at *path* as a list of strings."""
    with open(path, encoding=encoding) as file:
        return file.read().splitlines()


class Stack:
    """A last-in, first-out container."""

    def __init__(self, items=()):
        self._items = list(items)

    def __len__(self):
        return len(self._items)

    def push(self, item):
        self._items.append(item)

    def pop(self):
        if not self._items:
            raise IndexError("pop from an empty stack")
        return self._items.pop()
'''
TIMED = {  # settings of the timed runs
    "1 loop": {"num_loops": 1},
    "2 loops together": {"num_loops": 2},
    "2 loops in sequence": {"num_loops": 2, "loop_schedule": "sequence"},
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", help="text to continue (default: the first of training/prompts.txt)")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--num-loops", type=int, help="loops per token (default: as the checkpoint was trained)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--sample", action="store_true", help="sample instead of choosing the most likely token")
    parser.add_argument("--seed", type=int, default=0, help="seed for --sample (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the timed model (default: %(default)s)")
    parser.add_argument("--timed-tokens", type=int, default=20, help="tokens timed per run (default: %(default)s)")
    parser.add_argument("--device", help="torch device (default: cuda if available, else cpu)")
    args = parser.parse_args()
    for name in ("num_loops", "max_new_tokens", "timed_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.hidden < 128 or args.hidden % 128:
        parser.error(f"--hidden must be a multiple of 128, got {args.hidden}")
    if args.prompt == "":
        parser.error("--prompt must not be empty")
    if not (args.checkpoint / "config.json").is_file():
        parser.exit(1, f"error: no checkpoint in {args.checkpoint} (`make train` makes the small one)\n")
    return args


def loss_line(model, tokenizer) -> str:
    """Returns the loss of TEXT with one to four loops, in one line."""
    import torch

    inputs = tokenizer(TEXT, return_tensors="pt").to(model.device)
    with torch.no_grad():
        losses = [model(**inputs, labels=inputs.input_ids, num_loops=loops).loss.item() for loops in (1, 2, 3, 4)]
    values = ", ".join(f"{loss:.2f} (R = {loops})" for loops, loss in enumerate(losses, 1))
    return f"loss of a fixed text, in nats per token: {values}"


def random_model(checkpoint: Path, hidden: int, device: str):
    """Makes a bf16 model with random weights: two layers, whose MLP is as wide as LoopCoder-V2's, in proportion."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        checkpoint,
        trust_remote_code=True,
        hidden_size=hidden,
        intermediate_size=round(5.4 * hidden / 128) * 128,
        num_hidden_layers=2,
        num_attention_heads=hidden // 128,
        num_key_value_heads=1,
        head_dim=128,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=True)
    return model.to(device).eval()


def step_seconds(model, steps: int, warm_up: int = 2, prompt_tokens: int = 64) -> dict[str, float]:
    """
    Returns the median time of a decode step for each run in TIMED. The runs take turns step by step, so that a
    temporary slowdown of the machine affects all of them.
    """
    import torch

    def step(tokens, name):
        outputs = model(tokens, past_key_values=caches[name], use_cache=True, logits_to_keep=1, **TIMED[name])
        caches[name] = outputs.past_key_values
        return outputs.logits[:, -1:].argmax(-1)

    caches = dict.fromkeys(TIMED)
    prompt = torch.arange(prompt_tokens, device=model.device)[None]
    times: dict[str, list[float]] = {name: [] for name in TIMED}
    with torch.no_grad():
        tokens = {name: step(prompt, name) for name in TIMED}
        for number in range(warm_up + steps):
            for name in TIMED:
                start = time.perf_counter()
                tokens[name] = step(tokens[name], name)
                tokens[name].item()  # waits for the device
                if number >= warm_up:
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    args = parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would mix with the text

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(args.checkpoint, trust_remote_code=True).to(device).eval()
    prompt = args.prompt or PROMPTS.read_text().split("# %%\n")[0]

    set_seed(args.seed)
    print(prompt, end="", flush=True)
    model.generate(
        **tokenizer(prompt, return_tensors="pt").to(device),
        do_sample=args.sample,
        max_new_tokens=args.max_new_tokens,
        num_loops=args.num_loops,
        repetition_penalty=1.1,  # a model of this size repeats itself
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    size, trained = model.num_parameters() / 1e6, model.config.plt_num_loops
    print(f"\nThe model above ({size:.1f}M parameters, R = {trained} loops in training):")
    print(f"  {loss_line(model, tokenizer)}")

    large = random_model(args.checkpoint, args.hidden, device)
    seconds = step_seconds(large, args.timed_tokens)
    kind = f"{device}, {torch.backends.cpu.get_cpu_capability()}" if device == "cpu" else device
    print(f"\nA model with random weights ({large.num_parameters() / 1e6:.0f}M parameters, bf16, {kind}):")
    for name, value in seconds.items():
        print(f"  {name:20}{1e3 * value:6.0f} ms per token{value / seconds['1 loop']:7.2f} times one loop")


if __name__ == "__main__":
    main()
