# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Tasks where depth matters: follow a state move by move, see `texts.py`.

    python -m iquest_plt.science.tracking --out runs/tracking --task five

Loops add depth, and written steps add tokens: R loops over T tokens cost as much as one loop over R · T tokens. With
`--pack 4`, training rows hold four texts after one another, as in language modelling. Models then know longer distances
than those within a trained text, so that a test on longer texts does not fail for lack of trained positions.

Only the answers are trained and tested. In a test the model reads its own earlier answers, not the right ones. A CPU
learns the easier tasks in minutes:

    python -m iquest_plt.science.tracking --out runs/tracking --task three --layers 1 --size 64 --steps 1500 --rows 64
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from ..configuration_plt import IQuestPLTCoderConfig
from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..training.compiled import CompiledTraining
from ..training.divergence import DivergedError
from ..training.recipe import Recipe
from ..training.run_files import write_json
from ..utils.scripts import RESUME, one_line_errors
from ..utils.timing import environment
from .cells import CELLS as ALL_CELLS
from .cells import Cell, cell_of, offset_shares, start_offset
from .results import current_commit, read_results
from .texts import TASKS, Task, tested_lengths


TEST_TEXTS = 512


class TrackingTraining(CompiledTraining):
    """Trains on fresh texts of `length` moves, `pack` texts per row. Each step draws one of `blocks` for its texts."""

    def __init__(
        self,
        model,
        recipe: Recipe,
        task: Task,
        length: int,
        blocks: Sequence[int],
        pack: int = 1,
        device: torch.device | str = "cpu",
        compiled: bool = True,
    ):
        self.task, self.length, self.blocks, self.pack = task, length, blocks, pack
        self.generator = torch.Generator().manual_seed(recipe.seed)
        super().__init__(model, recipe, None, torch.device(device), compiled)

    def batch(self, step: int) -> torch.Tensor:
        block = self.blocks[int(torch.randint(len(self.blocks), (), generator=self.generator))]
        count = self.rows_per_step * self.pack
        texts, is_answer = self.task.texts(count, self.length, block, self.generator)
        # Positions whose next token is an answer.
        self.places = is_answer.repeat(self.pack)[1:].nonzero().flatten().to(self.device)
        return texts.view(self.rows_per_step, -1).to(self.device)

    def loss_of(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model.lm_head(states[:, self.places]).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, self.places + 1].flatten())


@torch.no_grad()
def accuracy(model, task: Task, length: int, block: int, seed: int, device: torch.device) -> float:
    """Returns the share of texts whose last answer is right, when the model reads the answers that it wrote itself."""
    ids, is_answer = task.texts(TEST_TEXTS, length, block, torch.Generator().manual_seed(10_000 + seed))
    ids = ids.to(device)
    right = ids[:, -task.answer_length :].clone()  # because the answers are overwritten
    for place in is_answer.nonzero().flatten().tolist():
        logits = model(ids[:, :place], use_cache=False, logits_to_keep=1).logits[:, -1]
        ids[:, place] = logits[:, task.first_answer :].argmax(-1) + task.first_answer
    return (ids[:, -task.answer_length :] == right).all(dim=1).float().mean().item()


def make_model(cell: Cell, vocabulary: int, layers: int, size: int, seed: int) -> IQuestPLTCoderForCausalLM:
    config = IQuestPLTCoderConfig(
        vocab_size=vocabulary,
        hidden_size=size,
        intermediate_size=3 * size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        plt_window_size=[64, 0],
        plt_gate_use_hidden_states=True,
        plt_emb_scale=0.707,
        plt_hidden_scale=0.5,
        **cell.fields,
    )
    torch.manual_seed(seed)
    # For such short texts, eager attention takes a third of the time on a CPU.
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    return IQuestPLTCoderForCausalLM._from_config(config, attn_implementation=attention, dtype=torch.float32)


SETTINGS = ("task", "length", "blocks", "pack", "layers", "size", "steps", "rows")  # options that distinguish runs


def run(cell: Cell, seed: int, args: argparse.Namespace) -> dict:
    """Trains one model, and tests it with each number of moves between answers, at the trained length and twice it."""
    task, rows = TASKS[args.task](), args.rows
    tokens = {k: task.texts(1, args.length, k, torch.Generator())[0].shape[1] for k in args.blocks}
    row = args.pack * max(tokens.values())
    recipe = Recipe(
        tokens=args.steps * rows * row,
        tokens_per_step=rows * row,
        row=row,
        muon_lr=0.01,
        adamw_lr=0.003,
        embedding_lr=0.003,
        weight_decay=0.0,
        log_steps=50,
        seed=seed,
    )
    model = make_model(cell, task.vocabulary, args.layers, args.size, seed)
    start_offset(model, cell)
    training = TrackingTraining(model, recipe, task, args.length, args.blocks, args.pack, args.device, args.compile)
    history = training.train()
    model = training.trained_model()
    found: dict[str, dict] = {
        str(k): {
            str(n): round(accuracy(model, task, n, k, seed, training.device), 4) for n in tested_lengths(args.length)
        }
        for k in args.blocks
    }
    return asdict(cell) | {
        "name": str(cell),
        "seed": seed,
        "texts": args.steps * rows * args.pack,
        **{name: getattr(args, name) for name in SETTINGS},
        "tokens_per_text": {str(k): count for k, count in tokens.items()},
        "seconds": round(history.seconds, 1),
        "losses": history.losses,
        "offset_shares": offset_shares(model),
        "accuracy": found,
        "environment": environment(args.device) | {"commit": current_commit()},
    }


CELLS = (Cell(1), Cell(2), Cell(2, False), Cell(4), Cell(4, False))
BLOCKS = (1, 2, 4, 8)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=list(TASKS), default="five", help="permutations of things, or assignments")
    parser.add_argument("--length", type=int, default=16, help="moves per training text; tests have these and twice")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="hidden size")
    parser.add_argument("--cells", nargs="+", default=[str(cell) for cell in CELLS], help="models; see cells.py")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=256, help="rows per step")
    parser.add_argument("--pack", type=int, default=1, help="texts per training row")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=list(BLOCKS), help="moves between answers, drawn anew for each step"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    args = parser.parse_args(argv)
    wrong = [block for block in args.blocks if block < 1 or args.length % block]
    if wrong:
        parser.error(f"--blocks must divide {args.length}, got {wrong[0]}.")
    unknown = sorted(set(args.cells) - set(ALL_CELLS))
    if unknown:
        parser.error(f"unknown cell {unknown[0]!r}; choose from: {'; '.join(ALL_CELLS)}.")
    cells = [ALL_CELLS[name] for name in args.cells]
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "tracking.json"
    runs = read_results(file)
    with one_line_errors(DivergedError, advice=RESUME):
        for seed, cell in itertools.product(range(args.seeds), cells):
            wanted = {"seed": seed} | {name: getattr(args, name) for name in SETTINGS}
            if any(cell_of(known) == cell and wanted.items() <= known.items() for known in runs):
                continue
            runs.append(run(cell, seed, args))
            write_json(file, runs, indent=None)
            result = runs[-1]
            print(f"{cell}, seed {seed}: {result['accuracy']}, {result['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
