# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Texts as the diagnostics take them: token ids that begin with a start token, cut into pieces."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase


@dataclass
class Document:
    """
    Attributes:
        ids: two tokens at least. The first is context alone, each of the others is predicted from those before it.
        name: for people.
        num_bytes: of the text that `ids[1:]` stand for; None: unknown, and then there are no bits per byte.
    """

    ids: list[int]
    name: str = ""
    num_bytes: int | None = None


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """
    What stands before a text: the end token, which ends the document before it in training. Raises ValueError if there
    is none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError('The tokenizer has no end token to put before a text: set `tokenizer.eos_token = "..."`.')
    return tokenizer.eos_token_id


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str]) -> list[Document]:
    """
    Documents of named texts: the end token, the text as plain text (a "<s>" inside stays three characters), the end
    token. As in `training.evaluate`, the end of a text is predicted too.

    Raises:
        ValueError: if there is no text, a text is empty, or the tokenizer has no end token.
    """
    end = start_token_id(tokenizer)
    documents = []
    for name, text in texts.items():
        if not text:
            raise ValueError(f"{name} is empty: leave it out, or give it some text.")
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        documents.append(Document([end, *ids, end], name, len(text.encode())))
    if not documents:
        raise ValueError("There are no texts to measure: pass one at least.")
    return documents


def check_document(document: Document, vocab_size: int) -> None:
    """Raises ValueError if it is too short, or its tokens are not the model's."""
    name = document.name or "a document"
    if len(document.ids) < 2:
        raise ValueError(
            f"{name} has {len(document.ids)} token(s), and a prediction needs two, of which the first is context: "
            "leave it out, or put a start token before it."
        )
    highest, lowest = max(document.ids), min(document.ids)
    if highest >= vocab_size or lowest < 0:
        raise ValueError(
            f"{name} has token id {highest if highest >= vocab_size else lowest}, and the model's vocabulary has "
            f"{vocab_size}: encode it with the model's own tokenizer."
        )


def pieces(ids: list[int], max_length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    Inputs and targets of a document, two (T,), in as few pieces as `max_length` allows, of lengths that differ by one
    at most. Each piece is run with fresh context; the target of its last token is the first of the next piece, so that
    every token but the document's first is predicted once.
    """
    tokens = torch.tensor(ids)
    count = -(-(len(ids) - 1) // max_length)
    yield from zip(tokens[:-1].tensor_split(count), tokens[1:].tensor_split(count), strict=True)
