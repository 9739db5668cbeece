# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains the family of `cells.py`, seed by seed, on one GPU or slowly on a CPU:

    python -m iquest_plt.science.train --prepare --data runs/data --out runs/science --minutes 8

`--prepare` makes DATA from the standard library, and for the larger shape from wheels that pip downloads. DATA may also
be the folder of a run of `iquest_plt.training.small`: it holds `train.npy` or `train.npy.xz`, `heldout.npy`,
`data_manifest.json` and the tokenizer. OUT/runs.json is rewritten after every model. The same command goes on where it
stopped: finished models are kept. A model is only begun if it will probably be finished in time.
"""

import argparse
import hashlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.utils import logging

from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..training.compiled import CompiledTraining, seconds_per_step
from ..training.divergence import DivergedError
from ..training.recipe import Recipe, build_model, load_data, make_data
from ..training.run_files import write_json
from ..utils.scripts import RESUME, one_line_errors
from ..utils.timing import environment
from . import cells
from .cells import CELLS, CORE, Cell, cell_of
from .measure import heldout_rows, measure
from .results import current_commit, read_results


MAX_LOOPS = 5  # loops that every model is measured with
OVERHEAD = 1.0  # seconds for making a model and saving its results


class Family:
    """Trains and measures models. `runs` has the results."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.deadline = time.monotonic() + 60 * args.minutes
        self.shape = cells.SMOKE_SHAPE if args.smoke else cells.SHAPES[args.shape]
        self.row = self.shape["max_position_embeddings"]
        self.tokenizer, self.stream, heldout, manifest = load_data(args.data)
        totals = manifest["totals"]["heldout"]
        self.rows = heldout_rows(heldout, self.row, self.device)
        if args.smoke:
            self.rows = self.rows[:20]
        self.description = environment(str(self.device)) | {
            "commit": args.commit or current_commit(),
            "data_sha256": hashlib.sha256(self.stream.tobytes()).hexdigest(),
            "stream_tokens": len(self.stream),
            "heldout_bytes_per_token": totals["bytes"] / totals["tokens"],
        }
        self.file = args.out / "runs.json"
        self.runs = read_results(self.file)
        self.seconds_per_step: dict[Cell, float] = {}
        self.evaluation = 4.0  # seconds to measure a model

    def recipe(self, cell: Cell, seed: int):
        rows = 4 if self.args.smoke else self.args.rows
        return cells.recipe_of(cell, seed, self.args.tokens, self.shape, rows, len(self.tokenizer))

    def is_done(self, cell: Cell, seed: int) -> bool:
        return any((cell_of(run), run["seed"], run["tokens"]) == (cell, seed, self.args.tokens) for run in self.runs)

    def training(self, cell: Cell, seed: int) -> CompiledTraining:
        recipe = self.recipe(cell, seed)
        model = build_model(recipe, self.tokenizer, attention="sdpa" if self.device.type == "cuda" else None)
        cells.start_offset(model, cell)
        options = {"compiled": not self.args.smoke, "graph": not self.args.no_graph, "elastic": cell.elastic}
        return CompiledTraining(model, recipe, self.stream, self.device, **options)

    def calibrate(self, chosen: list[Cell]) -> None:
        """Measures the seconds per step of each cell, after compiling."""
        for cell in chosen:
            start = time.monotonic()
            training = self.training(cell, 0)
            seconds = self.seconds_per_step[cell] = seconds_per_step(training)
            whole = time.monotonic() - start
            speed = f"{1e3 * seconds:.1f} ms a step, {training.recipe.tokens_per_step / seconds:,.0f} tokens/s"
            print(f"{cell}: {speed}, {whole:.1f} s with compiling", flush=True)
        start = time.monotonic()
        measure(training.trained_model(), self.rows, MAX_LOOPS)
        self.evaluation = time.monotonic() - start
        print(f"measuring one model: {self.evaluation:.1f} s", flush=True)

    def fit(self, chosen: list[Cell]) -> None:
        """Cuts the number of tokens for all cells alike, so that every seed of every cell is trained in time."""
        left = self.deadline - time.monotonic() - self.args.seeds * len(chosen) * (self.evaluation + OVERHEAD)
        seconds = self.args.seeds * sum(self.seconds_per_step[cell] for cell in chosen)
        per_step = self.recipe(chosen[0], 0).tokens_per_step
        steps = int(left / seconds)
        self.args.tokens = min(self.args.tokens, max(1, steps) * per_step)
        print(f"{self.args.tokens:,} tokens per model", flush=True)

    def run(self, cell: Cell, seed: int) -> None:
        """Trains and measures one model, and adds the result to the file."""
        training = self.training(cell, seed)
        history = training.train()
        model = training.trained_model()
        result = cells.describe(cell, model.config) | {
            "seed": seed,
            "tokens": self.args.tokens,
            "parameters": model.num_parameters(),
            "non_embedding_parameters": cells.non_embedding_parameters(model),
            "recipe": asdict(training.recipe),
            "environment": self.description,
            "seconds": round(history.seconds, 1),
            "tokens_per_second": round(history.tokens_per_second),
            "losses": history.losses,
            "offset_shares": cells.offset_shares(model),
            "heldout": measure(model, self.rows, MAX_LOOPS),
        }
        self.runs.append(result)
        write_json(self.file, self.runs, indent=None)
        self.seconds_per_step.setdefault(cell, history.seconds / training.recipe.steps)
        if str(cell) in self.args.keep:
            self.save(model, f"{cell}, seed {seed}".replace(" ", "").replace(",", "-"))
        found = [f"{sum(nats) / self.rows[:, 1:].numel():.4f}" for nats in result["heldout"]["nats"]]
        print(f"{cell}, seed {seed}: {history.seconds:.1f} s, held-out nats by loop {' '.join(found)}", flush=True)

    def save(self, model: IQuestPLTCoderForCausalLM, name: str) -> None:
        """Saves a model with what its held-out text needs, for experiments without training."""
        model.save_pretrained(self.args.out / name)
        self.tokenizer.save_pretrained(self.args.out / name)
        shutil.copy(self.args.data / "data_manifest.json", self.args.out / name)

    def fits(self, cell: Cell) -> bool:
        known = self.seconds_per_step
        guess = max(known.values(), default=0.0)
        needed = known.get(cell, guess) * self.recipe(cell, 0).steps + self.evaluation + OVERHEAD
        return time.monotonic() + needed < self.deadline

    def train_all(self, order: Iterator[tuple[Cell, int]]) -> None:
        for cell, seed in order:
            if self.is_done(cell, seed):
                continue
            if not self.fits(cell):
                print(f"{cell}, seed {seed}: left out, too little time", flush=True)
                continue
            self.run(cell, seed)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def order_of(chosen: list[Cell], seeds: int) -> Iterator[tuple[Cell, int]]:
    """Returns the runs in order, seed by seed, so that an incomplete family is a complete one with fewer seeds."""
    return ((cell, seed) for seed in range(seeds) for cell in chosen)


def main(argv: list[str] | None = None, stdlib: Path | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of token streams and their tokenizer")
    parser.add_argument("--prepare", action="store_true", help="make DATA first, unless it exists")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=1e6, help="time limit")
    parser.add_argument("--shape", choices=list(cells.SHAPES), default="base", help="width of the models; see cells.py")
    parser.add_argument("--tokens", type=int, default=63_000_000, help="training tokens per model")
    parser.add_argument("--rows", type=int, default=64, help="rows per step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", nargs="+", default=[str(cell) for cell in CORE], help="names; see cells.py")
    parser.add_argument("--keep", nargs="*", default=[], help="cells whose models are saved")
    parser.add_argument("--calibrate", action="store_true", help="only measure the speed of each cell")
    parser.add_argument("--fit", action="store_true", help="cut the tokens so that all models fit into --minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-graph", action="store_true", help="do not record training steps as CUDA graphs")
    parser.add_argument("--commit", help="commit to record; default: that of the checkout")
    parser.add_argument("--smoke", action="store_true", help="tiny uncompiled models")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.cells + args.keep) - set(CELLS))
    if unknown:
        parser.error(f"unknown cell {unknown[0]!r}; choose from: {'; '.join(CELLS)}.")
    logging.set_verbosity_error()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [CELLS[name] for name in args.cells]
    with one_line_errors(DivergedError, advice=RESUME):
        if args.prepare:
            make_data(args.data, Recipe(**cells.TEXTS[args.shape]), stdlib)
        elif not (args.data / "data_manifest.json").exists():
            raise ValueError(f"{args.data} holds no data. Add --prepare to make them.")
        family = Family(args)
        if args.calibrate or args.fit:
            family.calibrate(chosen)
        if args.fit:
            family.fit(chosen)
        if not args.calibrate:
            family.train_all(order_of(chosen, args.seeds))


if __name__ == "__main__":
    main()
