# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Loops per token: what if loop r runs only for the tokens of which loop r - 1 is unsure?

    python -m iquest_plt.science.holes checkpoints/small --rows 32

A token that skips loop r is a hole. It skips all later loops, too, and

    the window of loop r   has no key of it, or with --lend its key and value of loop 0. Windows still reach w columns
                           back, holes included
    loop r + 1, token i+1  reads its newest state, that is, of the last loop that it ran
    its prediction         is made from its newest state

Rules that choose the tokens, at equal numbers of tokens per loop:

    entropy    the entropy of loop r - 1's prediction at the token itself. For a prompt, this is known in time, since
               loops run one after another. While decoding, it is not known before loop r - 1 of the token has ended, so
               the loops of a token cannot run together
    before     the same of the token before, so that all loops of a token that are chosen can run together
    random     any tokens

Measures without training; the models never saw holes. Adds its result to docs/science/holes.json.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from types import MethodType

import numpy as np
import torch
from torch.nn import functional as F

from ..attention_plt import IQuestPLTCoderAttention
from ..diagnostics import metrics
from ..grid_plt import Block, LoopGrid, Run
from ..masks_plt import Cells, Window
from ..modeling_plt import IQuestPLTCoderForCausalLM
from .experiment import command_line, run
from .heldout import Heldout
from .statistics import rows_interval


ROWS_AT_ONCE = 4
SHARES = (0.25, 0.5, 0.75)  # of the tokens that ran loop r - 1, those that run loop r
DRAWS = 3  # of random choices


class LoopsWithHoles:
    """
    Runs rows (B, T) through one loop after another, each for chosen tokens.

    Attributes:
        newest: the newest state of each token, (B, T, D).
        has_run: which tokens ran the last loop, (B, T).

    Args:
        lend: whether the windows have loop 0's keys and values of holes.

    Raises:
        ValueError: for the research controls, and for a model whose fed-back state is not normed.
    """

    def __init__(self, model: IQuestPLTCoderForCausalLM, ids: torch.Tensor, lend: bool = False):
        config = model.config
        if config.plt_cross_loop_shift is not True or config.plt_loop_attention != "gated":
            raise ValueError("Holes are only defined with the shift and gated attention. Choose another model.")
        if not config.plt_normalize_per_loop or config._attn_implementation != "sdpa":
            raise ValueError("Holes need `plt_normalize_per_loop` and attn_implementation='sdpa'.")
        self.model, self.loop, self.lend, num_tokens = model.model, 0, lend, ids.shape[1]
        embeds = self.model.embed_tokens(ids)
        self.positions = self.model.rotary_emb(embeds, torch.arange(num_tokens, device=ids.device)[None])
        self.grid = LoopGrid(config, config.plt_num_loops, embeds)
        columns = torch.arange(num_tokens, device=ids.device)
        distance = columns[:, None] - columns
        self.causal = (distance >= 0)[None, None]
        self.in_window = self.causal & (distance <= config.loop_window)
        self.is_self = (distance == 0)[None, None]
        self.shared = [(None, None)] * len(self.model.layers)  # loop 0's keys and values
        self.newest = self._states(None)
        self.has_run = torch.ones_like(ids, dtype=torch.bool)

    def next_loop(self, chosen: torch.Tensor) -> "LoopsWithHoles":
        """Returns the rows after the next loop over `chosen` (B, T). Tokens that skipped a loop skip it too."""
        after = copy(self)
        after.grid, after.loop = copy(self.grid), self.loop + 1
        after.grid.states = [*self.grid.states[: self.loop], self.newest]
        after.has_run = chosen & self.has_run
        # Holes run too, since that is simpler. They see themselves, so that no row of the mask is empty.
        mask = self.in_window if self.lend else self.in_window & (after.has_run[:, None, None] | self.is_self)
        with lent_keys(self.model.layers, after.has_run) if self.lend else nullcontext():
            states = after._states(Window(self.model.config.loop_window, mask))
        after.newest = torch.where(after.has_run[..., None], states, self.newest)
        return after

    def _states(self, window: Window | None) -> torch.Tensor:
        num_tokens = self.causal.shape[-1]
        block = Block((Run(self.loop, 0, num_tokens),))
        cells = Cells(block.loops, self.positions, self.causal, window, num_tokens)
        hidden, shared = self.grid.inputs(block), list(self.shared)
        for index, layer in enumerate(self.model.layers):
            hidden, *shared[index] = layer(hidden, *shared[index], cells)
        self.shared = shared
        return self.model.norm(hidden)


@contextmanager
def lent_keys(layers, has_run: torch.Tensor) -> Iterator[None]:
    """Makes the windows of all layers use loop 0's keys and values for tokens that are not in `has_run` (B, T)."""
    is_own = has_run[:, None, :, None]

    def attend_later(self, query, key, value, shared, *args, **kwargs):
        key, value = (torch.where(is_own, own, loop0) for own, loop0 in zip((key, value), shared, strict=True))
        return IQuestPLTCoderAttention.attend_later(self, query, key, value, shared, *args, **kwargs)

    for layer in layers:
        layer.self_attn.attend_later = MethodType(attend_later, layer.self_attn)
    try:
        yield
    finally:
        for layer in layers:
            del layer.self_attn.attend_later


Choice = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (entropies (N, T), has_run (N, T)) -> chosen (N, T)


class Experiment:
    """All rows (N, T) after loop 0, from which every rule starts. `losses` and `entropy`: as in `_predict`."""

    def __init__(self, model: IQuestPLTCoderForCausalLM, rows: torch.Tensor, lend: bool = False):
        self.model, self.rows = model, rows.split(ROWS_AT_ONCE)
        self.targets = F.pad(rows[:, 1:], (0, 1)).split(ROWS_AT_ONCE)
        self.first = [LoopsWithHoles(model, ids, lend) for ids in self.rows]
        nothing = torch.zeros(rows.shape)
        self.losses, self.entropy = self._predict(self.first, nothing, nothing)

    def run(self, choose: Choice) -> tuple[np.ndarray, list[int]]:
        """Returns the losses of each row in nats (N,), and the number of tokens that ran each loop."""
        batches, losses, entropy, counts = self.first, self.losses, self.entropy, [self.entropy.numel()]
        for _ in range(1, self.model.config.plt_num_loops):
            chosen = choose(entropy, torch.cat([batch.has_run for batch in batches]))
            parts = chosen.split(ROWS_AT_ONCE)
            batches = [batch.next_loop(part) for batch, part in zip(batches, parts, strict=True)]
            losses, entropy = self._predict(batches, losses, entropy)
            counts.append(int(sum(batch.has_run.sum() for batch in batches)))
        return row_losses(losses), counts

    def _predict(self, batches: list[LoopsWithHoles], losses, entropy) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns the loss of the token after each, and the entropy of its prediction, (N, T), in nats. Holes keep what
        `losses` and `entropy` have.
        """
        found = []
        old = zip(losses.split(ROWS_AT_ONCE), entropy.split(ROWS_AT_ONCE), strict=True)
        for batch, targets, parts in zip(batches, self.targets, old, strict=True):
            log_p = metrics.log_softmax(self.model.lm_head(batch.newest[batch.has_run]))
            new = metrics.token_loss(log_p, targets[batch.has_run]), metrics.entropy(log_p, log_p.exp())
            pairs = zip(parts, new, strict=True)
            found.append([part.masked_scatter(batch.has_run, values.to(part.dtype)) for part, values in pairs])
        losses, entropy = (torch.cat(parts) for parts in zip(*found, strict=True))
        return losses, entropy


def row_losses(losses: torch.Tensor) -> np.ndarray:
    """Sums the losses (N, T) of each row, without the last, which has no next token."""
    return losses[:, :-1].sum(dim=1).double().numpy()


def most(values: torch.Tensor, allowed: torch.Tensor, count: int) -> torch.Tensor:
    """Marks the `count` largest allowed values."""
    order = values.masked_fill(~allowed, -torch.inf).flatten().topk(count).indices
    return torch.zeros_like(allowed).flatten().index_fill(0, order, True).view_as(allowed)


def rule(name: str, share: float, seed: int = 0) -> Choice:
    """Returns a rule that chooses `share` of the tokens that ran the last loop. See the names above."""
    generator = torch.Generator().manual_seed(seed)

    def choose(entropy: torch.Tensor, has_run: torch.Tensor) -> torch.Tensor:
        if name == "random":
            entropy = torch.rand(entropy.shape, generator=generator)
        elif name == "before":
            entropy = F.pad(entropy[:, :-1], (1, 0), value=torch.inf)
        return most(entropy, has_run, round(share * int(has_run.sum())))

    return choose


@torch.no_grad()
def compare(
    model: IQuestPLTCoderForCausalLM, heldout: Heldout, shares: tuple[float, ...] = SHARES, lend: bool = False
) -> dict:
    """
    Measures each share with all rules.

    Returns:
        `points`: for each share and rule, the mean number of loops, bits per byte, and the difference to the mean of
        the random draws with its interval over rows; `all` and `none`: bits per byte of all loops and of loop 0 alone.
    """
    units = heldout.units(len(heldout.rows))
    experiment = Experiment(model, heldout.rows, lend)
    bits = lambda nats: round(float(units * nats.sum()), 5)  # noqa: E731
    points = []
    for share in shares:
        draws = [experiment.run(rule("random", share, seed)) for seed in range(DRAWS)]
        random = np.mean([nats for nats, _ in draws], axis=0)
        loops = sum(draws[0][1]) / heldout.rows.numel()
        each = [bits(nats) for nats, _ in draws]
        points.append({"rule": "random", "share": share, "loops": loops, "bits_per_byte": bits(random), "draws": each})
        for name in ("entropy", "before"):
            nats, counts = experiment.run(rule(name, share))
            gain = units * (nats - random)
            point = {"rule": name, "share": share, "loops": sum(counts) / heldout.rows.numel()}
            point |= {"bits_per_byte": bits(nats), "difference": round(float(gain.sum()), 5)}
            points.append(point | {"interval": [round(end, 5) for end in rows_interval(gain)]})
            print(points[-1], flush=True)
    everything, _ = experiment.run(lambda entropy, has_run: has_run)
    return {"points": points, "all": bits(everything), "none": bits(row_losses(experiment.losses))}


def main(argv: list[str] | None = None) -> None:
    parser = command_line(__doc__, "holes.json")
    parser.add_argument("--lend", action="store_true", help="windows have loop 0's keys of holes")
    args = parser.parse_args(argv)

    def measure(model: IQuestPLTCoderForCausalLM, heldout: Heldout) -> dict:
        return {"tokens": heldout.rows[:, 1:].numel()} | compare(model, heldout, lend=args.lend)

    run(args, measure, variant=", lent keys" if args.lend else "")


if __name__ == "__main__":
    main()
