# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Classifiers on a PLT: equal to Llama's with one loop, independent of padding, and usable as reward models."""

import pytest
import torch
from finetuning import write_model
from tiny import VOCAB, llama_of, tiny_model, tokens
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    pipeline,
)


PAD = 0
HEADS = {
    "sequence": (AutoModelForSequenceClassification, LlamaForSequenceClassification),
    "token": (AutoModelForTokenClassification, LlamaForTokenClassification),
    "answer": (AutoModelForQuestionAnswering, LlamaForQuestionAnswering),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("heads")
    tiny_model(pad_token_id=PAD).save_pretrained(path)
    return path


def classifier(folder, kind, **fields):
    torch.manual_seed(0)  # the head is random
    labels = {} if kind == "answer" else {"num_labels": 3}
    return HEADS[kind][0].from_pretrained(folder, **labels, **fields).eval()


def words(*shape):
    return tokens(*shape).clamp(min=PAD + 1)


def logits(model, *args, **kwargs):
    """Returns the logits (batch, …) of any kind of head."""
    with torch.no_grad():
        output = model(*args, **kwargs)
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], dim=-1)


@pytest.mark.parametrize("kind", HEADS)
def test_one_loop_is_llama(kind, folder):
    """The heads have the same names, shapes and losses."""
    model = classifier(folder, kind, attn_implementation="eager")
    llama = HEADS[kind][1](llama_of(tiny_model(pad_token_id=PAD)).config)
    if kind != "answer":
        llama = HEADS[kind][1](type(llama.config).from_dict(llama.config.to_dict() | {"num_labels": 3}))
    weights = {name: value for name, value in model.state_dict().items() if "plt_gate" not in name}
    prefix = f"{llama.base_model_prefix}."  # Llama uses another prefix for question answering
    llama.load_state_dict({name.replace("model.", prefix): value for name, value in weights.items()})
    llama.eval().set_attn_implementation("eager")
    ids = words(3, 9)
    labels = {
        "sequence": {"labels": torch.tensor([0, 2, 1])},
        "token": {"labels": torch.arange(27).reshape(3, 9) % 3},
        "answer": {"start_positions": torch.tensor([0, 3, 2]), "end_positions": torch.tensor([1, 8, 5])},
    }[kind]
    assert torch.equal(logits(model, ids, num_loops=1), logits(llama, ids))
    assert torch.equal(model(ids, num_loops=1, **labels).loss, llama(ids, **labels).loss)
    assert not torch.allclose(logits(model, ids), logits(llama, ids), atol=1e-3)


@pytest.mark.parametrize("kind", HEADS)
def test_number_of_loops(kind, folder):
    """The number of loops can be set by argument or configuration."""
    model, ids = classifier(folder, kind), words(2, 11)
    head = model.qa_outputs if kind == "answer" else model.score
    for num_loops in (1, 2, 3):
        with torch.no_grad():
            expected = head(model.model(ids, num_loops=num_loops).last_hidden_state)
        expected = expected[:, -1] if kind == "sequence" else expected
        torch.testing.assert_close(logits(model, ids, num_loops=num_loops), expected)
        configured = classifier(folder, kind, plt_num_loops=num_loops)
        configured.load_state_dict(model.state_dict())
        torch.testing.assert_close(logits(configured, ids), expected)
    assert not torch.allclose(logits(model, ids, num_loops=1), logits(model, ids), atol=1e-3)
    with pytest.raises(ValueError, match="num_loops"):
        model(ids, num_loops=0)


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("kind", HEADS)
def test_padding_does_not_change_a_row(kind, num_loops, folder):
    """Covers left and right: a reward model trains on right-padded rows and is used on left-padded ones."""
    model = classifier(folder, kind)
    ids, length = words(2, 11), 6
    short = ids[1:, :length]
    for side in ("left", "right"):
        columns = slice(11 - length, None) if side == "left" else slice(length)
        batch = torch.stack([ids[0], torch.full_like(ids[0], PAD)])
        batch[1, columns] = short
        found = logits(model, batch, attention_mask=(batch != PAD).long(), num_loops=num_loops)
        alone = logits(model, short, num_loops=num_loops)[0]
        torch.testing.assert_close(found[0], logits(model, ids[:1], num_loops=num_loops)[0])
        torch.testing.assert_close(found[1] if kind == "sequence" else found[1, columns], alone)


def test_llamas_rules_for_padding(folder):
    model = classifier(folder, "sequence")
    model.config.pad_token_id = None
    assert logits(model, words(1, 5)).shape == (1, 3)
    with pytest.raises(ValueError, match="padding token"):
        model(words(2, 5))


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_reach_head_decoder_and_gates(kind, folder):
    model = classifier(folder, kind).train()
    model.gradient_checkpointing_enable()
    ids = words(2, 9)
    labels = {"labels": torch.tensor([0, 1])} if kind == "sequence" else {"labels": ids % 3}
    if kind == "answer":
        labels = {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([4, 2])}
    model(ids, **labels).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_saved_and_loaded(folder, tmp_path):
    model = classifier(folder, "sequence", id2label={0: "bad", 1: "fair", 2: "good"}, label2id={"bad": 0})
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.num_labels == 3 and loaded.config.id2label[2] == "good"
    assert torch.equal(logits(loaded, words(1, 7)), logits(model, words(1, 7)))


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "text-generation"])
def test_pipelines(task, tmp_path, caplog):
    """A list of texts gives the same results as single texts, and the library reports no unsupported model."""
    folder = write_model(tmp_path)
    if task != "text-generation":
        auto_class = HEADS[task.split("-")[0].replace("text", "sequence")][0]
        auto_class.from_pretrained(folder, num_labels=2).save_pretrained(folder)
    caplog.clear()
    run = pipeline(task, model=str(folder), **({"do_sample": False} if task == "text-generation" else {}))
    texts = ["import os", "def main(self, *args):"]
    options = {"max_new_tokens": 5} if task == "text-generation" else {}
    together, alone = run(texts, batch_size=2, **options), [run(text, **options) for text in texts]
    assert len(together) == 2
    for one, other in zip(together, alone, strict=True):
        one, other = (entry if isinstance(entry, dict) else entry[0] for entry in (one, other))
        assert one.keys() == other.keys()
        for name in one.keys() - {"index"}:
            assert one[name] == (pytest.approx(other[name], abs=1e-5) if name == "score" else other[name])
    assert "not supported" not in caplog.text


def test_reward_trainer(tmp_path):
    """TRL loads the reward model by its path, and training lowers the loss."""
    datasets = pytest.importorskip(
        "datasets", reason="TRL needs it: pip install '.[training]' in a checkout of iquest-plt"
    )
    trl = pytest.importorskip("trl", reason="pip install '.[training]' in a checkout of iquest-plt")
    folder = write_model(tmp_path / "model")
    rows = [{"chosen": "def good():\n    return 1", "rejected": "def bad():\n    pass pass"}] * 4
    arguments = trl.RewardConfig(
        tmp_path / "out",
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    trainer = trl.RewardTrainer(str(folder), args=arguments, train_dataset=datasets.Dataset.from_list(rows))
    assert type(trainer.model).__name__ == "IQuestPLTCoderForSequenceClassification"
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    trainer.save_model(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert model.config.num_labels == 1 and model.config.vocab_size != VOCAB
