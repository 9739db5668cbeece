# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Texts as token ids that begin with a start token, cut into pieces."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase


@dataclass
class Document:
    """
    Attributes:
        ids: at least two tokens. The first is only context; each later one is predicted from those before it.
        name: for reports.
        num_bytes: size of the text of `ids[1:]`; None if unknown, and then there are no bits per byte.
    """

    ids: list[int]
    name: str = ""
    num_bytes: int | None = None


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """
    Returns the token to put before a text: the end token, since documents follow an end token in training. Raises
    ValueError if the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError('The tokenizer has no end token to put before a text. Set `tokenizer.eos_token = "..."`.')
    return tokenizer.eos_token_id


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str]) -> list[Document]:
    """
    Encodes named texts as end token, text, end token. Special tokens in a text are read as plain characters: `<s>` is
    three. As in `training.evaluate`, the end of a text is predicted too.

    Raises:
        ValueError: if there is no text, a text is empty, or the tokenizer has no end token.
    """
    end = start_token_id(tokenizer)
    documents = []
    for name, text in texts.items():
        if not text:
            raise ValueError(f"{name} is empty. Leave it out or give it some text.")
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        documents.append(Document([end, *ids, end], name, len(text.encode())))
    if not documents:
        raise ValueError("There are no texts to measure. Pass at least one.")
    return documents


def check_document(document: Document, vocab_size: int) -> None:
    """Raises ValueError if the document is too short or has tokens outside the vocabulary."""
    name = document.name or "a document"
    if len(document.ids) < 2:
        raise ValueError(
            f"{name} has {len(document.ids)} token(s), but at least two are needed: one of context and one to predict. "
            "Leave it out, or put a start token before it."
        )
    highest, lowest = max(document.ids), min(document.ids)
    if highest >= vocab_size or lowest < 0:
        raise ValueError(
            f"{name} has token id {highest if highest >= vocab_size else lowest}, but the model's vocabulary has "
            f"{vocab_size} tokens. Encode it with the model's own tokenizer."
        )


def pieces(ids: list[int], max_length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    Yields inputs and targets of a document, (T,) each, in as few pieces as `max_length` allows. Their lengths differ by
    at most one. Each piece is run with fresh context. The last target of a piece is the first input of the next, so
    every token except the document's first is predicted exactly once.
    """
    tokens = torch.tensor(ids)
    count = -(-(len(ids) - 1) // max_length)
    yield from zip(tokens[:-1].tensor_split(count), tokens[1:].tensor_split(count), strict=True)
