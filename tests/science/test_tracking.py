# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Tracking: the texts against products of permutations, and the test against models whose mistakes are known."""

import json
from types import SimpleNamespace

import pytest
import torch


pytest.importorskip("accelerate", reason="training needs accelerate: pip install '.[training]'")
tracking = pytest.importorskip("iquest_plt.science.tracking")

from iquest_plt.science.cells import Cell  # noqa: E402
from iquest_plt.training.small import Recipe  # noqa: E402


CPU = torch.device("cpu")


def follow(group, moves: list[int]) -> tuple[int, ...]:
    """Moves real things about, one move after another."""
    things = list(range(len(group.states[0])))
    for move in moves:
        things = [things[place] for place in group.moves[move]]
    return tuple(things)


@pytest.mark.parametrize("things", tracking.MOVES)
@pytest.mark.parametrize("block", [1, 4])
def test_texts_are_products_of_their_moves(things, block):
    group = tracking.Permutations(things)
    ids, is_state = group.texts(30, 12, block, torch.Generator().manual_seed(0))
    assert ids.shape == (30, 1 + 12 + 12 // block) and is_state.sum() == 12 // block
    for row in ids.tolist():
        assert row[0] == group.start
        moves = []
        for token in row[1:]:
            if token < len(group.moves):
                moves.append(token)
            else:
                assert len(moves) % block == 0
                assert group.states[token - group.first_state] == follow(group, moves)
        assert len(moves) == 12


@pytest.mark.parametrize("things", tracking.MOVES)
def test_moves_reach_every_state_and_do_not_commute(things):
    group = tracking.Permutations(things)
    reached = {0}
    for _ in range(20):
        reached |= {int(after) for state in reached for after in group.transitions[state]}
    assert len(reached) == len(group.states)
    assert group.transitions[group.transitions[0, 0], 1] != group.transitions[group.transitions[0, 1], 0]


class Calculator:
    """Writes the state after the last block of moves, from the state that the text shows before it."""

    def __init__(self, group, block: int, wrong_at: int | None = None):
        self.group, self.block, self.wrong_at = group, block, wrong_at

    def __call__(self, ids, use_cache, logits_to_keep):
        before = -1 - self.block
        state = ids[:, before] - self.group.first_state
        state = torch.where(ids[:, before] == self.group.start, 0, state)
        for move in ids[:, before + 1 :].T:
            state = self.group.transitions[state, move]
        if ids.shape[1] == self.wrong_at:
            state = (state + 1) % len(self.group.states)
        logits = torch.zeros(len(ids), 1, self.group.vocabulary)
        logits[:, 0, : self.group.first_state] = 9.0  # moves are no states, so they must not count
        return SimpleNamespace(logits=logits.scatter_(2, self.group.first_state + state[:, None, None], 1.0))


@pytest.mark.parametrize("things", tracking.MOVES)
def test_accuracy_of_models_whose_mistakes_are_known(things):
    """A wrong first state makes all later ones wrong, because the model reads its own."""
    group = tracking.Permutations(things)
    for block in (1, 4):
        assert tracking.accuracy(Calculator(group, block), group, 8, block, 0, CPU) == 1.0
        for wrong_at in (1 + block, 8 + 8 // block):
            assert tracking.accuracy(Calculator(group, block, wrong_at), group, 8, block, 0, CPU) == 0.0


def test_only_states_are_trained():
    group = tracking.Permutations(3)
    model = tracking.make_model(Cell(1), group.vocabulary, layers=1, size=16, seed=0)
    recipe = Recipe(tokens=2 * 4 * 11, tokens_per_step=4 * 11, row=11, seed=0)
    training = tracking.TrackingTraining(model, recipe, group, 8, CPU, compiled=False)
    ids = training.batch(0)
    assert ids.shape == (4, 1 + 16 + 2) and not torch.equal(ids, training.batch(1))  # fresh texts every step
    log_p = training.model(ids, use_cache=False).logits.float().log_softmax(-1)
    expected = -log_p[:, [8, 17]].gather(-1, ids[:, [9, 18], None]).mean()
    assert (ids[:, [9, 18]] >= group.first_state).all()
    states = training.model.model(ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(training.loss_of(states, ids), expected)


def test_the_command_keeps_finished_runs_and_refuses_wrong_options(tmp_path, capsys):
    options = ["--things", "3", "--layers", "1", "--size", "16", "--rows", "4", "--blocks", "16", "--seeds", "1"]
    options = ["--out", str(tmp_path), *options, "--device", "cpu", "--cells", "R = 1", "--steps"]
    tracking.main([*options, "2"])
    (run,) = json.loads((tmp_path / "tracking.json").read_text())
    assert run["accuracy"].keys() == {"16", "32"} and run["accuracy"]["16"] < 0.5  # chance is 1/6
    assert run["tokens_per_text"] == 18 and run["things"] == 3
    tracking.main([*options, "2"])
    tracking.main([*options, "1"])
    first, other = json.loads((tmp_path / "tracking.json").read_text())
    assert first == run and other["steps"] == 1
    for wrong, message in ((["--blocks", "3"], "must divide 16"), (["--cells", "R = 9"], "unknown cell 'R = 9'")):
        with pytest.raises(SystemExit):
            tracking.main([*options, "1", *wrong])
        assert message in capsys.readouterr().err
