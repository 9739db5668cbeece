# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Completes a prompt with different numbers of loops, finds what the last loop changed, and times both schedules."""

import statistics
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...conversion.tokenizer import render
from ..length import bounded


CONTEXT = 16  # prompt tokens that precede a completion when it is decoded: some decoders drop a leading space
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # ends the text of a character whose last bytes are still missing


@dataclass
class Token:
    """
    One token of a completion with R loops.

    Attributes:
        text: the texts of all tokens together are the completion.
        probability: of this token, after R loops.
        instead: what R − 1 loops would have written here, after the same text. None if it is the same token, or R = 1.
        probability_before: of this token, after R − 1 loops. None if R = 1.
    """

    text: str
    probability: float
    instead: str | None = None
    probability_before: float | None = None


@dataclass
class Completion:
    """The greedy completion with `num_loops` loops."""

    num_loops: int
    tokens: list[Token]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def changed(self) -> int:
        """Number of tokens that the last loop changed."""
        return sum(token.instead is not None for token in self.tokens)


@dataclass
class Speed:
    """The median decode speed of one number of loops, for both schedules. With one loop, they are the same."""

    num_loops: int
    together: float
    in_sequence: float


def encode(tokenizer: PreTrainedTokenizerBase, text: str, is_chat: bool = False) -> list[int]:
    """
    Returns the token ids of a text to continue or, with `is_chat`, of a chat whose first message it is. Raises
    ValueError if there are none.
    """
    if not text.strip():
        raise ValueError("The prompt is empty. Type some text first.")
    if is_chat:
        text = render(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=not is_chat)
    if not ids:
        raise ValueError("The prompt has no tokens. Type some text first.")
    return ids


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], num_loops: int, new_tokens: int
) -> Completion:
    """
    Completes the prompt `ids` greedily and compares each token with what one loop fewer would have written after the
    same text. Raises ValueError if the prompt fills the model's maximum length.
    """
    inputs = torch.tensor([ids], device=model.device)
    options = bounded(model, len(ids), {"max_new_tokens": new_tokens})
    pad = model.generation_config.pad_token_id
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        num_loops=num_loops,
        do_sample=False,
        pad_token_id=0 if pad is None else pad,
        **options,
    )
    new = output[0, len(ids) :]

    def predict(loops: int) -> torch.Tensor:
        """Returns the probabilities at each new token after `loops` loops, (new tokens, vocabulary)."""
        logits = model(output, num_loops=loops, use_cache=False, logits_to_keep=len(new) + 1).logits
        return logits[0, :-1].float().softmax(-1)

    def of_new(probabilities: torch.Tensor) -> list[float]:
        return probabilities.gather(-1, new[:, None])[:, 0].tolist()

    tokens = [
        Token(text, probability)
        for text, probability in zip(token_texts(tokenizer, ids, new.tolist()), of_new(predict(num_loops)), strict=True)
    ]
    if num_loops > 1:
        before = predict(num_loops - 1)
        for token, id, top, probability in zip(
            tokens, new.tolist(), before.argmax(-1).tolist(), of_new(before), strict=True
        ):
            token.probability_before = probability
            token.instead = tokenizer.decode([top]) if top != id else None
    return Completion(num_loops, tokens)


def token_texts(tokenizer: PreTrainedTokenizerBase, prompt: list[int], ids: list[int]) -> list[str]:
    """
    Returns the text of each token after `prompt`. Special tokens have none. If a character consists of several tokens,
    it belongs to the last one.
    """
    context = prompt[-CONTEXT:]
    done = tokenizer.decode(context, skip_special_tokens=True)
    texts = []
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(context + ids[:end], skip_special_tokens=True)
        is_incomplete = text.endswith(INCOMPLETE) and end < len(ids)
        texts.append("" if is_incomplete else text[len(done) :])
        done = done if is_incomplete else text
    return texts


def measure_speeds(model: PreTrainedModel, ids: list[int], loops: list[int], new_tokens: int = 16) -> list[Speed]:
    """
    Times decode steps after the prompt `ids` for each number of loops, with both schedules. The runs take turns token
    by token, so a temporary slowdown of the machine affects all of them. Speeds are in tokens per second.
    """
    from ...utils.interleaved import decode_step_times

    warm_up = 2
    total = bounded(model, len(ids), {"max_new_tokens": warm_up + 1 + new_tokens})["max_new_tokens"]
    if total < warm_up + 2:
        raise ValueError("The prompt leaves no room to measure. Shorten it.")
    options = {"min_new_tokens": total}  # end tokens do not stop a run
    runs = {(count, "together"): (model, {"num_loops": count, **options}) for count in loops}
    for count in loops:
        if count > 1:
            runs[count, "sequence"] = (model, {"num_loops": count, "loop_schedule": "sequence", **options})
    times = decode_step_times(runs, torch.tensor([ids], device=model.device), total - warm_up - 1, warm_up)
    speeds = {run: 1 / statistics.median(seconds) for run, seconds in times.items()}
    return [
        Speed(count, speeds[count, "together"], speeds.get((count, "sequence"), speeds[count, "together"]))
        for count in loops
    ]
