# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of the loss against repetition."""

import math

import pytest
import torch

from iquest_plt.training.recipe import Recipe
from iquest_plt.training.samples import repetition
from iquest_plt.training.small import train
from iquest_plt.training.unlikelihood import PREFIX, UnlikelihoodTrainer, repeated_tokens, unlikelihood


@pytest.mark.parametrize(
    "tokens, expected",
    [
        ([], ""),
        ([1, 1, 1], "..."),
        ([1, 2, 3, 4, 5, 6], "......"),
        ([1, 2, 3, 4, 9, 1, 2, 3, 4, 8], ".....xxxx."),
        ([1, 2, 3, 1, 2, 3, 1], "...xxxx"),  # overlaps the first occurrence
        ([7, 7, 7, 7, 7], ".xxxx"),
    ],
)
def test_repeated_tokens(tokens, expected):
    assert "".join(".x"[repeated] for repeated in repeated_tokens(tokens)) == expected


def test_no_repeated_token_means_no_repetition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        tokens = torch.randint(3, (60,), generator=generator).tolist()
        assert any(repeated_tokens(tokens)) == (repetition([tokens]) > 0)


def test_loss_is_the_sum_over_unwanted_tokens():
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.1, 0.2, 0.7]]])
    tokens, unwanted = torch.tensor([[0, 0, 1]]), torch.tensor([[True, False, True]])
    loss = unlikelihood(probabilities.log(), tokens, unwanted)
    assert loss.item() == pytest.approx(-math.log(0.5) - math.log(0.8), rel=1e-5)


def test_loss_is_finite_for_a_certain_token_and_zero_without_unwanted_tokens():
    logits = torch.tensor([[[100.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    tokens = torch.tensor([[0, 0]])
    loss = unlikelihood(logits, tokens, torch.tensor([[True, True]]))
    loss.backward()
    assert math.isfinite(loss.item()) and logits.grad.isfinite().all()
    assert unlikelihood(logits, tokens, torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_training_lowers_the_share_of_repeated_tokens(library, tmp_path):
    """A model that has hardly learned anything repeats one token, until this loss forbids it."""
    model = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
    }
    recipe = Recipe(
        model=model,
        vocab_size=300,
        row=2 * PREFIX,
        early_row=2 * PREFIX,
        tokens_per_step=32 * PREFIX,
        tokens=32 * PREFIX * 60,
        eval_steps=30,
        eval_rows=1,
        unlikelihood_weight=2.0,
    )
    trainer = train(tmp_path / "run", recipe, stdlib=library, trainer_class=UnlikelihoodTrainer)
    shares = [entry["repeated"] for entry in trainer.state.log_history if "repeated" in entry]
    assert shares[0] > 0.5 and shares[-1] < 0.5 * shares[0]
    assert all(entry["unlikelihood"] >= 0 for entry in trainer.state.log_history if "unlikelihood" in entry)
