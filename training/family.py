# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains the tiny family: matched models that differ in the number of loops, the shift, and the loops that are trained.

    python -m iquest_plt.training.family --out runs/family

All models see the same rows in the same order, with the same schedule. A seed sets the initial weights and the rows,
and each configuration is trained from each seed. Both papers trained only with the shift and could not measure its
cost: the runs without it are the control. Two elastic models, which support every number of loops, are compared with
models trained for one number. Finished runs are kept, and interrupted ones resume.

OUT/metrics.json has each run's held-out bits per byte and loss curve. OUT/family.md and family.png have the means with
95 % confidence intervals over seeds. OUT/RUN/model is the model of a run.
"""

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tokenization import bpe
from ..utils.figures import try_draw
from ..utils.scripts import RESUME, one_line_errors
from . import data, evaluate, small
from .divergence import DivergedError
from .elastic import ElasticLoops
from .run_files import read_json, write_json


LOOPS = (1, 2, 3, 4)
ROW = 512
TEXT = 2000  # characters measured at the start of each held-out file
# Two-sided 95 % quantiles of Student's t, for 2 to 10 seeds.
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True, order=True)
class Variant:
    """The settings that differ between models. `elastic` is "", or the `ElasticLoops` method: "weights" or "draws"."""

    elastic: str
    loops: int
    shift: bool

    def __str__(self) -> str:
        if self.elastic:
            return f"elastic to R = {self.loops}, {self.elastic}"
        return f"R = {self.loops}" + ("" if self.loops == 1 else ", shift" if self.shift else ", no shift")

    @property
    def folder(self) -> str:
        kind = f"-elastic-{self.elastic}" if self.elastic else "" if self.shift else "-no-shift"
        return f"r{self.loops}{kind}"

    @property
    def trainer_class(self) -> Callable[..., small.SmallTrainer]:
        counts = range(1, self.loops + 1)
        options: dict[str, dict] = {
            "": {},
            "weights": {"loop_loss_weights": [1.0 for _ in counts]},
            "draws": {"loop_counts": list(counts)},
        }
        return partial(ElasticSmallTrainer, **options[self.elastic])


def variants(loops: list[int]) -> list[Variant]:
    """Returns the models of one seed: each number of loops with and without the shift, and two elastic models."""
    fixed = [Variant("", count, shift) for count in loops for shift in ((True, False) if count > 1 else (True,))]
    elastic = [Variant(kind, max(loops), True) for kind in ("weights", "draws") if max(loops) > 1]
    return fixed + elastic


class ElasticSmallTrainer(ElasticLoops, small.SmallTrainer):
    """The small model's trainer with elastic loops. Without options it behaves like `SmallTrainer`."""

    def loop_loss(  # type: ignore[override]
        self,
        model: PreTrainedModel,
        states: torch.Tensor,
        labels: torch.Tensor,
        logits: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        return self.token_loss(model, states, labels)


def recipe_of(variant: Variant, seed: int, tokens: int, hidden_size: int, vocab_size: int) -> small.Recipe:
    """Returns the recipe of one run: the small model's at another size, with rows of one length."""
    return small.Recipe(
        packages=tuple(data.PACKAGES),
        model={
            "hidden_size": hidden_size,
            "intermediate_size": round(2.67 * hidden_size / 32) * 32,
            "num_hidden_layers": 4,
            "num_attention_heads": hidden_size // 32,
            "num_key_value_heads": hidden_size // 64,
            "max_position_embeddings": ROW,
            "rope_theta": 10000.0,
            "plt_num_loops": variant.loops,
            "plt_cross_loop_shift": variant.shift,
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


def run(out: Path, variant: Variant, recipe: small.Recipe, texts: int, stdlib: Path | None = None) -> dict:
    """
    Trains one model and measures it on the starts of `texts` held-out files, unless `out` has its metrics already.
    Returns the metrics. Raises ValueError if the run in `out` has another recipe or number of texts.
    """
    done, before = out / "metrics.json", out / "recipe.json"
    wanted = json.loads(json.dumps(asdict(recipe)))
    known = read_json(done) if done.exists() else {"texts": texts}
    if (before.exists() and read_json(before) != wanted) or known.get("texts", texts) != texts:
        raise ValueError(f"{out} has a run with other options. Choose a new --out.")
    if done.exists():
        return known
    start = time.perf_counter()
    trainer = small.train(out, recipe, stdlib, prepared=out.parent / "data", trainer_class=variant.trainer_class)
    tokenizer, _, _, manifest = small.prepare(out.parent / "data", recipe, stdlib)
    documents = evaluate.heldout_documents(manifest, stdlib)
    documents = [
        data.Document(document.path, document.text[:TEXT], document.split)
        for document in documents[:: math.ceil(len(documents) / texts)]
    ]
    model = trainer.model.eval()
    model.config.use_cache = True  # the trainer turned it off
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    losses = [[entry["step"], round(entry["loss"], 4)] for entry in trainer.state.log_history if "loss" in entry]
    metrics = {
        **asdict(variant),
        "seed": recipe.seed,
        "parameters": model.num_parameters(),
        "tokens": recipe.steps * recipe.tokens_per_step,
        "seconds": round(time.perf_counter() - start, 1),
        "texts": texts,
        "heldout_bytes": sum(document.num_bytes for document in documents),
        "bits_per_byte": {r: round(bits_per_byte(model, tokenizer, documents, r), 4) for r in LOOPS},
        "losses": losses,
    }
    write_json(done, metrics, indent=None)
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return read_json(done)


def bits_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: list[data.Document], num_loops: int
) -> float:
    """Measures bits per byte of the documents, in windows of the row length."""
    encoded = bpe.encode_documents(tokenizer, [document.text for document in documents])
    end = tokenizer.eos_token_id
    bits = sum(evaluate.document_bits(model, ids, end, num_loops, window=ROW, stride=ROW // 2) for ids in encoded)
    return bits / sum(document.num_bytes for document in documents)


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """Returns the mean, and half its 95 % confidence interval by Student's t; infinite for one value."""
    count = len(values)
    if count == 1:
        return values[0], math.inf
    return statistics.mean(values), STUDENT_T[count] * statistics.stdev(values) / math.sqrt(count)


def groups(metrics: list[dict]) -> dict[Variant, list[dict]]:
    """Groups the runs by variant."""
    found = {}
    for entry in metrics:
        variant = Variant(*(entry[field.name] for field in fields(Variant)))
        found.setdefault(variant, []).append(entry)
    return dict(sorted(found.items(), key=lambda item: (item[0].elastic, item[0].loops, not item[0].shift)))


def table(metrics: list[dict]) -> str:
    """Returns held-out bits per byte of each variant with 1, 2, … loops, as Markdown; trained numbers are in bold."""
    lines = ["| trained as | seeds | " + " | ".join(f"run with R = {r}" for r in LOOPS) + " |"]
    lines.append("|---" * (2 + len(LOOPS)) + "|")
    for variant, runs in groups(metrics).items():
        cells = []
        for r in LOOPS:
            mean, half = mean_and_interval([entry["bits_per_byte"][str(r)] for entry in runs])
            is_own = r == variant.loops or (variant.elastic and r < variant.loops)
            cells.append(f"**{mean:.3f} ± {half:.3f}**" if is_own else f"{mean:.3f}")
        lines.append(f"| {variant} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(metrics: list[dict], variant: Variant, num_loops: int, other: Variant) -> tuple[float, float] | None:
    """
    Returns the bits per byte of `variant` with `num_loops`, minus those of `other` with its own number, paired by seed:
    mean and half an interval. None if they share no seed.
    """
    found = groups(metrics)
    ours, theirs = (
        {entry["seed"]: entry["bits_per_byte"][str(r)] for entry in found.get(key, [])}
        for key, r in ((variant, num_loops), (other, other.loops))
    )
    values = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return mean_and_interval(values) if values else None


def gaps(metrics: list[dict]) -> str:
    """Returns the gain of looping, the cost of the shift, and the cost of elastic training, as Markdown."""
    pairs = []
    for variant in groups(metrics):
        if variant.elastic:
            for r in range(1, variant.loops + 1):
                pairs.append((f"{variant}, run with R = {r}, over R = {r} alone", variant, r, Variant("", r, True)))
        elif variant.loops > 1:
            pairs.append((f"{variant}, over R = 1", variant, variant.loops, Variant("", 1, True)))
            if not variant.shift:
                with_shift = Variant("", variant.loops, True)
                pairs.append((f"R = {variant.loops}, no shift over shift", variant, variant.loops, with_shift))
    lines = ["| difference, bits per byte | mean ± 95 % interval |", "|---|---|"]
    for name, variant, loops, other in pairs:
        found = difference(metrics, variant, loops, other)
        if found is not None:
            lines.append(f"| {name} | {found[0]:+.3f} ± {found[1]:.3f} |")
    return "\n".join(lines)


def draw(path: Path, metrics: list[dict]) -> None:
    """Draws bits per byte minus those of one loop, with intervals, and the loss curves of the first seed."""
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    found = groups(metrics)
    curves = {}
    for variant in found:
        if variant.elastic:
            curves[f"one model, elastic by {variant.elastic}"] = [(r, variant) for r in range(1, variant.loops + 1)]
        elif variant.loops > 1:
            name = "with the shift" if variant.shift else "without"
            curves.setdefault(name, []).append((variant.loops, variant))
    baseline = Variant("", 1, True)
    left.axhline(0, color="black", linewidth=1)
    for index, (name, points) in enumerate(curves.items()):
        known = [(r, difference(metrics, variant, r, baseline)) for r, variant in points]
        values = [(r + 0.05 * index, *value) for r, value in known if value is not None]
        if values:
            x, y, error = zip(*values, strict=True)
            bars = [half if math.isfinite(half) else 0 for half in error]
            left.errorbar(x, y, yerr=bars, fmt="os^v"[index], capsize=3, label=name)
    left.set(xlabel="loops R", ylabel="held-out bits per byte, over R = 1 of the same seed", xticks=LOOPS)
    for variant, runs in found.items():
        steps, losses = zip(*runs[0]["losses"], strict=True)
        style = ":" if variant.elastic else "-" if variant.shift else "--"
        right.plot(steps, losses, style, label=str(variant), linewidth=1)
    right.set(xlabel="step", ylabel="training loss, nats per token")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None, stdlib: Path | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--tokens", type=int, default=307_200, help="training tokens per run")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size, a multiple of 64")
    parser.add_argument("--vocab", type=int, default=4096, help="size of the tokenizer, which all runs share")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--loops", type=int, nargs="+", default=list(LOOPS))
    parser.add_argument("--texts", type=int, default=48, help="held-out files to measure with")
    args = parser.parse_args(argv)
    if args.hidden < 64 or args.hidden % 64:
        parser.error("--hidden must be a multiple of 64.")
    if not 1 <= args.seeds <= max(STUDENT_T) or args.texts < 1:
        parser.error(f"--seeds must be 1 to {max(STUDENT_T)}, --texts at least 1.")
    if not set(args.loops) <= set(LOOPS):
        parser.error(f"--loops must be among {', '.join(map(str, LOOPS))}.")
    if args.vocab < 300:
        parser.error("--vocab must be at least 300.")
    recipe = recipe_of(Variant("", 1, True), 0, args.tokens, args.hidden, args.vocab)
    if recipe.steps < recipe.log_steps:  # the picture needs a loss
        parser.error(f"--tokens must be at least {recipe.log_steps * recipe.tokens_per_step}.")
    with one_line_errors(DivergedError, advice=RESUME):
        train_all(args, stdlib)


def train_all(args: argparse.Namespace, stdlib: Path | None) -> None:
    """Trains the missing runs of the family, and writes the tables after every seed."""
    metrics = []
    for seed in range(args.seeds):
        for variant in variants(args.loops):
            name = f"{variant.folder}-seed{seed}"
            print(f"== {name}", flush=True)
            recipe = recipe_of(variant, seed, args.tokens, args.hidden, args.vocab)
            metrics.append(run(args.out / name, variant, recipe, args.texts, stdlib))
        # After every seed, so that an incomplete family is a complete one with fewer seeds.
        write_json(args.out / "metrics.json", metrics, indent=None)
        (args.out / "family.md").write_text(f"{table(metrics)}\n\n{gaps(metrics)}\n")
        try_draw("family.png", draw, args.out / "family.png", metrics)
    print(table(metrics))
    print(f"The models are in {args.out}/RUN/model, and family.md and family.png beside them.")
    print(json.dumps({"runs": len(metrics), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
