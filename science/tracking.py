# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
A task where depth matters: follow a state through permutations of five things.

    python -m iquest_plt.science.tracking --out runs/tracking

A text is a start token and then blocks of k moves, each followed by the state after it, the product of all moves so
far. The four moves generate all 120 permutations of five things, a group in which no constant depth computes such
products (Barrington, 1989; Liu et al., arXiv 2210.10749). With k = 1 every step is written out, and a model only has to
apply one move to a state that it can read: a chain of thought. With larger k it must apply k moves at once. Loops add
depth, and written steps add tokens: R loops over T tokens cost as much as one loop over R · T tokens.

Only the states are trained and tested. In a test the model reads its own earlier states, not the right ones.
"""

import argparse
import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from ..configuration_plt import IQuestPLTCoderConfig
from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..training.compiled import CompiledTraining
from ..training.run_files import write_json
from ..training.small import Recipe
from ..utils.timing import environment
from .cells import Cell


STATES = list(itertools.permutations(range(5)))
MOVES = ((1, 0, 2, 3, 4), (1, 2, 3, 4, 0), (0, 1, 3, 2, 4), (2, 0, 1, 3, 4))
START, FIRST_STATE = len(MOVES), len(MOVES) + 1  # token ids: moves, the start token, states
VOCABULARY = FIRST_STATE + len(STATES)
TRAINED_LENGTH, LENGTHS = 16, (16, 32)  # moves per text, in training and in tests
TEST_TEXTS = 512
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}


def _transitions() -> torch.Tensor:
    """Returns the state after a move, (states, moves)."""
    number = {state: index for index, state in enumerate(STATES)}
    rows = [[number[tuple(state[place] for place in move)] for move in MOVES] for state in STATES]
    return torch.tensor(rows)


TRANSITIONS = _transitions()


def texts(count: int, length: int, block: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns ids (count, 1 + length + length / block), and which of them are states (same length).

    Raises:
        ValueError: if `length` is not a multiple of `block`.
    """
    if length % block:
        raise ValueError(f"A text of {length} moves cannot be cut into blocks of {block}.")
    moves = torch.randint(len(MOVES), (count, length), generator=generator)
    state = torch.zeros(count, dtype=torch.long)
    columns, is_state = [torch.full((count,), START)], [False]
    for step in range(length):
        state = TRANSITIONS[state, moves[:, step]]
        columns.append(moves[:, step])
        is_state.append(False)
        if (step + 1) % block == 0:
            columns.append(FIRST_STATE + state)
            is_state.append(True)
    return torch.stack(columns, dim=1), torch.tensor(is_state)


class TrackingTraining(CompiledTraining):
    """Trains on fresh texts with blocks of `block` moves."""

    def __init__(self, model, recipe: Recipe, block: int, rows: int, device: torch.device, compiled: bool = True):
        self.block, self.rows_of_step = block, rows
        self.generator = torch.Generator().manual_seed(recipe.seed)
        super().__init__(model, recipe, None, device, compiled)
        _, is_state = texts(1, TRAINED_LENGTH, block, self.generator)
        self.places = is_state[1:].nonzero().flatten().to(device)  # positions whose next token is a state

    def batch(self, step: int) -> torch.Tensor:
        return texts(self.rows_of_step, TRAINED_LENGTH, self.block, self.generator)[0].to(self.device)

    def loss_of(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model.lm_head(states[:, self.places]).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, self.places + 1].flatten())


@torch.no_grad()
def accuracy(model, length: int, block: int, seed: int, device: torch.device) -> float:
    """Returns the share of texts whose last state is right, when the model reads the states that it wrote itself."""
    ids, is_state = texts(TEST_TEXTS, length, block, torch.Generator().manual_seed(10_000 + seed))
    ids, right = ids.to(device), ids[:, -1].clone().to(device)  # a clone, because the states are overwritten
    for place in is_state.nonzero().flatten().tolist():
        logits = model(ids[:, :place], use_cache=False, logits_to_keep=1).logits[:, -1]
        ids[:, place] = logits[:, FIRST_STATE:].argmax(-1) + FIRST_STATE
    return (ids[:, -1] == right).float().mean().item()


def make_model(cell: Cell, seed: int) -> IQuestPLTCoderForCausalLM:
    fields = {"vocab_size": VOCABULARY, "plt_window_size": [64, 0], "plt_gate_use_hidden_states": True}
    fields |= {"plt_emb_scale": 0.707, "plt_hidden_scale": 0.5, "bos_token_id": None, "eos_token_id": None}
    config = IQuestPLTCoderConfig(**fields | SHAPE | cell.fields)
    torch.manual_seed(seed)
    return IQuestPLTCoderForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def run(cell: Cell, block: int, seed: int, args: argparse.Namespace) -> dict:
    """Trains and tests one model."""
    device = torch.device(args.device)
    length = 1 + TRAINED_LENGTH + TRAINED_LENGTH // block
    recipe = Recipe(
        tokens=args.steps * args.rows * length,
        tokens_per_step=args.rows * length,
        row=length,
        muon_lr=0.01,
        adamw_lr=0.003,
        embedding_lr=0.003,
        weight_decay=0.0,
        log_steps=50,
        seed=seed,
    )
    training = TrackingTraining(make_model(cell, seed), recipe, block, args.rows, device, args.compile)
    history = training.train()
    model = training.trained_model()
    return asdict(cell) | {
        "name": str(cell),
        "block": block,
        "seed": seed,
        "steps": args.steps,
        "rows": args.rows,
        "tokens_per_text": length,
        "loop_tokens_per_text": length * cell.loops,
        "seconds": round(history.seconds, 1),
        "losses": history.losses,
        "accuracy": {str(n): round(accuracy(model, n, block, seed, device), 4) for n in LENGTHS},
        "environment": environment(args.device),
    }


CELLS = (Cell(1), Cell(2), Cell(2, False), Cell(4), Cell(4, False))
BLOCKS = (4, 16, 2, 1, 8)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=256, help="texts per step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS, help="moves between written states")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    args = parser.parse_args(argv)
    wrong = [block for block in args.blocks if block < 1 or TRAINED_LENGTH % block]
    if wrong:
        parser.error(f"--blocks must divide {TRAINED_LENGTH}, got {wrong[0]}.")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "tracking.json"
    runs = json.loads(file.read_text()) if file.exists() else []
    try:
        for seed, block, cell in itertools.product(range(args.seeds), args.blocks, CELLS):
            wanted = asdict(cell) | {"seed": seed, "block": block, "steps": args.steps, "rows": args.rows}
            if any(all(known[name] == value for name, value in wanted.items()) for known in runs):
                continue
            runs.append(run(cell, block, seed, args))
            write_json(file, runs, indent=None)
            result = runs[-1]
            print(f"{cell}, k = {block}, seed {seed}: {result['accuracy']}, {result['seconds']} s", flush=True)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
