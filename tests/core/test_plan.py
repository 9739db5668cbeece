# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Brute-force checks of `plan()`: all dependencies are met, all requested cells are computed, and no cell twice.

The dependencies are derived here from the definition, cell by cell and layer by layer, independently of the plan.
"""

import itertools

import pytest

from iquest_plt.grid_plt import Block, GridShape, Run, plan


pytestmark = pytest.mark.core


class Unmet(AssertionError):
    pass


def check(shape: GridShape, num_tokens: int, blocks: list[Block], keep: int | None) -> None:
    """
    Simulates a plan symbolically. `inputs` holds (loop, layer, token) for each state that has entered a layer, so that
    its keys are known. Layer L stands for the output of the last layer. Tokens before 0 are in the cache.
    """
    inputs: set[tuple[int, int, int]] = set()
    for block in blocks:
        assert not block.starts or (len(block.runs) == 1 and len(block.starts) == shape.num_layers + 1)
        for layer in range(shape.num_layers + 1):
            entering = {
                (run.loop, layer, token)
                for run in block.runs
                for token in range(max(run.start, block.starts[layer] if block.starts else 0), run.stop)
            }
            if inputs & entering:
                raise Unmet(f"computed twice: {inputs & entering}")
            for loop, _, token in entering:
                if layer == 0:
                    reached = range(min(shape.shift, 1), shape.shift + 1)  # how many tokens back the states are
                    before = {(loop - 1, shape.num_layers, token - back) for back in reached if token >= back}
                    if loop and not before <= inputs:
                        raise Unmet(f"the input of loop {loop}, token {token} needs the loop before")
                    continue
                needed = [(loop, layer - 1, token)]  # the residual stream
                needed += [(0, layer - 1, i) for i in range(token + 1)]  # loop 0's keys
                if loop:
                    needed += [(loop, layer - 1, i) for i in range(max(token - shape.window, 0), token + 1)]
                # Keys of the current block are written before they are read, both loop 0's and the cell's own loop's.
                if missing := [cell for cell in needed if cell not in inputs]:
                    raise Unmet(f"loop {loop}, layer {layer - 1}, token {token} needs {missing}")
            inputs |= entering
    wanted = range(num_tokens - min(keep or num_tokens, num_tokens), num_tokens)
    last = {(shape.num_loops - 1, shape.num_layers, token) for token in wanted}
    # The next pass needs the last states of every loop, the last w keys of every window, and all keys of loop 0.
    carried = range(max(num_tokens - max(shape.shift, 1), 0), num_tokens)
    carries = {(loop, shape.num_layers, token) for loop in range(shape.num_loops - 1) for token in carried}
    windows = {
        (loop, layer, token)
        for loop in range(1, shape.num_loops)
        for layer in range(shape.num_layers)
        for token in range(max(num_tokens - shape.window, 0), num_tokens)
    }
    shared = {(0, layer, token) for layer in range(shape.num_layers) for token in range(num_tokens)}
    if missing := (last | carries | windows | shared) - inputs:
        raise Unmet(f"not computed: {sorted(missing)}")


SHAPES = [
    GridShape(num_layers, num_loops, window, shift)
    for num_layers, num_loops, window, shift in itertools.product((1, 2, 3), (1, 2, 3, 4), (0, 1, 2, 5, 20), (0, 1, 4))
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_dependencies_are_met(shape):
    for num_tokens in range(1, 13):
        for keep in (None, *range(1, num_tokens + 2)):
            check(shape, num_tokens, plan(shape, num_tokens, keep=keep), keep)
        if num_tokens == 1 and shape.shift:
            check(shape, 1, plan(shape, 1, together=True), None)


def cells(blocks: list[Block]) -> int:
    """Returns the number of layer inputs that a plan computes."""
    return sum(
        run.stop - max(run.start, start)
        for block in blocks
        for run in block.runs
        for start in (block.starts or (0,) * 4)[:-1]
    )


@pytest.mark.parametrize("num_loops", [2, 3, 4])
def test_no_cell_is_superfluous(num_loops):
    """Starting a tail one token later, in any layer of any loop, breaks a dependency."""
    shape, num_tokens, keep = GridShape(3, num_loops, 1), 40, 1
    blocks = plan(shape, num_tokens, keep=keep)
    for index in range(1, len(blocks)):
        for layer in range(shape.num_layers + 1):
            starts = list(blocks[index].starts)
            starts[layer] += 1
            run = blocks[index].runs[0]._replace(start=starts[0])
            shorter = [*blocks[:index], Block((run,), tuple(starts)), *blocks[index + 1 :]]
            with pytest.raises(Unmet):
                check(shape, num_tokens, shorter, keep)


def test_the_tails_of_a_long_prompt_are_cheap():
    shape = GridShape(3, 4, 2)
    whole, ends = (cells(plan(shape, 1000, keep=keep)) for keep in (None, 1))
    assert whole == 4 * 3 * 1000 and ends < 3 * 1000 + 3 * 3 * 30


WRONG_PLANS = {
    "the loop before comes later": [Block((Run(1, 0, 4),)), Block((Run(0, 0, 4),))],
    "all loops of two tokens at once": [Block((Run(0, 0, 2), Run(1, 0, 2))), Block((Run(0, 2, 4), Run(1, 2, 4)))],
    "a loop is left out": [Block((Run(0, 0, 4),))],
    "a token is left out": [Block((Run(0, 0, 4),)), Block((Run(1, 0, 3),))],
    "a cell is computed twice": [Block((Run(0, 0, 4),)), Block((Run(1, 0, 3),)), Block((Run(1, 2, 4),))],
    "a loop runs ahead of loop 0": [
        Block((Run(0, 0, 2),)),
        Block((Run(1, 0, 3),)),
        Block((Run(0, 2, 4), Run(1, 3, 4))),
    ],
}


@pytest.mark.parametrize("name", WRONG_PLANS)
def test_a_wrong_plan_is_caught(name):
    with pytest.raises(Unmet):
        check(GridShape(2, 2, 1), 4, WRONG_PLANS[name], None)


@pytest.mark.parametrize("num_loops", [2, 3, 4])
def test_a_staircase_of_drafts_is_a_plan(num_loops):
    """Blocks can be mixed: loop 0 of draft tokens together with later loops of earlier tokens."""
    for num_tokens, drafts in itertools.product(range(num_loops, 13), range(1, 6)):
        fronts, blocks = [0] * num_loops, []  # the number of tokens that each loop has finished
        while fronts[-1] < num_tokens:
            runs, before = [], num_tokens
            for loop in range(num_loops):
                # A loop may use the previous loop's results from earlier blocks, shifted by one token.
                limit = min(fronts[loop] + drafts, num_tokens) if loop == 0 else min(before + 1, num_tokens)
                before = fronts[loop]
                if limit > fronts[loop]:
                    runs.append(Run(loop, fronts[loop], limit))
                    fronts[loop] = limit
            assert runs
            blocks.append(Block(tuple(runs)))
        check(GridShape(2, num_loops, 3), num_tokens, blocks, None)
        assert any(len({run.stop for run in block.runs}) > 1 for block in blocks) or drafts == 1
