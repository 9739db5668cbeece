# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Text as it is generated."""

import sys
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..utils.terminal import printable


CONTEXT = 16  # tokens kept before what comes: more than any character or token needs to be decoded as in the whole text
MAX_TOKENS = 64  # that are decoded at a time, so that a long line takes linear time


class TextPrinter(BaseStreamer):
    """
    Passes the text of each new token to `write`, the prompt left out.

    Unlike the library's `TextStreamer` it never decodes tokens by themselves: SentencePiece's decoder drops a space at
    the beginning of a text, which would be one of each line's indentation. Nor does it decode a whole line at each
    token of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]):
        self.tokenizer, self.write = tokenizer, write
        self.ids: list[int] = []
        self.written: str | None = None  # before the prompt

    def _text(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def put(self, value: torch.Tensor) -> None:
        """Token ids, (1, time) or (1,): the first call has the prompt. Raises ValueError for a batch."""
        if value.dim() > 1 and value.shape[0] > 1:
            raise ValueError("Text can be printed of one sequence only.")
        self.ids += value.flatten().tolist()
        text = self._text()
        if self.written is None:
            self.written = text
        # A character of several tokens is not there before its last byte is.
        elif text.startswith(self.written) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self.write(text[len(self.written) :])
            self.written = text
        if text.endswith("\n"):  # from here on the line's end is enough to go before what comes
            self._keep(1)
        elif len(self.ids) > MAX_TOKENS:
            self._shorten(text)

    def _keep(self, count: int) -> None:
        self.ids = self.ids[-count:]
        self.written = self._text()

    def _shorten(self, text: str) -> None:
        """Forgets tokens that are written, from where the rest decodes to what it is in the whole text."""
        if self.written == text:
            for count in range(CONTEXT, CONTEXT + 4):  # not within a character, which is up to four tokens
                rest = self.tokenizer.decode(self.ids[-count:], skip_special_tokens=True)
                if rest and text.endswith(rest):
                    return self._keep(count)
        if len(self.ids) > 2 * MAX_TOKENS:  # such as bytes that are no character: they are not waited for any longer
            self.write(text[len(self.written) :])  # type: ignore[arg-type]
            self._keep(CONTEXT)

    def end(self) -> None:
        """After the last token: writes what was held back, and a newline."""
        self.write(self._text()[len(self.written or "") :] + "\n")
        self.ids, self.written = [], None


def print_text(text: str) -> None:
    """To standard output, at once. A terminal gets no control characters of the model's."""
    print(printable(text, line_ends=True) if sys.stdout.isatty() else text, end="", flush=True)
