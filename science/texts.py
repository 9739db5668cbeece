# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Texts that can only be continued by following a state, move by move. `tracking.py` trains models on them.

A text is a start token and then blocks of k moves. After each block, the answer to a question about the state is
written out. With k = 1 every step is written out: a chain of thought. With larger k a model must apply k moves at once.
"""

import itertools
from abc import ABC, abstractmethod

import torch


# By the number of things. A move names, for each place, the place that its thing comes from.
MOVES = {
    3: ((1, 0, 2), (1, 2, 0)),
    5: ((1, 0, 2, 3, 4), (1, 2, 3, 4, 0), (0, 1, 3, 2, 4), (2, 0, 1, 3, 4)),
}


class Task(ABC):
    """
    Attributes:
        vocabulary: the number of token ids.
        first_answer: answers have this token id and all above.
        start: the token that begins a text.
        answer_length: tokens per answer.
    """

    vocabulary: int
    first_answer: int
    start: int
    answer_length: int = 1

    @abstractmethod
    def texts(
        self, count: int, length: int, block: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns ids (count, T) of texts of `length` moves, and which columns (T,) are parts of answers. The last one is.

        Raises:
            ValueError: if `length` is not a multiple of `block`.
        """


def tested_lengths(trained: int) -> tuple[int, int]:
    """Returns the numbers of moves in tests of a model trained with `trained`."""
    return trained, 2 * trained


def check_blocks(length: int, block: int) -> None:
    if length % block:
        raise ValueError(f"A text of {length} moves cannot be cut into blocks of {block}.")


class Permutations(Task):
    """
    Permutations of 3 or 5 things. The answer is the product of all moves so far. Token ids: moves, start, states.

    The four moves of five things generate all 120 permutations, a group in which products need a depth that grows with
    their length, unless TC⁰ = NC¹ (Barrington, 1989; Liu et al., arXiv 2210.10749). Two moves of three things generate
    six; their products need only a constant depth, but one layer has less than that.

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
        self.first_answer = self.start + 1
        self.vocabulary = self.first_answer + len(self.states)

    def texts(self, count, length, block, generator):
        check_blocks(length, block)
        moves = torch.randint(len(self.moves), (count, length), generator=generator)
        state = torch.zeros(count, dtype=torch.long)
        columns, is_answer = [torch.full((count,), self.start)], [False]
        for step in range(length):
            state = self.transitions[state, moves[:, step]]
            columns.append(moves[:, step])
            is_answer.append(False)
            if (step + 1) % block == 0:
                columns.append(self.first_answer + state)
                is_answer.append(True)
        return torch.stack(columns, dim=1), torch.tensor(is_answer)


class Assignments(Task):
    """
    Chains of assignments in the form of code, to three variables that begin with 0:

        b = 2
        c = b
        a = c  # 2 2 2

    A move gives a variable the value of another one, or a constant. The answer is a comment with the values of a, b and
    c. A value is as many lookups away as its chain has copies since the last answer. Each line has two tokens, such as
    `c =` and `b`. Token ids: targets, sources that are variables, "#", start, values.
    """

    VARIABLES, VALUES = 3, 4
    COPIES = 0.75  # share of the moves that copy a variable
    answer_length = VARIABLES

    def __init__(self):
        self.comment = 2 * self.VARIABLES
        self.start = self.comment + 1
        self.first_answer = self.start + 1
        self.vocabulary = self.first_answer + self.VALUES

    def texts(self, count, length, block, generator):
        check_blocks(length, block)
        shape = count, length
        targets = torch.randint(self.VARIABLES, shape, generator=generator)
        others = (targets + torch.randint(1, self.VARIABLES, shape, generator=generator)) % self.VARIABLES
        constants = self.first_answer + torch.randint(self.VALUES, shape, generator=generator)
        copies = torch.rand(shape, generator=generator) < self.COPIES
        values = torch.full((count, self.VARIABLES), self.first_answer)
        columns, is_answer = [torch.full((count,), self.start)], [False]
        for step in range(length):
            target, other, copy = targets[:, step], others[:, step], copies[:, step]
            columns += [target, torch.where(copy, self.VARIABLES + other, constants[:, step])]
            is_answer += [False, False]
            copied = values.gather(1, other[:, None])[:, 0]
            values = values.scatter(1, target[:, None], torch.where(copy, copied, constants[:, step])[:, None])
            if (step + 1) % block == 0:
                columns += [torch.full((count,), self.comment), *values.unbind(1)]
                is_answer += [False, *[True] * self.VARIABLES]
        return torch.stack(columns, dim=1), torch.tensor(is_answer)


TASKS = {
    "three": lambda: Permutations(3),
    "five": lambda: Permutations(5),
    "assignments": Assignments,
}
