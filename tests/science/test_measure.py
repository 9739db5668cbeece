# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""One pass over all loops equals measuring each number of loops by itself. The contrast is chosen and tested apart."""

import math

import numpy as np
import pytest
import torch
from tiny import VOCAB, tiny_config
from torch.nn import functional as F

from iquest_plt import IQuestPLTCoderForCausalLM


pytest.importorskip("scipy", reason="the statistics need scipy: pip install '.[training]'")
contrast = pytest.importorskip("iquest_plt.science.contrast")
heldout_rows = pytest.importorskip("iquest_plt.science.measure").heldout_rows

from iquest_plt.science.heldout import Heldout  # noqa: E402
from iquest_plt.science.measure import CONTRASTS, measure  # noqa: E402


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IQuestPLTCoderForCausalLM(tiny_config(plt_num_loops=2)).eval()


@pytest.fixture(scope="module")
def rows():
    stream = np.random.default_rng(0).integers(VOCAB, size=20 * 24 + 7).astype(np.uint16)
    found = heldout_rows(stream, 24, torch.device("cpu"))
    assert found.shape == (20, 24) and found[1].tolist() == stream[24:48].tolist()  # the rest is dropped
    return found


@pytest.fixture(scope="module")
def logits(model, rows):
    with torch.no_grad():
        return [model(rows, num_loops=loops, use_cache=False).logits[:, :-1].double() for loops in (1, 2, 3)]


def nats(logits, rows):
    return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").sum(-1)


def test_every_number_of_loops_equals_a_pass_of_its_own(model, rows, logits):
    found = measure(model, rows, 3)
    assert found["tokens_per_row"] == 23
    for loop, own in enumerate(logits):
        assert found["nats"][loop] == pytest.approx(nats(own, rows).tolist(), abs=2e-3)
        right = (own.argmax(-1) == rows[:, 1:]).double().mean().item()
        assert found["top1"][loop] == pytest.approx(right, abs=1e-6)
    assert abs(sum(found["nats"][0]) - sum(found["nats"][2])) > 1


def test_contrast_starts_from_the_trained_number_of_loops(model, rows, logits):
    found = measure(model, rows, 3)["contrast"]
    by_row, right = contrast.losses(model, rows)
    for index, weight in enumerate(CONTRASTS):
        mixed = logits[1] + weight * (logits[1] - logits[0])
        assert found[str(weight)] == pytest.approx(nats(mixed, rows).tolist(), abs=2e-3)
        assert by_row[index] == pytest.approx(nats(mixed, rows).numpy(), abs=2e-3)
        assert right[index].sum() == (mixed.argmax(-1) == rows[:, 1:]).sum()


def test_contrast_is_chosen_on_odd_rows_and_tested_on_even_ones(rows):
    heldout = Heldout(rows, bytes_per_token=2.0)
    plain, good, tempting = (CONTRASTS.index(weight) for weight in (0.0, 0.1, 0.5))
    losses, right = np.full((len(CONTRASTS), 20), 50.0), np.full((len(CONTRASTS), 20), 3.0)
    losses[good, 1::2], losses[good, 0::2] = 40.0, 49.0
    losses[tempting, 0::2] = 1.0  # would win if the tested rows took part in the choice
    right[good] = 4.0
    found = contrast.choose_and_test(losses, right, heldout)
    assert found["weight"] == CONTRASTS[good] != CONTRASTS[plain]
    per_row = 1 / (23 * 2 * math.log(2))  # from nats of a row to bits per byte
    assert found["bits_per_byte"] == pytest.approx(50 * per_row, abs=1e-5)
    assert found["difference"] == pytest.approx(-per_row, abs=1e-6)
    assert found["interval"] == pytest.approx([-per_row, -per_row], abs=1e-6)
    assert found["top1_difference"] == pytest.approx(1 / 23, abs=1e-6)
