# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Prints text while it is generated."""

import sys
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..utils.terminal import printable


CONTEXT = 16  # earlier tokens to keep: enough for the next ones to decode as they do in the whole text
MAX_TOKENS = 64  # most tokens decoded at a time, so that a long line takes linear time


class TextPrinter(BaseStreamer):
    """
    Passes the text of each new token to `write`, without the prompt.

    Differs from Transformers' `TextStreamer` in two ways. It never decodes a line on its own: SentencePiece's decoder
    drops a leading space, which would be part of the indentation. And it does not decode a whole line again for each
    of its tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]):
        self.tokenizer, self.write = tokenizer, write
        self.ids: list[int] = []
        self.written: str | None = None  # None until the prompt arrives

    def _text(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def put(self, value: torch.Tensor) -> None:
        """Takes token ids, (1, time) or (1,); the first call passes the prompt. Raises ValueError for a batch."""
        if value.dim() > 1 and value.shape[0] > 1:
            raise ValueError("Only one sequence can be printed at a time. Generate with batch size 1.")
        self.ids += value.flatten().tolist()
        text = self._text()
        if self.written is None:
            self.written = text
        # A character made of several tokens is complete only with its last byte.
        elif text.startswith(self.written) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self.write(text[len(self.written) :])
            self.written = text
        if text.endswith("\n"):  # the line end is enough context for the next tokens
            self._keep(1)
        elif len(self.ids) > MAX_TOKENS:
            self._shorten(text)

    def _keep(self, count: int) -> None:
        self.ids = self.ids[-count:]
        self.written = self._text()

    def _shorten(self, text: str) -> None:
        """Drops written tokens, at a point where the rest still decodes to the same text."""
        if self.written == text:
            for count in range(CONTEXT, CONTEXT + 4):  # avoids cutting a character, which is up to four tokens
                rest = self.tokenizer.decode(self.ids[-count:], skip_special_tokens=True)
                if rest and text.endswith(rest):
                    return self._keep(count)
        if len(self.ids) > 2 * MAX_TOKENS:  # for example invalid UTF-8, which never becomes a character
            self.write(text[len(self.written) :])  # type: ignore[arg-type]
            self._keep(CONTEXT)

    def end(self) -> None:
        """Writes the text held back so far and a newline, after the last token."""
        self.write(self._text()[len(self.written or "") :] + "\n")
        self.ids, self.written = [], None


def print_text(text: str) -> None:
    """Prints to standard output at once. Control characters from the model are escaped on a terminal."""
    print(printable(text, line_ends=True) if sys.stdout.isatty() else text, end="", flush=True)
