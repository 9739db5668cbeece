# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of the loss against repetition."""

import dataclasses
import math

import pytest
import torch
from paths import SMALL
from transformers import AutoTokenizer

from iquest_plt.training import unlikelihood as module
from iquest_plt.training.recipe import Recipe
from iquest_plt.training.samples import repetition
from iquest_plt.training.small import train
from iquest_plt.training.unlikelihood import PREFIX, UnlikelihoodTrainer, repeated_tokens, unlikelihood, word_tokens


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
    assert "".join(".x"[repeated] for repeated in repeated_tokens(tokens, 4)) == expected


def test_no_repeated_token_means_no_repetition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        tokens = torch.randint(3, (60,), generator=generator).tolist()
        assert any(repeated_tokens(tokens, 4)) == (repetition([tokens]) > 0)


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


def test_words_have_a_letter_or_digit():
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    is_word = word_tokens(tokenizer)
    assert len(is_word) == len(tokenizer)
    for text, expected in (("return", True), ("(", False), ("\n", False), ("    ", False), ("7", True)):
        (token,) = tokenizer(text, add_special_tokens=False).input_ids
        assert is_word[token] == expected, text


def test_training_makes_repeated_words_less_likely(library, tmp_path, monkeypatch):
    """Some steps on the same two prefixes, which the small model continues with repeats."""
    monkeypatch.setattr(module, "CONTINUATIONS", 2)
    monkeypatch.setattr(module, "NEW_TOKENS", 96)
    recipe = dataclasses.replace(
        Recipe.without_repetition(SMALL, tokens=6 * 128),
        wheels=(),
        row=64,
        early_row=64,
        tokens_per_step=128,
        log_steps=1,
        warmup_steps=1,
        muon_lr=0.002,
        adamw_lr=0.0005,
        embedding_lr=0.001,
        eval_rows=1,
    )
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    text = "parser.add_argument('--first', help='first file')\nparser.add_argument('--second', help='second file')\n"
    ids = tokenizer(text * 2).input_ids

    class SamePrefixes(UnlikelihoodTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.prefixes = [{"input_ids": ids[start:][:PREFIX]} for start in (0, 8)] * recipe.steps

    trainer = train(tmp_path, recipe, library, trainer_class=SamePrefixes)
    log = [entry for entry in trainer.state.log_history if "repeated" in entry]
    assert len(log) == recipe.steps == 6
    assert log[0]["repeated"] > 0.3
    assert 0 < log[-1]["unlikelihood"] < 0.8 * log[0]["unlikelihood"]
