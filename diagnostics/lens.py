# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The logit lens: what each loop would predict, for a whole text or token by token.

To save memory, predictions are computed for a few tokens and two loops at a time, never for all at once.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import metrics
from .documents import Document, check_document, pieces, start_token_id
from .loop_names import loop_name, loop_number
from .trace import check_model, check_settings, trace


CHUNK_ELEMENTS = 2**22  # limit for tensors that grow with text × vocabulary or text × text: 16 MB in float32
CPU_ROWS = 128  # tokens whose predictions fit a CPU's cache
VERSION = 1


@dataclass
class Predictions:
    """
    Predictions of T tokens in R loops, on the CPU.

    Attributes:
        loss, true_rank, entropy, top: (R, T). Loss and entropy are in nats; `top` is the likeliest token.
        refinement: Δp of loops 1 … R − 1 in nats, (R − 1, T).
    """

    loss: torch.Tensor
    true_rank: torch.Tensor
    entropy: torch.Tensor
    top: torch.Tensor
    refinement: torch.Tensor

    @property
    def agreement(self) -> torch.Tensor:
        """True where a loop's likeliest token equals the last loop's, (R, T)."""
        return self.top == self.top[-1]

    @property
    def best_loop(self) -> torch.Tensor | None:
        """The loop r* that changed each prediction most, (T,); None for one loop."""
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
    Predicts `targets` (T,) from each loop's states, R tensors (T, D), with `head`, (T, D) → (T, V).

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
                f"The predictions of {loop_name(loop)} are not finite. Either the weights of `lm_head` contain NaN or "
                "infinite values: load another copy of the checkpoint. Or the model overflows: load it in float32."
            )
    return Predictions(loss, rank, entropy, top, refinement[1:])


@dataclass
class TokenRecord:
    """
    How each loop predicted one token of a text. Lists are over loops.

    Attributes:
        id, text: the token. The texts of all records together are the whole text.
        loss: in nats.
        refinement: Δp in nats, None for loop 0.
        best: r*, the loop that changed the prediction most; None if there is only one loop.
        rank: rank of the token among the predictions; 1 is the likeliest.
        entropy: of the prediction, in nats.
        top: each loop's likeliest token.
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
    """A text with a record for each token."""

    name: str | None
    max_loops: int
    tokens: list[TokenRecord]

    def to_dict(self) -> dict:
        """Returns the JSON document, where `best` counts loops from 1."""
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
    Records each token's predictions in `max_loops` loops. Arguments are as in `measure`; long texts are cut in the same
    way.

    Raises:
        ValueError: if the text is empty, or for the reasons of `measure`.
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
    Returns the token ids of a text, and the text of each token. A token that ends inside a character has the text "".

    Raises:
        ValueError: if the text is empty or the tokenizer cannot return character offsets.
    """
    if not text:
        raise ValueError("The text is empty. Choose one with at least one token.")
    if not tokenizer.is_fast:
        raise ValueError("This tokenizer cannot return character offsets. Load a fast tokenizer.")
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    texts, done = [], 0
    for _, end in encoded["offset_mapping"]:
        texts.append(text[done : max(done, end)])
        done = max(done, end)
    if texts:
        texts[-1] += text[done:]
    return encoded["input_ids"], texts
