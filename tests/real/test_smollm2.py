# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, a real Llama, converted and compared with itself. `make test-real` fetches it."""

import pytest
import torch
from paths import ROOT
from real_text import QUESTIONS, chat, held_out, loss
from transformers import AutoTokenizer

from iquest_plt.conversion.verify import verify


def test_the_folder_is_whole(folder):
    assert verify(folder)["problems"] == []


def test_ids_and_chat_template_are_the_original_ones(tokenizer, gguf):
    original = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
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
