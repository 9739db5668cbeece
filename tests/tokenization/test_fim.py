# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Fill-in-the-middle prompts use the model family's tokens in the right order, and quoted tokens stay text."""

import pytest
import torch
from paths import SMALL
from transformers import AutoTokenizer

from iquest_plt.tokenization.fim import fim_inputs, fim_middle, fim_prompt


IN_ORDER = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
HEAD, TAIL = "def area(r):\n    return ", "\n\nprint(area(2))\n"


@pytest.fixture(scope="module")
def tokenizer():
    if not (SMALL / "tokenizer.json").exists():
        pytest.skip("no shipped checkpoint")
    return AutoTokenizer.from_pretrained(SMALL)


def test_text_and_ids_are_the_same_prompt(tokenizer):
    text = fim_prompt(HEAD, TAIL)
    assert text == f"<|fim_prefix|>{HEAD}<|fim_suffix|>{TAIL}<|fim_middle|>"
    inputs = fim_inputs(tokenizer, HEAD, TAIL)
    assert inputs.input_ids.tolist() == [tokenizer(text)["input_ids"]]
    assert inputs.attention_mask.tolist() == [[1] * inputs.input_ids.shape[1]]


def test_no_suffix(tokenizer):
    assert fim_prompt(HEAD) == f"<|fim_prefix|>{HEAD}<|fim_suffix|><|fim_middle|>"
    assert fim_inputs(tokenizer, "").input_ids.tolist() == [tokenizer.convert_tokens_to_ids(IN_ORDER)]


@pytest.mark.parametrize("token", IN_ORDER)
@pytest.mark.parametrize("where", [0, 1])
def test_quoted_tokens(tokenizer, token, where):
    """A text prompt rejects them because they would end the prefix. As ids they are plain text."""
    parts = [f"x = '{token}'", ""] if where == 0 else ["", f"x = '{token}'"]
    with pytest.raises(ValueError, match="fim_inputs"):
        fim_prompt(*parts)
    (ids,) = fim_inputs(tokenizer, *parts).input_ids.tolist()
    markers = tokenizer.convert_tokens_to_ids(IN_ORDER)
    assert [index for index in ids if index in markers] == markers
    first, second = (ids.index(marker) for marker in markers[:2])
    assert [tokenizer.decode(ids[first + 1 : second]), tokenizer.decode(ids[second + 1 : -1])] == parts
    # The tokenizer itself is unchanged.
    assert tokenizer(token)["input_ids"] == [tokenizer.convert_tokens_to_ids(token)]


@pytest.mark.parametrize("stop", ["", "</s>", "<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|fim_prefix|>"])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_middle(tokenizer, stop, as_tensor):
    gap = "    3.14159 * r ** 2"
    (prompt,) = fim_inputs(tokenizer, HEAD + "<|fim_middle|>", TAIL).input_ids.tolist()
    row = prompt + tokenizer(gap + stop + ("rubbish" if stop else ""))["input_ids"]
    assert fim_middle(tokenizer, torch.tensor(row) if as_tensor else row) == gap


def test_rejections(tokenizer):
    with pytest.raises(ValueError, match="whole row"):
        fim_middle(tokenizer, tokenizer("no prompt")["input_ids"])

    class Without:
        def get_vocab(self):
            return {"<|fim_prefix|>": 0, "<|fim_middle|>": 1}

    with pytest.raises(ValueError, match=r"no <\|fim_suffix\|>"):
        fim_inputs(Without(), HEAD, TAIL)
