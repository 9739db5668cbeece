# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The models of the family. They differ in the number of loops, the shift and the attention of later loops."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from ..configuration_plt import IQuestPLTCoderConfig
from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..training.data import WHEELS
from ..training.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """
    A configuration: loops, `plt_cross_loop_shift` and `plt_loop_attention`. An elastic model is trained with the mean
    loss of 1 to `loops` loops. A learned offset starts with `own_share` for the token itself, or else with 0.02.
    """

    loops: int
    shift: bool | str = True
    attention: str = "gated"
    elastic: bool = False
    own_share: float | None = None

    def __str__(self) -> str:
        names = {True: "shift", False: "no shift", "learned": "learned offset", "mixed": "mix of four"}
        parts = [f"R = {self.loops}"]
        if self.loops > 1:
            start = "" if self.own_share is None else f" from {self.own_share:.0%}"
            parts.append(names[self.shift] + start)
            parts += [] if self.attention == "gated" else [f"{self.attention} attention"]
            parts += ["elastic"] if self.elastic else []
        return ", ".join(parts)

    @property
    def fields(self) -> dict:
        """The fields of the configuration."""
        return {
            "plt_num_loops": self.loops,
            "plt_cross_loop_shift": self.shift,
            "plt_loop_attention": self.attention,
        }


# What the family is for: does looping pay, and what does the shift cost?
CORE = (Cell(1), Cell(2), Cell(2, False), Cell(3), Cell(3, False))
# Which part makes a further loop fail?
FURTHER = (
    Cell(4),
    Cell(4, False),
    Cell(3, "learned"),
    Cell(3, "mixed"),
    Cell(3, True, "joint"),
    Cell(3, True, "shared"),
    Cell(3, True, "own"),
    Cell(2, "learned"),
    Cell(2, True, "joint"),
    Cell(5),
    Cell(5, False),
    Cell(3, elastic=True),  # every loop can predict, for experiments without training
)
# The same parts on a task where loops help: see `tracking.py`.
TRACKED = (
    Cell(4, "learned"),
    Cell(4, False, "joint"),  # as LPT (arXiv 2610.02383): no shift, one softmax
    Cell(2, False, "joint"),
    Cell(2, "mixed"),
    Cell(2, True, "shared"),
    Cell(2, True, "own"),
    Cell(2, "learned", own_share=0.5),
    Cell(2, "learned", own_share=0.98),
    Cell(4, "learned", own_share=0.5),
)
CELLS = {str(cell): cell for cell in CORE + FURTHER + TRACKED}

ROW = 1024  # tokens
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": ROW,  # and the length of a training row
    "rope_theta": 10000.0,
}
# A quarter of the width, so 0.2 million parameters without embeddings: 20 tokens per parameter take a CPU minutes.
SMALL_SHAPE = SHAPE | {"hidden_size": 64, "intermediate_size": 192, "max_position_embeddings": 512}
SMOKE_SHAPE = SHAPE | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
SHAPES = {"base": SHAPE, "small": SMALL_SHAPE}
# What each of them reads, by default: fields of the recipe.
TEXTS: dict[str, dict[str, Any]] = {"base": {"wheels": tuple(WHEELS)}, "small": {"vocab_size": 2048}}


def cell_of(run: dict) -> Cell:
    """Returns the cell of a run's metrics. Older ones do not name fields that were added later."""
    return Cell(**{field.name: run[field.name] for field in fields(Cell) if field.name in run})


def order(cell: Cell) -> tuple:
    """Sorts cells for tables: by what differs from the model of the papers, then by loops."""
    return (
        cell.elastic,
        cell.attention != "gated",
        cell.attention,
        str(cell.shift) not in ("True", "False"),
        cell.loops,
        str(cell),
    )


def recipe_of(
    cell: Cell,
    seed: int,
    tokens: int,
    shape: dict = SHAPE,
    rows: int = 64,
    vocab_size: int = Recipe.vocab_size,
) -> Recipe:
    """Returns the recipe of one run. Runs of one seed differ only in the fields of the cell."""
    row = shape["max_position_embeddings"]
    return Recipe(
        model=shape | cell.fields,
        vocab_size=vocab_size,
        tokens=tokens,
        tokens_per_step=rows * row,
        row=row,
        early_row=row,
        log_steps=20,
        seed=seed,
    )


def non_embedding_parameters(model: IQuestPLTCoderForCausalLM) -> int:
    """Returns the number of parameters without the embedding and the head."""
    embeddings = model.model.embed_tokens.weight.numel() + model.lm_head.weight.numel()
    return model.num_parameters() - embeddings


def describe(cell: Cell, config: IQuestPLTCoderConfig) -> dict:
    return asdict(cell) | {"name": str(cell), "window": config.loop_window}


@torch.no_grad()
def start_offset(model: IQuestPLTCoderForCausalLM, cell: Cell) -> None:
    """
    Sets a learned offset to its start.

    Raises:
        ValueError: if the cell has a start and no learned offset.
    """
    if cell.own_share is None:
        return
    mix = model.model.shift_mix
    if mix is None or cell.shift != "learned":
        raise ValueError("`own_share` needs a learned offset: shift='learned'.")
    mix.logits.add_(math.log(1 / cell.own_share - 1) - torch.logit(mix.shares()[0]))  # a difference of logits


def offset_shares(model: IQuestPLTCoderForCausalLM) -> list[list[float]] | None:
    """Returns the shares of the states that a learned offset mixes, one list per state with a number per channel."""
    mix = getattr(model.model, "shift_mix", None)
    return None if mix is None else mix.shares().detach().to(torch.float32).cpu().tolist()
