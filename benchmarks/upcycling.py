# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Does training make the second loop of a converted dense model pay?

    iquest-plt convert model.gguf plt --num-loops 2
    python -m iquest_plt.benchmarks.upcycling --model plt --data sources --heldout heldout --tokens 131072 --out OUT

Trains three copies of the same converted model on the same rows: with two loops; with one loop, which is exactly the
dense model; and with one loop on twice the tokens, which costs as much as two loops. All have the same optimizer and
schedule. OUT/upcycling.json has the held-out loss of each, and is written after each run. A finished run is not
repeated. `--only` selects runs, so that they can be split over machines.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..training.data import PackedRows, token_stream
from ..training.kernels import chunked_cross_entropy, register_attention
from ..training.run_files import write_json
from ..utils.files import visible_files
from ..utils.markdown import table
from ..utils.timing import environment


# name: (loops, tokens relative to --tokens, share of the fed-back state in the input at the end of the run)
RUNS = {
    "two loops": (2, 1, None),
    "dense": (1, 1, None),
    "dense, twice the tokens": (1, 2, None),
    "two loops, more feedback": (2, 1, 0.3),
}
MEASURED_LOOPS = (1, 2)
GATE_RATE = 20  # learning rate of the gates relative to the others: their weights start at zero


def read_stream(path: Path, tokenizer) -> np.ndarray:
    """Returns the tokens of all files of a folder, with an end token after each."""
    texts = [file.read_text(encoding="utf-8") for file in visible_files(path)]
    if not texts:
        raise ValueError(f"{path} contains no files.")
    return token_stream(tokenizer(texts, add_special_tokens=False).input_ids, tokenizer.eos_token_id)


def loss_sum(model: PreTrainedModel, rows: torch.Tensor, num_loops: int) -> torch.Tensor:
    """Returns the summed cross-entropy of the next tokens of `rows` (batch, time), with bf16 arithmetic."""
    weights = {name: parameter.bfloat16() for name, parameter in model.model.named_parameters()}
    arguments = {"use_cache": False, "num_loops": num_loops}
    states = functional_call(model.model, weights, (rows,), arguments).last_hidden_state
    states, labels = states[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
    return chunked_cross_entropy(states, model.lm_head.weight.bfloat16(), labels)


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, rows: torch.Tensor, num_loops: int) -> float:
    """Returns the mean loss in nats per token over held-out rows (count, time)."""
    total = sum(loss_sum(model, part, num_loops).item() for part in rows.split(4))
    return total / (rows.numel() - len(rows))


def batches(stream: np.ndarray, length: int, batch: int, steps: int, device: str) -> Iterator[torch.Tensor]:
    """Yields `steps` batches (batch, length). All runs see the same rows in the same order."""
    rows = PackedRows(stream, length, steps * batch)
    for step in range(steps):
        yield torch.tensor([rows[step * batch + i]["input_ids"] for i in range(batch)], device=device)


def train(model: PreTrainedModel, stream: np.ndarray, args, num_loops: int, tokens: int, share: float | None) -> list:
    """Trains `model` in place and returns the training loss of each step."""
    steps = max(1, tokens // (args.batch * args.length))
    gates = [parameter for name, parameter in model.named_parameters() if ".plt_gate." in name]
    others = [parameter for name, parameter in model.named_parameters() if ".plt_gate." not in name]
    groups = [{"params": others, "lr": args.lr}, {"params": gates, "lr": args.lr * GATE_RATE}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    start = model.config.plt_hidden_scale
    losses, started = [], time.monotonic()
    model.train()
    for step, rows in enumerate(batches(stream, args.length, args.batch, steps, args.device)):
        if share is not None:  # grows over the first half of the run
            end = start * share / args.start_share
            model.config.plt_hidden_scale = start + (end - start) * min(1.0, 2 * step / steps)
        loss = loss_sum(model, rows, num_loops) / (rows.numel() - len(rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % 5 == 0 or step == steps - 1:
            rate = (step + 1) * rows.numel() / (time.monotonic() - started)
            print(f"  step {step + 1}/{steps}  loss {losses[-1]:.3f}  {rate:.0f} tokens/s", flush=True)
    model.eval()
    return losses


def load(args) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        args.model, attn_implementation=register_attention(), dtype=torch.float32
    )
    return model.eval().to(args.device)


def run(args) -> dict:
    """Runs what is not yet in OUT/upcycling.json and returns its content."""
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "upcycling.json"
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    stream, heldout = read_stream(args.data, tokenizer), read_stream(args.heldout, tokenizer)
    count = len(heldout) // args.length
    rows = torch.tensor(heldout[: count * args.length].astype(np.int64).reshape(count, -1), device=args.device)
    settings = {name: getattr(args, name) for name in ("tokens", "length", "batch", "lr", "start_share")}
    result = json.loads(file.read_text()) if file.exists() else {"settings": settings, "runs": {}}
    if result["settings"] != settings:
        raise ValueError(f"{file} has other settings. Choose a new folder.")
    result |= {"environment": environment(args.device), "training_stream": len(stream), "heldout_tokens": rows.numel()}
    for name in ["before training", *RUNS]:
        if name in result["runs"] or (args.only and name not in args.only):
            continue
        print(name, flush=True)
        model, started = load(args), time.monotonic()
        losses = []
        if name in RUNS:
            loops, factor, share = RUNS[name]
            losses = train(model, stream, args, loops, factor * args.tokens, share)
        result["runs"][name] = {
            "heldout": {str(loops): heldout_loss(model, rows, loops) for loops in MEASURED_LOOPS},
            "training_loss": [round(loss, 4) for loss in losses],
            "seconds": round(time.monotonic() - started, 1),
            "plt_hidden_scale": model.config.plt_hidden_scale,
        }
        if args.keep and name in RUNS:
            folder = args.out / name.replace(" ", "-").replace(",", "")
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        write_json(file, result)  # last: marks the run as finished
        print(f"  {', '.join(cells_of(name, result['runs'][name]))}", flush=True)
    return result


def cells_of(name: str, entry: dict) -> list[str]:
    losses = (f"{entry['heldout'][str(loops)]:.4f}" for loops in MEASURED_LOOPS)
    return [name, *losses, f"{entry['seconds']:.0f}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="converted model folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of text files to train on")
    parser.add_argument("--heldout", type=Path, required=True, help="folder of text files to measure the loss on")
    parser.add_argument("--tokens", type=int, default=131_072, help="training tokens")
    parser.add_argument("--length", type=int, default=512, help="tokens per row")
    parser.add_argument("--batch", type=int, default=4, help="rows per step")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--start-share", type=float, default=0.04, help="share of the state at the start")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", help="names of runs")
    parser.add_argument("--keep", action="store_true", help="save the trained models in OUT")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    result = run(args)
    head = ["run", *(f"loss with R = {loops}" for loops in MEASURED_LOOPS), "seconds"]
    print(table(head, [cells_of(*item) for item in result["runs"].items()]))


if __name__ == "__main__":
    main()
