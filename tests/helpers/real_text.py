# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Questions and held-out text for a real model, and its loss."""

import torch
from paths import ROOT


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


def chat(tokenizer, *questions: str):
    """Returns the inputs of `generate()`: one question per row, padded on the left."""
    tokenizer.padding_side = "left"
    messages = [[{"role": "user", "content": question}] for question in questions]
    arguments = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", "padding": True}
    return tokenizer.apply_chat_template(messages, **arguments)


def held_out(tokenizer) -> list[torch.Tensor]:
    """Returns text and code of this repository, which no release of the model has seen: 8 rows of 256 tokens."""
    files = ("CONTRIBUTING.md", "docs/architecture.md", "grid_plt.py", "conversion/upcycling.py")
    ids = torch.cat([tokenizer((ROOT / file).read_text(), return_tensors="pt").input_ids[0, :512] for file in files])
    return list(ids[: len(ids) // 256 * 256].view(-1, 256))


def loss(model, rows, **kwargs) -> float:
    """Returns the mean loss of the rows in nats per token."""
    with torch.no_grad():
        losses = [model(row[None], labels=row[None], use_cache=False, **kwargs).loss.item() for row in rows]
    return sum(losses) / len(losses)
