# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Inputs for the training scripts (a tiny model folder with tokenizer and chat template, and texts), and helpers to read a
run's losses and gradients.
"""

import gc
import json
from pathlib import Path

import pytest
import torch
from paths import ROOT
from tiny import tiny_model
from transformers import TrainerCallback

from iquest_plt.tokenization import bpe


gc.freeze()  # each run ends with a garbage collection, which would scan everything imported so far

VOCAB_SIZE = 300
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Uses one thread in every test of a file that imports this: such small models gain nothing from a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_model(folder: Path, **overrides) -> Path:
    """Writes a model folder like that of `iquest-plt convert`."""
    tokenizer = bpe.train([(ROOT / "modeling_plt.py").read_text()], VOCAB_SIZE)
    tokenizer.chat_template = (ROOT / "chat_template.jinja").read_text()
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids["eos_token_id"] = tokenizer.convert_tokens_to_ids(bpe.STOP_TOKENS)
    fields = {
        "vocab_size": VOCAB_SIZE,
        "initializer_range": 0.05,
        "num_hidden_layers": 2,
        "max_position_embeddings": 1024,
        **ids,
        **overrides,
    }
    model = tiny_model(**fields)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_texts(folder: Path) -> Path:
    """Writes documents of very different lengths, an empty one, and a hidden file that is not text."""
    lines = (ROOT / "masks_plt.py").read_text().splitlines()[9:79]
    (folder / "deeper").mkdir(parents=True)
    for index, size in enumerate((1, 9, 3, 14, 2, 6, 4, 11)):
        place = folder / "deeper" if index % 2 else folder
        (place / f"{index}.py").write_text("\n".join(lines[7 * index : 7 * index + size]) + "\n")
    (folder / "empty.py").write_text("")
    (folder / ".hidden").write_bytes(b"\xff\xfe")
    return folder


def write_chats(path: Path) -> Path:
    """Writes conversations with several turns, a tool call, reasoning, and words of the template in the text."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    chats = [
        [("user", "Add."), ("assistant", "return a + b"), ("user", "Thanks."), ("assistant", "Gladly.")],
        [("system", "Be short."), ("user", "assistant\nWho?"), ("assistant", "I.")],
        [("user", "x" * 40), ("assistant", "y" * 70)],
        [("user", "Again?"), ("assistant", "No, user.")],
    ]
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    rows[0]["messages"][3]["reasoning_content"] = "Be kind."
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows.append(
        {"messages": [{"role": "user", "content": "1 + 2"}, answer, {"role": "tool", "content": "3"}], "tools": [TOOL]}
    )
    path.write_text("".join(json.dumps({"tools": [], **row}) + "\n" for row in rows))
    return path


class Gradients(TrainerCallback):
    """Keeps the gradients of the last step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    """Asserts agreement within 1e-6 of the largest entry of all, and 5e-6 of each tensor's (measured: 2e-6)."""
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= min(1e-6 * largest, 5e-6 * gradient.abs().max()), name


def losses_of(out):
    (state,) = (max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])) / "trainer_state.json",)
    history = json.loads(state.read_text())["log_history"]
    return [
        (entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in history if "train_loss" not in entry
    ]
