# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The recipe of the small checkpoint: kernels, data split, exact resuming, and the shipped numbers."""

import dataclasses
import importlib.metadata
import json
import math
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from interrupted_run import Kill, KilledError
from paths import SMALL
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from iquest_plt import IQuestPLTCoderForCausalLM
from iquest_plt.training import data, evaluate, kernels, optimizer


pytest.importorskip(
    "accelerate", reason="Trainer needs accelerate: pip install '.[training]' in a checkout of iquest-plt"
)
small = pytest.importorskip("iquest_plt.training.small")

needs_checkpoint = pytest.mark.skipif(not (SMALL / "metrics.json").exists(), reason="no shipped checkpoint")
TINY = small.Recipe(
    model={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
    },
    vocab_size=600,
    heldout_share=0.4,
    tokens=4 * 256,
    tokens_per_step=256,
    row=128,
    early_row=64,
    warmup_steps=2,
    save_steps=2,
    eval_steps=2,
    eval_rows=2,
    log_steps=1,
)


NEW_TEXT = "".join(f"def function_{n}(argument):\n    return argument * {n} + {n * n}\n\n" for n in range(60))


@pytest.mark.parametrize("time", [40, 64, 300])
@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (3, 1), (2, 2)])
def test_attention_kernels(time, heads, kv_heads):
    query = torch.randn(2, time, heads, 16).transpose(1, 2)  # laid out as in the model
    key, value = torch.randn(2, 2, time, kv_heads, 16).transpose(2, 3).unbind()
    distance = torch.arange(time)[:, None] - torch.arange(time)
    causal = distance >= 0
    for mask, output in (
        (causal, kernels.causal_attention(query, key, value, 0.25)),
        (causal & (distance <= 64), kernels.window_attention(query, key, value, 0.25, 64)),
        (causal & (distance <= 7), kernels.window_attention(query, key, value, 0.25, 7)),
    ):
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.25, enable_gqa=True)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_the_whole_model_with_the_kernels():
    """Loss and gradients equal those of the model's eager attention and loss."""
    tokenizer_ids = type("Ids", (), {"bos_token_id": 1, "pad_token_id": 5})
    tokenizer_ids.convert_tokens_to_ids = staticmethod(lambda names: [2] * len(names))
    model = small.build_model(TINY, tokenizer_ids)
    input_ids = torch.randint(TINY.vocab_size, (2, 100))
    states = model.model(input_ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    labels = input_ids[:, 1:].flatten()
    loss = kernels.chunked_cross_entropy(states, model.lm_head.weight, labels, chunk=64) / len(labels)
    loss.backward()
    gradients = {name: param.grad for name, param in model.named_parameters()}
    reference = IQuestPLTCoderForCausalLM._from_config(model.config, attn_implementation="eager")
    reference.load_state_dict(model.state_dict())
    expected = reference(input_ids, labels=input_ids, use_cache=False).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, param in reference.named_parameters():
        torch.testing.assert_close(gradients[name], param.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_kernels_refuse_masks():
    query = torch.randn(1, 2, 8, 4)
    with pytest.raises(ValueError, match="full rows"):
        kernels._attention(None, query, query, query, torch.zeros(8, 8), 1.0)


def test_orthogonalize():
    singular = torch.linalg.svdvals(optimizer.orthogonalize(torch.randn(3, 64, 32)))
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_adamw_equals_torch_adamw():
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    first = optimizer.MuonAdamW([{"params": [ours], "kind": "adamw"}], lr=0.1, weight_decay=0.2)
    second = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.2, betas=(0.9, 0.95))
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(5)
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs)


def test_collect_skips_excluded_files(library):
    paths = {document.path for document in data.collect(library)}
    assert "copied.py" in paths
    assert not paths & {"latin1.py", "site-packages/other.py"}


def test_collect_packages(library, monkeypatch):
    """Collects the packages' Python files, with version and licence in the manifest; refuses other packages."""
    alone, both = data.collect(library), data.collect(library, ["rich"])
    ours = [document for document in both if document.path.startswith("rich/")]
    assert {"rich/console.py", "rich/table.py"} < {document.path for document in ours}
    assert sorted(alone + ours, key=lambda document: document.path) == both
    version = importlib.metadata.version("rich")
    assert data.manifest(both, ["rich"])["packages"] == [{"name": "rich", "version": version, "licence": "MIT"}]
    with pytest.raises(ValueError, match="choose from accelerate"):
        data.collect(library, ["hypothesis"])
    monkeypatch.setitem(data.PACKAGES, "unheard-of", "MIT")
    with pytest.raises(ValueError, match="pip install unheard-of"):
        data.collect(library, ["unheard-of"])


def write_wheel(folder, name: str, **texts: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in texts.items():
            wheel.writestr(f"{name}/{path}.py", text)


def test_collect_wheels(tmp_path, monkeypatch):
    """Reads wheels that pip has downloaded; refuses others, and reports a failed download."""
    monkeypatch.setattr(data, "WHEELS", {"one==1.0": "MIT"})
    calls = []

    def pip(command):
        calls.append(command)
        folder.mkdir(exist_ok=True)
        write_wheel(folder, "one", module="x = 1\n" * 20, short="y", binary="z" * 99)
        return subprocess.CompletedProcess(command, status)

    folder, status = tmp_path / "wheels", 0
    monkeypatch.setattr(data.subprocess, "run", pip)
    documents = data.collect_wheels(["one==1.0"], folder)
    assert {document.path for document in documents} == {"one/module.py", "one/binary.py"}
    assert calls[0][-1] == "one==1.0" and "--no-deps" in calls[0]
    assert data.manifest(documents, wheels=["one==1.0"])["wheels"] == [
        {"name": "one", "version": "1.0", "licence": "MIT"}
    ]
    with pytest.raises(ValueError, match=r"choose from one==1\.0"):
        data.collect_wheels(["two==1.0"], folder)
    status = 1
    with pytest.raises(ValueError, match=r"download of one==1\.0 failed"):
        data.collect_wheels(["one==1.0"], folder)


def test_wheels_overlap_with_nothing_held_out(library):
    """Files that resemble a held-out one are left out; those that resemble a training file only if they are copies."""
    documents = data.split(data.collect(library), heldout_share=0.5)
    sides = {
        side: next(d for d in documents if d.split == side and d.num_bytes > 4000) for side in ("train", "heldout")
    }
    halves = {side: d.text[: 2 * len(d.text) // 3] + NEW_TEXT for side, d in sides.items()}
    candidates = [data.Document(f"{side}_half.py", text) for side, text in halves.items()]
    candidates += [data.Document(f"{side}_copy.py", d.text) for side, d in sides.items()]
    candidates += [data.Document(f"{side}_edited.py", d.text + "\nx = 1\n") for side, d in sides.items()]
    candidates += [
        data.Document(name, NEW_TEXT.replace("argument", "other").replace("*", "-")) for name in ("new.py", "same.py")
    ]
    kept = {document.path for document in data.without_overlap(candidates, documents)}
    assert kept == {"train_half.py", "new.py"}


@pytest.mark.slow
def test_a_second_stage_starts_from_the_first(library, tmp_path, monkeypatch):
    """It keeps tokenizer and held-out files, adds wheels, and its card counts the tokens of both."""
    first = small.train(tmp_path / "first", TINY, library)
    small.export(tmp_path / "first", tmp_path / "model", library)
    wheel = data.Document("one/module.py", NEW_TEXT * 5)
    monkeypatch.setattr(data, "WHEELS", {"one==1.0": "MIT"})
    monkeypatch.setattr(data, "collect_wheels", lambda requirements, folder: [wheel])
    recipe = dataclasses.replace(TINY, initial=str(tmp_path / "model"), wheels=("one==1.0",))
    start = small.build_model(recipe, None)
    for (name, one), other in zip(start.named_parameters(), first.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2, msg=name)  # exported in bf16
    small.train(tmp_path / "second", recipe, library)
    metrics = small.export(tmp_path / "second", tmp_path / "again", library)
    assert metrics["training"]["tokens_before"] == TINY.tokens
    one, two = (
        json.loads((tmp_path / name / "data_manifest.json").read_text())["files"] for name in ("first", "second")
    )
    assert [f for f in one if f["split"] == "heldout"] == [f for f in two if f["split"] == "heldout"]
    assert {f["path"] for f in two} - {f["path"] for f in one} == {"one/module.py"}
    tokenizers = [(tmp_path / name / "tokenizer" / "tokenizer.json").read_bytes() for name in ("first", "second")]
    assert tokenizers[0] == tokenizers[1]
    card = (tmp_path / "again" / "README.md").read_text()
    assert f"{TINY.tokens:,} tokens in earlier runs" in card and "\n* MIT: one 1.0\n" in card


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_split(library, share):
    documents = data.split(data.collect(library), heldout_share=share)
    texts = [document.text for document in documents]
    assert len(set(texts)) == len(texts), "exact copies are dropped"
    sketches = [data.sketch(text) for text in texts]
    for (i, j), overlap in data.overlaps(sketches).items():
        assert overlap < data.CLUSTER_OVERLAP or documents[i].split == documents[j].split
    sides = {document.path: document.split for document in documents}
    assert len(set(sides.values())) == 2
    edited = [sides[path] for path in ("edited.py", "copied.py", "modeling_plt.py") if path in sides]
    assert edited and len(set(edited)) == 1
    again = data.split(data.collect(library), heldout_share=share)
    assert data.manifest(again) == data.manifest(documents)


def test_rows():
    stream = torch.arange(1000).numpy().astype("uint16")
    rows = data.PackedRows(stream, 64, 100, seed=3)
    read = [rows[index]["input_ids"] for index in range(100)]
    assert all(row == list(range(row[0], row[0] + 64)) for row in read)
    first_pass = [row[0] for row in read[: rows.rows_per_pass]]
    assert len(set(first_pass)) == rows.rows_per_pass, "a pass visits each row once"
    assert [data.PackedRows(stream, 64, 100, seed=3)[index]["input_ids"] for index in (99, 0)] == [read[99], read[0]]


def losses(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def test_resume_is_exact(library, tmp_path):
    """A run killed after step 3 resumes from step 2, with the losses and weights of an uninterrupted run."""
    whole = small.train(tmp_path / "whole", TINY, library)
    with pytest.raises(KilledError):
        small.train(tmp_path / "killed", TINY, library, callbacks=(Kill(),))
    (tmp_path / "killed" / "checkpoint-3").mkdir()  # as if killed while writing a checkpoint
    resumed = small.train(tmp_path / "killed", TINY, library)
    assert not (tmp_path / "killed" / "checkpoint-3").exists()
    assert losses(resumed) == losses(whole)
    assert len(losses(whole)) == 4
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("name", ["data_manifest.json", "train.npy", "heldout.npy"])
def test_errors_name_damaged_data(name, library, tmp_path):
    small.prepare(tmp_path, TINY, library)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:9])
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        small.prepare(tmp_path, TINY, library)


def test_stops_when_diverged(library, tmp_path):
    recipe = dataclasses.replace(TINY, adamw_lr=float("nan"), muon_lr=float("nan"))
    with pytest.raises(small.DivergedError, match="The loss at step"):
        small.train(tmp_path, recipe, library)


def test_schedule():
    recipe = small.Recipe()
    factors = [recipe.lr_factor(step) for step in range(recipe.steps + 1)]
    assert max(factors) == 1 and factors[recipe.warmup_steps] == 1 == factors[recipe.decay_start]
    assert factors[-1] == 0 < factors[-2] < 0.01


def test_document_bits_windows(monkeypatch):
    """Every token is scored once: for a model that ignores context, the window size does not matter."""

    class Uniform(torch.nn.Module):
        device = "cpu"

        def forward(self, ids, use_cache, logits_to_keep, num_loops):
            weights = torch.arange(600.0).expand(1, ids.shape[1], -1)[:, -logits_to_keep:]
            return type("Output", (), {"logits": weights / 100})

    ids = torch.randint(600, (1000,)).tolist()
    logits = (torch.arange(600.0) / 100).log_softmax(-1)
    expected = -sum(logits[token].item() for token in [*ids, 7]) / math.log(2)
    for window, stride in ((2048, 1024), (64, 32), (100, 7), (1001, 1000)):
        monkeypatch.setattr(evaluate, "WINDOW", window)
        monkeypatch.setattr(evaluate, "STRIDE", stride)
        assert evaluate.document_bits(Uniform(), ids, 7) == pytest.approx(expected, rel=1e-5)


@needs_checkpoint
def test_shipped_bits_per_byte():
    metrics = json.loads((SMALL / "metrics.json").read_text())
    manifest = json.loads((SMALL / "data_manifest.json").read_text())
    try:
        documents = {document.path: document for document in evaluate.heldout_documents(manifest)}
    except FileNotFoundError as error:
        pytest.skip(str(error))
    model = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32)
    texts = [documents[path].text for path in metrics["slice"]["paths"]]
    measured = evaluate.bits_per_byte(model, AutoTokenizer.from_pretrained(SMALL), texts)
    assert measured == pytest.approx(metrics["slice"]["plt_r2"], rel=0.01)


@needs_checkpoint
def test_shipped_split():
    manifest = json.loads((SMALL / "data_manifest.json").read_text())
    files, wheels = manifest["files"], {wheel["name"] for wheel in manifest["wheels"]}
    library = [entry for entry in files if not wheels & set(Path(entry["path"]).parts[:1])]
    copies = Counter(entry["sha256"] for entry in files)
    assert all(copies[entry["sha256"]] == 1 for entry in files if entry["split"] == "heldout")
    assert len(files) - len(copies) <= 43  # among the packages of the third stage; since then, they are dropped
    assert len(library) < len(files) and all(entry in library for entry in files if entry["split"] == "heldout")
    share = {split: sum(f["bytes"] for f in library if f["split"] == split) for split in ("train", "heldout")}
    assert 0.02 < share["heldout"] / sum(share.values()) < 0.08
