# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
A task where depth matters: follow a state through permutations of three or five things.

    python -m iquest_plt.science.tracking --out runs/tracking

A text is a start token and then blocks of k moves, each followed by the state after it, the product of all moves so
far. The four moves of five things generate all 120 permutations, a group in which products need a depth that grows with
their length, unless TC⁰ = NC¹ (Barrington, 1989; Liu et al., arXiv 2210.10749). With k = 1 every step is written out,
and a model only has to apply one move to a state that it can read: a chain of thought. With larger k it must apply k
moves at once. Loops add depth, and written steps add tokens: R loops over T tokens cost as much as one loop over R · T
tokens.

`--things 3` is the easier variant: two moves, and six states. Its products need only a constant depth, but one layer
has less than that. A CPU learns it in minutes:

    python -m iquest_plt.science.tracking --out runs/tracking --things 3 --layers 1 --size 64 --steps 1500 --rows 64

Only the states are trained and tested. In a test the model reads its own earlier states, not the right ones.
"""

import argparse
import itertools
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from ..configuration_plt import IQuestPLTCoderConfig
from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..training.compiled import CompiledTraining
from ..training.recipe import Recipe
from ..training.run_files import write_json
from ..utils.timing import environment
from .cells import CELLS as ALL_CELLS
from .cells import Cell
from .results import read_results


# By the number of things. A move names, for each place, the place that its thing comes from.
MOVES = {
    3: ((1, 0, 2), (1, 2, 0)),
    5: ((1, 0, 2, 3, 4), (1, 2, 3, 4, 0), (0, 1, 3, 2, 4), (2, 0, 1, 3, 4)),
}
TRAINED_LENGTH, LENGTHS = 16, (16, 32)  # moves per text, in training and in tests
TEST_TEXTS = 512


class Permutations:
    """
    All permutations of 3 or 5 things, and the moves between them. Token ids: moves, the start token, states.

    Attributes:
        transitions: the state after a move, (states, moves).
    """

    def __init__(self, things: int):
        self.moves = MOVES[things]
        self.states = list(itertools.permutations(range(things)))  # the first is the identity
        number = {state: index for index, state in enumerate(self.states)}
        rows = [[number[tuple(state[place] for place in move)] for move in self.moves] for state in self.states]
        self.transitions = torch.tensor(rows)
        self.start = len(self.moves)
        self.first_state = self.start + 1
        self.vocabulary = self.first_state + len(self.states)

    def texts(
        self, count: int, length: int, block: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns ids (count, 1 + length + length / block), and which columns are states.

        Raises:
            ValueError: if `length` is not a multiple of `block`.
        """
        if length % block:
            raise ValueError(f"A text of {length} moves cannot be cut into blocks of {block}.")
        moves = torch.randint(len(self.moves), (count, length), generator=generator)
        state = torch.zeros(count, dtype=torch.long)
        columns, is_state = [torch.full((count,), self.start)], [False]
        for step in range(length):
            state = self.transitions[state, moves[:, step]]
            columns.append(moves[:, step])
            is_state.append(False)
            if (step + 1) % block == 0:
                columns.append(self.first_state + state)
                is_state.append(True)
        return torch.stack(columns, dim=1), torch.tensor(is_state)


class TrackingTraining(CompiledTraining):
    """Trains on fresh texts with blocks of `block` moves."""

    def __init__(
        self, model, recipe: Recipe, group: Permutations, block: int, device: torch.device, compiled: bool = True
    ):
        self.group, self.block = group, block
        self.generator = torch.Generator().manual_seed(recipe.seed)
        super().__init__(model, recipe, None, device, compiled)
        _, is_state = group.texts(1, TRAINED_LENGTH, block, self.generator)
        self.places = is_state[1:].nonzero().flatten().to(device)  # positions whose next token is a state

    def batch(self, step: int) -> torch.Tensor:
        return self.group.texts(self.rows_per_step, TRAINED_LENGTH, self.block, self.generator)[0].to(self.device)

    def loss_of(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model.lm_head(states[:, self.places]).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, self.places + 1].flatten())


@torch.no_grad()
def accuracy(model, group: Permutations, length: int, block: int, seed: int, device: torch.device) -> float:
    """Returns the share of texts whose last state is right, when the model reads the states that it wrote itself."""
    ids, is_state = group.texts(TEST_TEXTS, length, block, torch.Generator().manual_seed(10_000 + seed))
    ids, right = ids.to(device), ids[:, -1].clone().to(device)  # a clone, because the states are overwritten
    for place in is_state.nonzero().flatten().tolist():
        logits = model(ids[:, :place], use_cache=False, logits_to_keep=1).logits[:, -1]
        ids[:, place] = logits[:, group.first_state :].argmax(-1) + group.first_state
    return (ids[:, -1] == right).float().mean().item()


def make_model(cell: Cell, vocabulary: int, layers: int, size: int, seed: int) -> IQuestPLTCoderForCausalLM:
    config = IQuestPLTCoderConfig(
        vocab_size=vocabulary,
        hidden_size=size,
        intermediate_size=3 * size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
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


SETTINGS = ("things", "layers", "size", "steps", "rows")  # options that distinguish runs


def run(cell: Cell, block: int, seed: int, args: argparse.Namespace) -> dict:
    """Trains and tests one model."""
    device, group = torch.device(args.device), Permutations(args.things)
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
    model = make_model(cell, group.vocabulary, args.layers, args.size, seed)
    training = TrackingTraining(model, recipe, group, block, device, args.compile)
    history = training.train()
    model = training.trained_model()
    return asdict(cell) | {
        "name": str(cell),
        "block": block,
        "seed": seed,
        **{name: getattr(args, name) for name in SETTINGS},
        "tokens_per_text": length,
        "loop_tokens_per_text": length * cell.loops,
        "seconds": round(history.seconds, 1),
        "losses": history.losses,
        "accuracy": {str(n): round(accuracy(model, group, n, block, seed, device), 4) for n in LENGTHS},
        "environment": environment(args.device),
    }


CELLS = (Cell(1), Cell(2), Cell(2, False), Cell(4), Cell(4, False))
BLOCKS = (4, 16, 2, 1, 8)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--things", type=int, choices=sorted(MOVES), default=5, help="things to permute")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="hidden size")
    parser.add_argument("--cells", nargs="+", default=[str(cell) for cell in CELLS], help="models; see cells.py")
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
    unknown = sorted(set(args.cells) - set(ALL_CELLS))
    if unknown:
        parser.error(f"unknown cell {unknown[0]!r}; choose from: {'; '.join(ALL_CELLS)}.")
    cells = [ALL_CELLS[name] for name in args.cells]
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "tracking.json"
    runs = read_results(file)
    try:
        for seed, block, cell in itertools.product(range(args.seeds), args.blocks, cells):
            wanted = asdict(cell) | {"seed": seed, "block": block}
            wanted |= {name: getattr(args, name) for name in SETTINGS}
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
