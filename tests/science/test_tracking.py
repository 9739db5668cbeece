# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Tracking: the texts against permuted things and executed code, and the test against known mistakes."""

import json
from types import SimpleNamespace

import pytest
import torch


pytest.importorskip("accelerate", reason="training needs accelerate: pip install '.[training]'")
tracking = pytest.importorskip("iquest_plt.science.tracking")

from iquest_plt.science.cells import Cell, start_offset  # noqa: E402
from iquest_plt.science.texts import MOVES, TASKS, Assignments, Permutations  # noqa: E402
from iquest_plt.training.small import Recipe  # noqa: E402


CPU = torch.device("cpu")


def follow(group, moves: list[int]) -> tuple[int, ...]:
    """Moves real things about, one move after another."""
    things = list(range(len(group.states[0])))
    for move in moves:
        things = [things[place] for place in group.moves[move]]
    return tuple(things)


@pytest.mark.parametrize("things", MOVES)
@pytest.mark.parametrize("block", [1, 4])
def test_texts_are_products_of_their_moves(things, block):
    group = Permutations(things)
    ids, is_answer = group.texts(30, 12, block, torch.Generator().manual_seed(0))
    assert ids.shape == (30, 1 + 12 + 12 // block) and is_answer.sum() == 12 // block
    for row in ids.tolist():
        assert row[0] == group.start
        moves = []
        for token in row[1:]:
            if token < len(group.moves):
                moves.append(token)
            else:
                assert len(moves) % block == 0
                assert group.states[token - group.first_answer] == follow(group, moves)
        assert len(moves) == 12


@pytest.mark.parametrize("things", MOVES)
def test_moves_reach_every_state_and_do_not_commute(things):
    group = Permutations(things)
    reached = {0}
    for _ in range(20):
        reached |= {int(after) for state in reached for after in group.transitions[state]}
    assert len(reached) == len(group.states)
    assert group.transitions[group.transitions[0, 0], 1] != group.transitions[group.transitions[0, 1], 0]


@pytest.mark.parametrize("block", [1, 4])
def test_assignments_are_code_whose_comments_are_true(block):
    """Every text is executed as Python."""
    task, names = Assignments(), "abc"
    texts, is_answer = task.texts(40, 8, block, torch.Generator().manual_seed(0))
    assert is_answer.tolist() == [False, *([False] * (2 * block + 1) + [True] * 3) * (8 // block)]
    copies, value = 0, task.first_answer
    for start, *tokens in texts.tolist():
        assert start == task.start and max(tokens) < task.vocabulary
        variables = {"a": 0, "b": 0, "c": 0}
        for _ in range(8 // block):
            for _ in range(block):
                target, source = tokens.pop(0), tokens.pop(0)
                copies += source < value
                right = source - value if source >= value else names[source - len(names)]
                exec(f"{names[target]} = {right}", {}, variables)
                assert names[target] != right
            comment, *answer = tokens[:4]
            assert comment == task.comment and answer == [value + variables[name] for name in names]
            del tokens[:4]
        assert not tokens
    assert 0.7 < copies / (40 * 8) < 0.8


@pytest.mark.parametrize("task", TASKS)
def test_blocks_must_divide_the_length(task):
    with pytest.raises(ValueError, match="8 moves cannot be cut into blocks of 3"):
        TASKS[task]().texts(1, 8, 3, torch.Generator())


class Calculator:
    """Writes the state after the last block of moves, from the state that the text shows before it."""

    def __init__(self, group, block: int, wrong_at: int | None = None):
        self.group, self.block, self.wrong_at = group, block, wrong_at

    def __call__(self, ids, use_cache, logits_to_keep):
        before = -1 - self.block
        state = ids[:, before] - self.group.first_answer
        state = torch.where(ids[:, before] == self.group.start, 0, state)
        for move in ids[:, before + 1 :].T:
            state = self.group.transitions[state, move]
        if ids.shape[1] == self.wrong_at:
            state = (state + 1) % len(self.group.states)
        logits = torch.zeros(len(ids), 1, self.group.vocabulary)
        logits[:, 0, : self.group.first_answer] = 9.0  # moves are no states, so they must not count
        return SimpleNamespace(logits=logits.scatter_(2, self.group.first_answer + state[:, None, None], 1.0))


@pytest.mark.parametrize("things", MOVES)
def test_accuracy_of_models_whose_mistakes_are_known(things):
    """A wrong first state makes all later ones wrong, because the model reads its own."""
    group = Permutations(things)
    for block in (1, 4):
        assert tracking.accuracy(Calculator(group, block), group, 8, block, 0, CPU) == 1.0
        for wrong_at in (1 + block, 8 + 8 // block):
            assert tracking.accuracy(Calculator(group, block, wrong_at), group, 8, block, 0, CPU) == 0.0


class Executor:
    """Continues a text of assignments with one move per answer: reads the comment before and the move."""

    def __init__(self, task, wrong_at: int | None = None):
        self.task, self.wrong_at = task, wrong_at

    def __call__(self, ids, use_cache, logits_to_keep):
        value, count, place = self.task.first_answer, Assignments.VARIABLES, (ids.shape[1] - 1) % 6  # tokens per move
        begin = ids.shape[1] - place  # of the move
        before = ids[:, begin - count : begin] if begin > 1 else torch.full((len(ids), count), value)
        target, source = ids[:, begin], ids[:, begin + 1]
        copied = before.gather(1, (source - count).clamp(0, count - 1)[:, None])[:, 0]
        after = before.scatter(1, target[:, None], torch.where(source >= value, source, copied)[:, None])
        answer = after[:, place - 3]
        if ids.shape[1] == self.wrong_at:
            answer = value + (answer - value + 1) % Assignments.VALUES
        logits = torch.zeros(len(ids), 1, self.task.vocabulary)
        return SimpleNamespace(logits=logits.scatter_(2, answer[:, None, None], 1.0))


def test_accuracy_needs_the_whole_last_answer():
    task = Assignments()
    assert tracking.accuracy(Executor(task), task, 8, 1, 0, CPU) == 1.0
    for token in (46, 47, 48):  # of the last answer, one variable each
        assert tracking.accuracy(Executor(task, wrong_at=token), task, 8, 1, 0, CPU) == 0.0
    # A wrong value in the first answer is read by the model, and stays if the variable is not overwritten.
    assert 0.0 < tracking.accuracy(Executor(task, wrong_at=4), task, 8, 1, 0, CPU) < 1.0


@pytest.mark.parametrize("pack", [1, 2])
def test_only_answers_are_trained(pack):
    group = Permutations(3)
    model = tracking.make_model(Cell(1), group.vocabulary, layers=1, size=16, seed=0)
    recipe = Recipe(tokens=2 * 4 * 19 * pack, tokens_per_step=4 * 19 * pack, row=19 * pack, seed=0)
    training = tracking.TrackingTraining(model, recipe, group, 16, [8], pack, CPU, compiled=False)
    ids = training.batch(0)
    assert ids.shape == (4, pack * 19) and not torch.equal(ids, training.batch(1))  # fresh texts every step
    answers = [start + column for start in range(0, 19 * pack, 19) for column in (9, 18)]
    log_p = training.model(ids, use_cache=False).logits.float().log_softmax(-1)
    expected = -log_p[:, [place - 1 for place in answers]].gather(-1, ids[:, answers, None]).mean()
    assert (ids[:, answers] >= group.first_answer).all() and (ids[:, ::19] == group.start).all()
    states = training.model.model(ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(training.loss_of(states, ids), expected)


def test_each_step_draws_the_moves_between_answers():
    model = tracking.make_model(Cell(1), 12, layers=1, size=16, seed=0)
    recipe = Recipe(tokens=8 * 4 * 49, tokens_per_step=4 * 49, row=49, seed=0)
    training = tracking.TrackingTraining(model, recipe, Assignments(), 8, [1, 8], 1, CPU, compiled=False)
    lengths = {}
    for step in range(20):
        ids = training.batch(step)
        lengths[ids.shape[1]] = len(training.places)
        assert (ids[:, training.places + 1] >= training.task.first_answer).all()
    assert lengths == {1 + 8 * 2 + 8 * 4: 24, 1 + 8 * 2 + 4: 3}


@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_learned_offset_starts_as_the_cell_says(share):
    cell = Cell(2, "learned", own_share=share)
    model = tracking.make_model(cell, 20, layers=1, size=16, seed=0)
    start_offset(model, cell)
    previous, own = model.model.shift_mix.shares()
    torch.testing.assert_close(own, torch.full_like(own, share))
    torch.testing.assert_close(previous + own, torch.ones_like(own))
    with pytest.raises(ValueError, match="needs a learned offset"):
        start_offset(model, Cell(2, "mixed", own_share=share))


def test_the_command_keeps_finished_runs_and_refuses_wrong_options(tmp_path, capsys):
    options = ["--task", "three", "--layers", "1", "--size", "16", "--rows", "4", "--blocks", "2", "16", "--seeds", "1"]
    options = ["--out", str(tmp_path), *options, "--device", "cpu", "--cells", "R = 1", "--steps"]
    tracking.main([*options, "2"])
    (run,) = json.loads((tmp_path / "tracking.json").read_text())
    assert run["accuracy"].keys() == {"2", "16"} and run["accuracy"]["16"].keys() == {"16", "32"}
    assert run["accuracy"]["16"]["16"] < 0.5  # chance is 1/6
    assert run["tokens_per_text"] == {"2": 25, "16": 18} and run["blocks"] == [2, 16]
    tracking.main([*options, "2"])
    tracking.main([*options, "1"])
    first, other = json.loads((tmp_path / "tracking.json").read_text())
    assert first == run and other["steps"] == 1 and run["offset_shares"] is None
    tracking.main([*options, "1", "--cells", "R = 2, learned offset"])
    *_, learned = json.loads((tmp_path / "tracking.json").read_text())
    assert all(sum(pair) == pytest.approx(1, abs=1e-2) for pair in zip(*learned["offset_shares"], strict=True))
    for wrong, message in ((["--blocks", "3"], "must divide 16"), (["--cells", "R = 9"], "unknown cell 'R = 9'")):
        with pytest.raises(SystemExit):
            tracking.main([*options, "1", *wrong])
        assert message in capsys.readouterr().err
