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
"""
The tiny family: matched models that differ in the number of loops and in the shift alone.

    python -m iquest_plt.training.family --out runs/family

Every model sees the same rows in the same order, with the same schedule; a seed decides initial weights and rows, and
each configuration is trained from each seed. Both papers trained with the shift only, so neither could tell what it
costs: the runs without it are the control. A run that is there already is kept, and a killed one goes on.

OUT/metrics.json has each run's held-out bits per byte and loss curve, OUT/family.md and family.png the means with 95 %
confidence intervals over seeds.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..tokenization import bpe
from . import data, evaluate, small


LOOPS = (1, 2, 3, 4)
ROW = 512
# Two-sided 95 % quantiles of Student's t, for 2 to 10 seeds.
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def recipe_of(loops: int, shift: bool, seed: int, tokens: int, hidden_size: int, vocab_size: int) -> small.Recipe:
    """The recipe of one run: that of the small model at another size, with rows of one length."""
    return small.Recipe(
        model={
            "hidden_size": hidden_size,
            "intermediate_size": round(2.67 * hidden_size / 32) * 32,
            "num_hidden_layers": 4,
            "num_attention_heads": hidden_size // 32,
            "num_key_value_heads": hidden_size // 64,
            "max_position_embeddings": ROW,
            "rope_theta": 10000.0,
            "plt_num_loops": loops,
            "plt_cross_loop_shift": shift,
        },
        vocab_size=vocab_size,
        tokens=tokens,
        tokens_per_step=4 * ROW,
        row=ROW,
        early_row=ROW,
        warmup_steps=20,
        save_steps=100,
        eval_steps=10**9,
        log_steps=10,
        seed=seed,
    )


def run(out: Path, recipe: small.Recipe, texts: int, stdlib: Path | None = None) -> dict:
    """Trains one model and measures it on `texts` held-out files, unless `out` has its metrics; returns these."""
    done = out / "metrics.json"
    if done.exists():
        return json.loads(done.read_text())
    start = time.perf_counter()
    trainer = small.train(out, recipe, stdlib, prepared=out.parent / "data")
    tokenizer, _, _, manifest = small.prepare(out.parent / "data", recipe, stdlib)
    documents = evaluate.heldout_documents(manifest, stdlib)[:texts]
    model = trainer.model.eval()
    losses = [[entry["step"], round(entry["loss"], 4)] for entry in trainer.state.log_history if "loss" in entry]
    metrics = {
        "loops": model.config.plt_num_loops,
        "shift": model.config.plt_cross_loop_shift,
        "seed": recipe.seed,
        "parameters": model.num_parameters(),
        "tokens": recipe.steps * recipe.tokens_per_step,
        "seconds": round(time.perf_counter() - start, 1),
        "bits_per_byte": {r: round(bits_per_byte(model, tokenizer, documents, r), 4) for r in LOOPS},
        "losses": losses,
    }
    done.write_text(json.dumps(metrics) + "\n")
    return json.loads(done.read_text())


def bits_per_byte(model, tokenizer, documents: list[data.Document], num_loops: int) -> float:
    """Bits per byte of the documents, in windows of one row's length."""
    encoded = bpe.encode_documents(tokenizer, [document.text for document in documents])
    end = tokenizer.eos_token_id
    bits = sum(evaluate.document_bits(model, ids, end, num_loops, window=ROW, stride=ROW // 2) for ids in encoded)
    return bits / sum(document.num_bytes for document in documents)


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % confidence interval by Student's t; infinite for one value."""
    count = len(values)
    if count == 1:
        return values[0], math.inf
    return statistics.mean(values), STUDENT_T[count] * statistics.stdev(values) / math.sqrt(count)


def groups(metrics: list[dict]) -> dict[tuple[int, bool], list[dict]]:
    """The runs of each configuration, over seeds."""
    found = {}
    for entry in metrics:
        found.setdefault((entry["loops"], entry["shift"]), []).append(entry)
    return found


def table(metrics: list[dict]) -> str:
    """Held-out bits per byte of each configuration at its own number of loops and at all others, as Markdown."""
    lines = ["| trained with | seeds | bits/byte | " + " | ".join(f"run with R = {r}" for r in LOOPS) + " |"]
    lines.append("|---" * (3 + len(LOOPS)) + "|")
    for (loops, shift), runs in sorted(groups(metrics).items(), key=lambda item: (item[0][0], not item[0][1])):
        name = f"R = {loops}" + ("" if loops == 1 else ", shift" if shift else ", no shift")
        mean, half = mean_and_interval([entry["bits_per_byte"][str(loops)] for entry in runs])
        others = [statistics.mean(entry["bits_per_byte"][str(r)] for entry in runs) for r in LOOPS]
        cells = " | ".join(f"{value:.3f}" for value in others)
        lines.append(f"| {name} | {len(runs)} | **{mean:.3f} ± {half:.3f}** | {cells} |")
    return "\n".join(lines)


def draw(path: Path, metrics: list[dict]) -> None:
    """Two panels: bits per byte over R with intervals, and the loss curves of the first seed."""
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    found = groups(metrics)
    for shift, style, label in ((True, "o-", "with the shift"), (False, "s--", "without")):
        points = [
            (loops, *mean_and_interval([entry["bits_per_byte"][str(loops)] for entry in runs]))
            for (loops, shifted), runs in sorted(found.items())
            if shifted is shift or loops == 1
        ]
        if points:
            x, y, error = zip(*points, strict=True)
            left.errorbar(x, y, yerr=[e if math.isfinite(e) else 0 for e in error], fmt=style, capsize=3, label=label)
    left.set(xlabel="loops R", ylabel="held-out bits per byte", xticks=LOOPS)
    for (loops, shift), runs in sorted(found.items()):
        name = f"R = {loops}" + ("" if shift else ", no shift")
        steps, losses = zip(*runs[0]["losses"], strict=True)
        right.plot(steps, losses, "-" if shift else "--", label=name, linewidth=1)
    right.set(xlabel="step", ylabel="training loss, nats per token")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None, stdlib: Path | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--tokens", type=int, default=400_000, help="training tokens of each run")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size, a multiple of 64")
    parser.add_argument("--vocab", type=int, default=4096, help="entries of the tokenizer, which all runs share")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--loops", type=int, nargs="+", default=list(LOOPS))
    parser.add_argument("--texts", type=int, default=12, help="held-out files to measure with")
    args = parser.parse_args(argv)
    if args.hidden < 64 or args.hidden % 64:
        parser.error("--hidden must be a multiple of 64.")
    if not 1 <= args.seeds <= max(STUDENT_T) or min(args.loops) < 1 or args.texts < 1:
        parser.error(f"--seeds must be 1 to {max(STUDENT_T)}, --loops and --texts at least 1.")
    metrics = []
    for seed in range(args.seeds):
        for loops in args.loops:
            for shift in (True, False) if loops > 1 else (True,):
                name = f"r{loops}{'' if shift else '-no-shift'}-seed{seed}"
                print(f"== {name}", flush=True)
                recipe = recipe_of(loops, shift, seed, args.tokens, args.hidden, args.vocab)
                metrics.append(run(args.out / name, recipe, args.texts, stdlib))
        # After every seed: a family that is not complete is one with fewer seeds.
        (args.out / "metrics.json").write_text(json.dumps(metrics) + "\n")
        (args.out / "family.md").write_text(table(metrics) + "\n")
        draw(args.out / "family.png", metrics)
    print(table(metrics))
    print(json.dumps({"runs": len(metrics), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
