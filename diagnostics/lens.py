# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The logit lens: what each loop would have predicted, for a whole text or token by token.

Predictions of a few tokens at a time exist, of one loop and the one before: never all tokens × vocabulary × loops.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import metrics
from .documents import Document, check_document, pieces, start_token_id
from .loop_names import loop_name, loop_number
from .trace import check_model, check_settings, trace


CHUNK_ELEMENTS = 2**22  # numbers in a tensor that grows with text × vocabulary, or text × text: 16 MB in float32
CPU_ROWS = 128  # tokens whose predictions a CPU's cache holds
VERSION = 1


@dataclass
class Predictions:
    """
    Of T tokens in R loops, on the CPU: loss (nats), true_rank, entropy (nats), the likeliest token `top`, all (R, T),
    and refinement Δp (nats) of loops 1 … R − 1, (R − 1, T).
    """

    loss: torch.Tensor
    true_rank: torch.Tensor
    entropy: torch.Tensor
    top: torch.Tensor
    refinement: torch.Tensor

    @property
    def agreement(self) -> torch.Tensor:
        """Whether the likeliest token is that of the last loop, (R, T)."""
        return self.top == self.top[-1]

    @property
    def best_loop(self) -> torch.Tensor | None:
        """r*, (T,); None for one loop."""
        return metrics.best_loop(self.refinement) if len(self.refinement) else None


@torch.no_grad()
def predict(
    head: Callable[[torch.Tensor], torch.Tensor],
    head_inputs: list[torch.Tensor],
    targets: torch.Tensor,
    vocab_size: int,
    chunk_elements: int | None = None,
) -> Predictions:
    """
    What `head`, (T, D) → (T, V), predicts from the states of each loop, R tensors (T, D), about `targets` (T,).

    Raises:
        ValueError: if a loss is not finite.
    """
    loops, tokens = len(head_inputs), len(targets)
    targets = targets.to(head_inputs[0].device)
    if chunk_elements is None:
        on_cpu = targets.device.type == "cpu"
        chunk_elements = min(CHUNK_ELEMENTS, CPU_ROWS * vocab_size) if on_cpu else CHUNK_ELEMENTS
    rows = max(1, chunk_elements // vocab_size)
    chunks = []
    for start in range(0, tokens, rows):
        part = slice(start, start + rows)
        measured, before = [], None
        for states in head_inputs:
            log_p = metrics.log_softmax(head(states[part]))
            p, goal = log_p.exp(), targets[part].to(log_p.device)
            refinement = torch.zeros_like(goal) if before is None else metrics.kl_divergence(log_p, before, p)
            measured.append(
                (
                    metrics.token_loss(log_p, goal),
                    metrics.true_rank(log_p, goal),
                    metrics.entropy(log_p, p),
                    log_p.argmax(-1),
                    refinement,
                )
            )
            before = log_p
        chunks.append([torch.stack(values).cpu() for values in zip(*measured, strict=True)])
    loss, rank, entropy, top, refinement = (torch.cat(values, dim=1) for values in zip(*chunks, strict=True))
    for loop in range(loops):
        if not loss[loop].isfinite().all():
            raise ValueError(
                f"The predictions of {loop_name(loop)} are not finite: the weights of `lm_head` hold NaN or infinite "
                "values, so load another copy of the checkpoint, or the model overflows, so load it in float32."
            )
    return Predictions(loss, rank, entropy, top, refinement[1:])


@dataclass
class TokenRecord:
    """
    How the loops predicted one token of a text from those before it. Lists are over loops.

    Attributes:
        id, text: the token; the texts of all records make up the whole text.
        loss: nats.
        refinement: Δp in nats, None for loop 0.
        best: r*, the loop that changed the prediction most; None if there is one loop only.
        rank: its place among the predictions, 1 the likeliest.
        entropy: of the prediction, nats.
        top: the likeliest tokens.
    """

    id: int
    text: str
    loss: list[float]
    refinement: list[float | None]
    best: int | None
    rank: list[int]
    entropy: list[float]
    top: list[str]


@dataclass
class LoopLens:
    """A text token by token: a record for each."""

    name: str | None
    max_loops: int
    tokens: list[TokenRecord]

    def to_dict(self) -> dict:
        """What JSON holds: `best` counts loops from 1 there."""
        document = {"version": VERSION, **asdict(self)}
        for record in document["tokens"]:
            record["best"] = None if record["best"] is None else loop_number(record["best"])
        return document


def loop_lens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    max_loops: int | None = None,
    max_length: int | None = None,
    name: str | None = None,
) -> LoopLens:
    """
    The text token by token, in `max_loops` loops. Arguments as of `measure`; longer texts are cut in the same way.

    Raises:
        ValueError: if the text is empty, or as `measure` does.
    """
    check_model(model)
    max_loops, max_length = check_settings(model, max_loops, max_length)
    ids, texts = tokenize(tokenizer, text)
    document = Document([start_token_id(tokenizer), *ids], name or "The text")
    check_document(document, model.config.vocab_size)
    records, names = [], {}
    for inputs, targets in pieces(document.ids, max_length):
        states = trace(model, inputs, max_loops).head_inputs
        found = predict(model.lm_head, states, targets, model.config.vocab_size)
        best = [None] * len(targets) if found.best_loop is None else found.best_loop.tolist()
        for index, token in enumerate(targets.tolist()):
            tops = found.top[:, index].tolist()
            names |= {top: tokenizer.decode([top]) for top in tops if top not in names}
            records.append(
                TokenRecord(
                    id=token,
                    text=texts[len(records)],
                    loss=found.loss[:, index].tolist(),
                    refinement=[None, *found.refinement[:, index].tolist()],
                    best=best[index],
                    rank=found.true_rank[:, index].tolist(),
                    entropy=found.entropy[:, index].tolist(),
                    top=[names[top] for top in tops],
                )
            )
    return LoopLens(name, max_loops, records)


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[str]]:
    """
    Ids of a text, and the text cut where the tokens end. A token that ends within a character has no text of its own.

    Raises:
        ValueError: if the text is empty, or the tokenizer does not tell where tokens stand.
    """
    if not text:
        raise ValueError("The text is empty: choose one with a token at least.")
    if not tokenizer.is_fast:
        raise ValueError("The tokenizer does not tell where its tokens stand in a text: load a fast one.")
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    texts, done = [], 0
    for _, end in encoded["offset_mapping"]:
        texts.append(text[done : max(done, end)])
        done = max(done, end)
    if texts:
        texts[-1] += text[done:]
    return encoded["input_ids"], texts
