# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer is lossless, has the released special tokens at the right ids, and loads without code."""

import json
from pathlib import Path

import pytest
from paths import SMALL
from transformers import AutoTokenizer

from iquest_plt.tokenization import bpe


NASTY = [
    "",
    " ",
    "\n",
    "\r\n\r\n\tx",
    "def f(x):\n    return x  \n\n\n        # deep\n",
    "tab\t\tspace  \t mixed\n\t \t\n",
    "0123456789 3.14e-10 0xFF 1_000",
    "\x00\x01\x7f\x80\xff",
    "naïve café Привет 你好 שלום 🙂🏳️‍🌈 e\u0301",
    "\u2028\u2029\u200b\ufeff\U0010ffff",
    "<s></s><unk><|im_start|>user<|im_end|>",
    "<s", "|im_end|>", "<|", "'''\"\"\"\\\\\\",
    "a" * 5000,
    " " * 1000 + "\n" * 1000,
]  # fmt: skip


@pytest.fixture(scope="module")
def small_tokenizer():
    texts = [file.read_text() for file in sorted(Path(bpe.__file__).parents[1].glob("*.py"))]
    return bpe.train(texts, vocab_size=700)


@pytest.fixture(scope="module", params=["trained", "shipped"])
def tokenizer(request, small_tokenizer, tmp_path_factory):
    if request.param == "trained":
        folder = tmp_path_factory.mktemp("tokenizer")
        bpe.save(small_tokenizer, folder)
        return AutoTokenizer.from_pretrained(folder)
    if not (SMALL / "tokenizer.json").exists():
        pytest.skip("no shipped checkpoint")
    return AutoTokenizer.from_pretrained(SMALL)


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    (plain,) = bpe.encode_documents(tokenizer, [text])
    assert tokenizer.decode(plain) == text
    assert not set(plain) & set(tokenizer.all_special_ids), "plain text must not become special tokens"


def test_special_ids(tokenizer):
    size = len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(bpe.BOTTOM_TOKENS) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids(bpe.TOP_TOKENS) == list(range(size - len(bpe.TOP_TOKENS), size))
    assert tokenizer.pad_token == "<PAD>"
    assert tokenizer.eos_token == bpe.END_TOKEN
    for token in bpe.BOTTOM_TOKENS + bpe.TOP_TOKENS:
        (token_id,) = tokenizer(token)["input_ids"]
        assert tokenizer.decode([token_id], skip_special_tokens=True) == ""


def test_adds_nothing(tokenizer):
    ids = tokenizer("x = 1")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "x"
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_prompt_boundary(tokenizer):
    """The tokens of a prompt that ends with a newline are a prefix of the whole text's tokens."""
    head, tail = "def f(x):\n", "    return x\n"
    (whole,), (first,) = (bpe.encode_documents(tokenizer, [text]) for text in (head + tail, head))
    assert whole[: len(first)] == first


def test_too_little_text():
    with pytest.raises(ValueError, match="Train on more text"):
        bpe.train(["abc"], vocab_size=700)


def test_shipped_config():
    path = SMALL / "tokenizer_config.json"
    if not path.exists():
        pytest.skip("no shipped checkpoint")
    config = json.loads(path.read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in config
    assert len(AutoTokenizer.from_pretrained(SMALL)) == bpe.VOCAB_SIZE
