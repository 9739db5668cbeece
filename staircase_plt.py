# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The schedule of decoding with drafts: a staircase on the grid of (loop, token) cells.

A draft is a guess of the next tokens. Loop 0 of a token needs only the tokens up to it, and each further loop also
needs the previous loop at the previous token. So one pass can run the column of a known token `i`, which decides the
next token, and also loop 0 of the drafts d1, d2, … after it. If d1 is right, the next pass runs the next loop:

              i  d1 d2 d3 d4 d5 d6            1, 2, 3: the pass that computes the cell
    loop 0    1  1  1  1  2  2  2             With three loops and three new drafts per pass, pass 1
    loop 1    1  2  2  2  2  3  3             decides d1, pass 2 decides d2, and pass 3 decides d3 to d6.
    loop 2    1  2  3  3  3  3  4

The last loop advances by at least one token in every pass, so drafts never need more passes than plain decoding. A
wrong draft is dropped with all cells at and after it. Then no loop is ahead, and the next pass is a plain one.

The tokens of a pass are the last known token and the drafts after it, counted from 0. `leads[r]` is the number of these
tokens that loop r has already computed. It never increases with r, and the last loop's is 0.
"""

from .grid_plt import Block, Run


def plan_staircase(leads: tuple[int, ...], num_tokens: int) -> Block:
    """Returns the cells of a pass over `num_tokens` tokens: for each loop, all tokens whose inputs are known."""
    stops = [num_tokens, *(min(lead + 1, num_tokens) for lead in leads[:-1])]
    return Block(tuple(Run(loop, *span) for loop, span in enumerate(zip(leads, stops, strict=True))))


def advance(block: Block, settled: int, keep_ahead: bool) -> tuple[int, ...]:
    """
    Returns the leads after a pass that settled its first `settled` tokens: each is known, and so is the token after
    it. `keep_ahead` keeps the cells after these, which is right if the next token is the drafted one.
    """
    return tuple(run.stop - settled if keep_ahead else 0 for run in block.runs)


__all__ = ["advance", "plan_staircase"]
