# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Verification finds and reports the problems of a folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from paths import SMALL
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from vendor_checkpoints import write_vendor

from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify")
    convert(str(write_vendor(path / "source", tiny_model(), shards=2)), path / "target")
    return path / "target"


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "folder"))


@pytest.fixture(scope="module")
def converted_small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "target"
    convert(str(SMALL), path)
    return path


def edit(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def change_number(folder: Path, value: float) -> None:
    tensors = load_file(shard(folder))
    tensors["model.embed_tokens.weight"][5, 7] = value
    save_file(tensors, shard(folder), metadata={"format": "pt"})


def test_a_complete_folder_has_no_problems(whole):
    report = verify(whole)
    assert report["problems"] == []
    assert report["notes"] == ["There is no tokenizer.json."]


DAMAGE = {
    "another number": (lambda folder: change_number(folder, 1.0), "its SHA-256 is different"),
    "not a number": (lambda folder: change_number(folder, float("nan")), "holds NaN or infinity"),
    "infinity": (lambda folder: change_number(folder, float("-inf")), "holds NaN or infinity"),
    "other code": (lambda folder: (folder / "cache_plt.py").write_text("\n"), "cache_plt.py has 1 bytes"),
    "missing code": (lambda folder: (folder / "masks_plt.py").unlink(), "masks_plt.py is missing"),
    "missing shard": (lambda folder: shard(folder).unlink(), "is missing"),
    "longer shard": (lambda folder: shard(folder).open("ab").write(b"1"), "damaged"),
    "shorter shard": (lambda folder: os.truncate(shard(folder), shard(folder).stat().st_size - 1), "damaged"),
    "index of another size": (
        lambda folder: edit(folder / "model.safetensors.index.json", metadata={"total_size": 3}),
        "says 3 bytes in total",
    ),
    "config of another size": (lambda folder: edit(folder / "config.json", hidden_size=64), "config.json needs"),
    "config of another dtype": (lambda folder: edit(folder / "config.json", dtype="float16"), "says float16"),
    "config of another model": (lambda folder: edit(folder / "config.json", model_type="gpt2"), "the model type"),
    "manifest of other tensors": (lambda folder: edit(folder / "manifest.json", tensors={}), "not match the tensors"),
    "code that nobody listed": (lambda folder: (folder / "evil.py").write_text("1"), "does not list evil.py"),
    "weights that nobody listed": (lambda folder: (folder / "adapter_model.bin").write_text("1"), "does not list"),
    "adapter that nobody listed": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "does not list"),
    "one file beside the index": (
        lambda folder: save_file({"x": torch.zeros(1)}, folder / "model.safetensors"),
        "Remove the one",
    ),
    "manifest that leads out": (
        lambda folder: edit(folder / "manifest.json", files={"../config.json": {}}),
        "cannot be used",
    ),
    "manifest without files": (lambda folder: edit(folder / "manifest.json", files=3), "lacks `files`"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_reported(damage, folder):
    spoil, match = DAMAGE[damage]
    spoil(folder)
    problems = verify(folder)["problems"]
    assert any(match in problem for problem in problems), problems


def test_a_template_without_end_is_stopped(converted_small, tmp_path, monkeypatch):
    monkeypatch.setattr("iquest_plt.conversion.verify.TEMPLATE_SECONDS", 1)
    folder = Path(shutil.copytree(converted_small, tmp_path / "folder"))
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(endless)
    assert any("TimeoutError" in problem for problem in verify(folder)["problems"])


def test_other_files_are_noted(folder):
    (folder / "notes.txt").write_text("mine")
    report = verify(folder)
    assert not report["problems"] and "manifest.json does not list notes.txt." in report["notes"]


def test_missing_and_extra_tensors(folder):
    tensors = load_file(shard(folder))
    tensors["extra"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, shard(folder), metadata={"format": "pt"})
    for file in ("model.safetensors.index.json", "manifest.json"):
        (folder / file).unlink()
    problems = verify(folder)["problems"]
    assert "model.embed_tokens.weight is missing." in problems
    assert "extra does not belong to this model." in problems


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        verify(tmp_path / "absent")


def test_the_shipped_model_is_complete_and_gives_its_golden_logits(converted_small):
    report = verify(converted_small, logits=SMALL / "golden.safetensors")
    assert report["problems"] == report["notes"] == []


def test_other_logits_are_found(converted_small, tmp_path):
    golden = load_file(SMALL / "golden.safetensors")
    golden["logits_r2"], golden["logits_r1"] = golden["logits_r1"], golden["logits_r2"]
    save_file(golden, tmp_path / "golden.safetensors")
    problems = verify(converted_small, logits=tmp_path / "golden.safetensors")["problems"]
    assert [problem.split()[0] for problem in problems] == ["logits_r1", "logits_r2"]
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for path, match in (("other.safetensors", "must contain"), ("absent.safetensors", "could not be read")):
        (problem,) = verify(converted_small, logits=tmp_path / path)["problems"]
        assert match in problem


def edit_added_token(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 9000, "content": "<|beyond|>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))


TOKENIZER_DAMAGE = {
    "ids beyond the embedding": (edit_added_token, "ids go up to"),
    "stop id beyond the vocabulary": (
        lambda folder: edit(folder / "generation_config.json", eos_token_id=[2, 10**6]),
        "outside the vocabulary",
    ),
    "chat that never stops": (
        lambda folder: edit(folder / "generation_config.json", eos_token_id=2),
        "does not stop",
    ),
    "template that does not render": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"),
        "chat template",
    ),
    "template that fails": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}"),
        "does not render: ZeroDivisionError",
    ),
    "template that calls itself": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        "does not render",
    ),
    "ids of another kind": (
        lambda folder: edit(folder / "generation_config.json", eos_token_id=["2"]),
        "outside the vocabulary",
    ),
    "tokenizer that is none": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer"),
}


@pytest.mark.parametrize("damage", TOKENIZER_DAMAGE)
def test_a_tokenizer_that_does_not_fit_is_found(damage, converted_small, tmp_path):
    folder = Path(shutil.copytree(converted_small, tmp_path / "folder"))
    spoil, match = TOKENIZER_DAMAGE[damage]
    spoil(folder)
    problems = verify(folder)["problems"]
    assert any(match in problem for problem in problems), problems
