# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Copies: which tokens count, and that both parts make up the whole loss."""

import math

import pytest
import torch
from tiny import VOCAB, tiny_model


pytest.importorskip("scipy", reason="the statistics need scipy: pip install '.[training]'")
pytest.importorskip("accelerate", reason="training needs accelerate: pip install '.[training]'")

from iquest_plt.science.copies import are_copies
from iquest_plt.science.copying import compare, losses
from iquest_plt.science.heldout import Heldout
from iquest_plt.science.measure import measure


def copies_of(text: str) -> str:
    """Marks copies with the letter, others with a dot."""
    ids = torch.tensor([ord(letter) for letter in text])
    marks = are_copies(ids)
    assert len(marks) == len(text) - 1
    return "".join(letter if mark else "." for letter, mark in zip(text[1:], marks.tolist(), strict=True))


@pytest.mark.parametrize(
    "text, copies",
    [
        ("abcxabc", ".....c"),
        ("abcabdabd", ".......d"),  # the last time, d followed
        ("abdabcabd", "........"),  # the last time, c followed
        ("aaaaa", "..aa"),
        ("abcdef", "....."),
        ("ab", "."),
    ],
)
def test_copies_are_what_followed_the_last_time(text, copies):
    assert copies_of(text) == copies


def test_copies_and_others_are_the_whole_loss():
    rows = torch.randint(3, (6, 40), generator=torch.Generator().manual_seed(0))  # few letters repeat often
    model, heldout = tiny_model(plt_num_loops=2), Heldout(rows, bytes_per_token=2.0)
    found = compare(model, heldout)
    assert VOCAB > 3 and 0.1 < found["share"] < 0.9
    mean = found["share"] * found["copies"] + (1 - found["share"]) * found["others"]
    assert mean == pytest.approx(model(rows, labels=rows).loss.item(), abs=1e-3)
    assert found["bits_per_byte"] == pytest.approx(mean / math.log(2) / 2.0, abs=1e-3)
    for name in ("copies", "others"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high


def test_measuring_a_run_splits_the_same_loss():
    rows = torch.randint(3, (20, 40), generator=torch.Generator().manual_seed(0))
    model = tiny_model(plt_num_loops=2)
    found = measure(model, rows, 3)
    copies = torch.stack([are_copies(row) for row in rows])
    own = losses(model, rows)  # with the model's own two loops
    assert found["copies"] == copies.sum() > 0
    assert found["copied_nats"] == pytest.approx((own * copies).sum(dim=1).tolist(), abs=2e-3)
    assert found["nats"][1] == pytest.approx(own.sum(dim=1).tolist(), abs=2e-3)
