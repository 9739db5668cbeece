# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Stage 6: how fast do small models train? Times compiled training (`training/compiled.py`) of models with three million
parameters, on random tokens.

To train on text, use `python -m iquest_plt.science.train` and `python -m iquest_plt.training.small --gpu`. Both go on
from small files, and fit their work into a time limit.
"""

import numpy as np
import torch

from ... import IQuestPLTCoderConfig, IQuestPLTCoderForCausalLM
from ...science.cells import SHAPE, SMOKE_SHAPE, Cell, recipe_of
from ...training.compiled import CompiledTraining, seconds_per_step
from .stage import Stage, peak_gb


VOCABULARY = 8192


def trained(stage: Stage, cell: Cell, rows: int) -> dict:
    """Times steps of `rows` rows, after compiling."""
    shape = SMOKE_SHAPE if stage.smoke else SHAPE
    row = shape["max_position_embeddings"]
    recipe = recipe_of(cell, 0, 100 * rows * row, shape, rows)
    config = IQuestPLTCoderConfig(vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, **recipe.model)
    model = IQuestPLTCoderForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    stream = np.random.default_rng(0).integers(VOCABULARY, size=400 * row).astype(np.uint16)
    training = CompiledTraining(model, recipe, stream, stage.device, compiled=not stage.smoke)
    seconds = seconds_per_step(training, steps=2 if stage.smoke else 12)
    return {
        "loops": cell.loops,
        "rows": rows,
        "ms": round(1e3 * seconds, 2),
        "tokens_per_second": round(rows * row / seconds),
        "peak_gb": peak_gb(stage.device),
    }


def run(stage: Stage) -> None:
    for rows in (2,) if stage.smoke else (64, 16):
        for cell in (Cell(1), Cell(2), Cell(3)):
            stage.run(f"R={cell.loops} rows={rows}", trained, stage, cell, rows, seconds=20)
