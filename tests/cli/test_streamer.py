# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Printing of text while it is generated, with a tokenizer whose decoder drops a leading space."""

import pytest
import torch

from iquest_plt.cli.streamer import TextPrinter


TEXT = "def f(x):\n    if x:\n        return 'é 😀 中文'\n\n    return  None\n \n  end"


@pytest.mark.parametrize("cut", [1, 3, 9, 20])
def test_the_text_after_the_prompt_is_printed(spm_tokenizer, cut):
    ids = spm_tokenizer.encode(TEXT, add_special_tokens=False)
    pieces = []
    printer = TextPrinter(spm_tokenizer, pieces.append)
    printer.put(torch.tensor([ids[:cut]]))
    assert not pieces
    for token in ids[cut:]:
        printer.put(torch.tensor([token]))
    printer.end()
    assert "".join(pieces) == TEXT[len(spm_tokenizer.decode(ids[:cut])) :] + "\n"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert len(pieces) > 10  # printed piece by piece


def test_a_batch_is_refused(spm_tokenizer):
    with pytest.raises(ValueError, match="Only one sequence"):
        TextPrinter(spm_tokenizer, print).put(torch.zeros(2, 3, dtype=torch.long))


LONG = [
    "x = [" + ", ".join(f"'é 😀 {i}'" for i in range(100)) + "]",
    "中文😀" * 60,
    "a    b" * 100,
    " " * 300 + "x",
]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_a_long_line_prints_as_it_decodes_at_once(spm_tokenizer, text):
    ids = spm_tokenizer.encode(text, add_special_tokens=False)
    pieces = []
    printer = TextPrinter(spm_tokenizer, pieces.append)
    printer.put(torch.tensor([ids[:1]]))
    for token in ids[1:]:
        printer.put(torch.tensor([token]))
    printer.end()
    assert len(ids) > 150
    assert "".join(pieces) == text[len(spm_tokenizer.decode(ids[:1])) :] + "\n"


@pytest.mark.parametrize("text", ["ab ", "é", "\ufffd"])
def test_tokens_are_not_decoded_repeatedly(spm_tokenizer, text):
    """Neither in a long line nor in bytes that never form a character."""
    byte = spm_tokenizer.convert_tokens_to_ids("<0x80>")
    ids = [byte] * 2000 if text == "\ufffd" else spm_tokenizer.encode(text * 2000, add_special_tokens=False)
    decoded = []

    class Counting:
        def decode(self, ids, **options):
            decoded.append(len(ids))
            return spm_tokenizer.decode(ids, **options)

    pieces = []
    printer = TextPrinter(Counting(), pieces.append)
    for token in ids[:2000]:
        printer.put(torch.tensor([token]))
    printer.end()
    assert sum(decoded) < 300 * len(ids) and max(decoded) < 150
    if text != "\ufffd":
        assert text * 800 in "".join(pieces)
    else:
        assert "".join(pieces).count(text) > 1900
