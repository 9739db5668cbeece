# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Training on conversations with TRL's SFTTrainer: tokens in the loss, packed rows, and the script."""

import json
import re
from pathlib import Path

import pytest
import torch
from interrupted_run import Kill, KilledError
from paths import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer


pytest.importorskip("trl", reason="the script needs it: pip install '.[training]' in a checkout of iquest-plt")
pytest.importorskip("peft", reason="the script needs it: pip install '.[training]' in a checkout of iquest-plt")

import peft
from finetuning import (
    Gradients,
    assert_same,
    losses_of,
    one_thread,  # noqa: F401 (a fixture for all)
    write_chats,
    write_model,
)

from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify
from iquest_plt.training import common, sft


# The assistant's turns of write_chats(), as the template renders them.
ANSWERS = [
    ["return a + b<|im_end|>", "<think>\nBe kind.\n</think>\n\nGladly.<|im_end|>"],
    ["I.<|im_end|>"],
    ["y" * 70 + "<|im_end|>"],
    ["No, user.<|im_end|>"],
    ['<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>'],
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model", initializer_range=0.15)


@pytest.fixture
def command(model_folder, tmp_path):
    options = {"model": model_folder, "data": write_chats(tmp_path / "chats.jsonl"), "out": tmp_path / "run"}
    options |= {"length": 600, "batch": 8, "steps": 1, "lr": 1e-2, "heldout-share": 0, "log-steps": 1, "save-steps": 2}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that the script creates, each with its gradients."""
    made, make = [], sft.make_trainer

    def keep(args, model, tokenizer):
        trainer = make(args, model, tokenizer)
        trainer.add_callback(gradients := Gradients())
        trainer.args.max_grad_norm = 0.0
        made.append((trainer, gradients))
        return trainer

    monkeypatch.setattr(sft, "make_trainer", keep)
    return made


def targets(row):
    """Returns the contiguous runs of tokens that count in the loss."""
    runs, before = [], -1
    for index, label in enumerate(row["labels"]):
        if label != -100:
            assert label == row["input_ids"][index]
            if index != before + 1:
                runs.append([])
            runs[-1].append(label)
            before = index
    return runs


def by_hand(model_folder, rows, num_loops):
    """Computes the mean loss of the counted tokens and its gradients, conversation by conversation."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, plt_num_loops=num_loops).train()
    total, count = 0, 0
    for row in rows:
        labels = torch.tensor(row["labels"])[1:]
        logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        count += (labels != -100).sum()
    (total / count).backward()
    return (total / count).item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_only_the_assistants_tokens_count(command, model_folder, trainers):
    sft.main([*command, "--rows", "padded"])
    rows = trainers[0][0].train_dataset
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert [[tokenizer.decode(run) for run in targets(row)] for row in rows] == ANSWERS
    chats = [json.loads(line) for line in (Path(command[3])).read_text().splitlines()]
    for chat, row in zip(chats, rows, strict=True):
        text = tokenizer.apply_chat_template(chat["messages"], tools=chat["tools"] or None, tokenize=False)
        assert tokenizer.decode(row["input_ids"]) == text


def test_all_text_counts_with_all_text(command, trainers):
    sft.main([*command, "--rows", "padded", "--all-text"])
    assert all(row["labels"] == row["input_ids"] for row in trainers[0][0].train_dataset)


@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_all_kinds_of_rows_give_the_same_step(num_loops, command, model_folder, trainers, tmp_path):
    """Conversations do not see each other in attention, windows and shift: the results equal separate passes."""
    for rows, more in (("padded", []), ("flat", []), ("packed", []), ("packed", ["--checkpointing"])):
        out = tmp_path / f"{rows}{len(more)}"
        sft.main([*command, "--out", str(out), "--rows", rows, "--num-loops", str(num_loops), *more])
    loss, expected = by_hand(model_folder, trainers[0][0].train_dataset, num_loops)
    for trainer, gradients in trainers:
        assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-6)
        assert_same(gradients.found, expected)
    packed = trainers[2][0].train_dataset
    assert 1 < len(packed) < len(ANSWERS) and max(map(len, packed["seq_lengths"])) > 1
    assert abs(by_hand(model_folder, packed, num_loops)[0] - loss) > 1e-3  # would be the loss if they saw each other


def test_run(command, model_folder, tmp_path, capsys):
    sft.main([*command, "--steps", "6", "--heldout-share", "0.4", "--rows", "padded", "--bf16"])
    assert re.search(r"step 6/6  loss \d", capsys.readouterr().out)
    curve = losses_of(tmp_path / "run")
    assert curve[-1][2] < curve[0][1] - 0.1
    for result in (tmp_path / "run" / "model", tmp_path / "run" / "checkpoint-6"):
        template = AutoTokenizer.from_pretrained(result).chat_template
        assert template == (ROOT / "chat_template.jinja").read_text()  # not the one with tags for training
    result = tmp_path / "run" / "model"
    assert verify(result)["problems"] == []
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model_folder, result))
    assert after == before


@pytest.mark.parametrize("rows", ["packed", "flat"])
def test_a_killed_run_resumes_exactly(rows, command, tmp_path, monkeypatch):
    command += ["--steps", "5", "--batch", "1", "--rows", rows]
    sft.main([*command, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        patch.setattr(common, "Guard", Kill)
        with pytest.raises(KilledError):
            sft.main(command)
    sft.main(command)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_adapters(command, model_folder, tmp_path):
    sft.main([*command, "--lora", "--rank", "4", "--targets", "attention", "--no-gates", "--steps", "3"])
    assert not (tmp_path / "run" / "model").exists()
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    ids = torch.arange(20)[None]
    before = model(ids).logits
    model = peft.PeftModel.from_pretrained(model, tmp_path / "run" / "adapter")
    assert (model(ids).logits - before).abs().max() > 1e-3
    names = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_" in name}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}


CHAT = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize(
    "rows, options, message",
    [
        ([{"text": "Hello."}], [], "has no field 'messages', only text"),
        ([{"messages": "Hello."}], [], "conversational"),
        ([{"messages": CHAT[:1]}], [], "no assistant tokens"),
        ([{"messages": CHAT}, {"messages": []}], [], "chats.jsonl has a conversation without messages"),
        ([{"messages": CHAT}], ["--length", "8"], "chats.jsonl has no tokens that count in the loss"),
        ([], [], "chats.jsonl cannot be read: it is empty"),
        ([{"messages": None}], [], "chats.jsonl: You set"),
        ([{"messages": [{"role": "robot", "content": "Hello."}, CHAT[1]]}], [], "must be system, user, assistant"),
        ([{"messages": CHAT}], ["--rows", "flat", "--length", "20"], "more than --length 20"),
        ([{"messages": CHAT}], ["--heldout-share", "0.5"], "Holding out a share needs at least two documents"),
        ([{"messages": CHAT}], ["--model", "{tmp}/plain"], "has no chat template. `iquest-plt convert"),
    ],
)
def test_refusals(rows, options, message, command, model_folder, tmp_path):
    if "{tmp}/plain" in options:
        convert(str(model_folder), tmp_path / "plain")
        (tmp_path / "plain" / "chat_template.jinja").unlink()
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match=re.escape(message)) as refusal:
        sft.main([*command, *(option.format(tmp=tmp_path) for option in options)])
    assert "\n" not in str(refusal.value)


def test_small_checkpoint(tmp_path):
    """Follows a user: convert, train, and chat."""
    convert(str(ROOT / "checkpoints" / "small"), tmp_path / "model")
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    options = ["--model", tmp_path / "model", "--data", tmp_path / "chats.jsonl", "--out", tmp_path / "run"]
    options += ["--length", 64, "--steps", 12, "--lr", 1e-3, "--heldout-share", 0, "--save-steps", 12]
    sft.main([str(option) for option in options])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]) == "Hello.<|im_end|>"
