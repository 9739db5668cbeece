# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Every Auto class loads every folder that this package writes, both with the package and as remote code."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
from auto_classes import HEADS, load, load_as_remote_code
from finetuning import write_model
from paths import ROOT
from tiny import llama_of, tiny_config
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from iquest_plt import IQuestPLTCoderForCausalLM, IQuestPLTCoderTokenizer
from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.layout import AUTO_MAP, CODE_FILES


MODELS = ["AutoConfig", *HEADS, "AutoModelForCausalLM", "AutoModel"]
SHIPPED = ["small", "family/r1", "family/r2", "family/r4"]
# The contents of the folder that each writer produces: a model, a tokenizer, or both.
WRITERS = {
    "model and tokenizer": [*MODELS, "AutoTokenizer"],
    "decoder": MODELS,
    "classifier": MODELS,
    "configuration": MODELS,
    "tokenizer": ["AutoTokenizer"],
    "tokenizer of its own class": ["AutoTokenizer"],
    "loaded from an older folder": MODELS,
    "converted": [*MODELS, "AutoTokenizer"],
    "converted from a Llama": [*MODELS, "AutoTokenizer"],
    "fine-tuned": [*MODELS, "AutoTokenizer"],
    "exported": [*MODELS, "AutoTokenizer"],
}


def write_all(out: Path) -> None:
    """Writes one folder for each entry of WRITERS."""
    first = write_model(out / "model and tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(first)
    IQuestPLTCoderForCausalLM.from_pretrained(first).model.save_pretrained(out / "decoder")
    classifier = AutoModelForSequenceClassification.from_pretrained(first, num_labels=3)
    classifier.save_pretrained(out / "classifier")
    tiny_config().save_pretrained(out / "configuration")
    tokenizer.save_pretrained(out / "tokenizer")
    own_class = IQuestPLTCoderTokenizer(tokenizer_object=tokenizer.backend_tokenizer)
    own_class.save_pretrained(out / "tokenizer of its own class")

    older = shutil.copytree(first, out / "older")  # as earlier versions of this package wrote it
    fields = json.loads((older / "config.json").read_text())
    fields["auto_map"] = {name: AUTO_MAP[name] for name in ("AutoConfig", "AutoModelForCausalLM")}
    (older / "config.json").write_text(json.dumps(fields))
    (older / "heads_plt.py").unlink()
    AutoModelForCausalLM.from_pretrained(older).save_pretrained(out / "loaded from an older folder")

    convert(str(older), out / "converted")
    llama = llama_of(AutoModelForCausalLM.from_pretrained(first))
    llama.save_pretrained(out / "llama")
    tokenizer.save_pretrained(out / "llama")
    convert(str(out / "llama"), out / "converted from a Llama", plt={"plt_num_loops": 2})

    pytest.importorskip(
        "datasets", reason="the training scripts need it: pip install '.[training]' in a checkout of iquest-plt"
    )
    from iquest_plt.training import common, export

    arguments = argparse.Namespace(model=first, out=out / "training")
    common.save(AutoModelForCausalLM.from_pretrained(first), tokenizer, arguments)
    (out / "training" / "model").rename(out / "fine-tuned")
    (out / "exported").mkdir()
    export.write_model(first, out / "exported", tokenizer)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("auto")


@pytest.fixture(scope="module")
def folders(scratch):
    """The folders written above, and the shipped ones."""
    write_all(scratch)
    return {name: scratch / name for name in WRITERS} | {name: ROOT / "checkpoints" / name for name in SHIPPED}


@pytest.fixture(scope="module")
def again(scratch):
    (scratch / "again").mkdir()
    return scratch / "again"


@pytest.fixture(scope="module")
def remote(folders, again):
    """The results of loading the folders as remote code. What that saves is in `again`."""
    return load_as_remote_code(folders, again)


def assert_alike(folder, remote: dict | str, names: list[str]) -> None:
    assert isinstance(remote, dict), remote
    package = load(folder)
    assert list(package) == list(remote) == names
    for name in names:
        (module, expected), (remote_module, result) = package[name], remote[name]
        if name != "AutoTokenizer":  # the tokenizer class may be the library's
            assert module.split(".")[0] == "iquest_plt" and remote_module.split(".")[0] == "transformers_modules"
        if isinstance(expected, torch.Tensor):
            assert expected.isfinite().all()
            torch.testing.assert_close(result, expected, rtol=0, atol=0, msg=name)
        else:
            assert result == expected, name


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_loads_by_every_auto_class(name, folders, remote):
    assert_alike(folders[name], remote[name], WRITERS[name])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_folders_load_by_every_auto_class(name, folders, remote):
    assert_alike(folders[name], remote[name], [*MODELS, "AutoTokenizer"])


def test_what_remote_code_saves_loads_by_every_auto_class(again, remote, tmp_path):
    """Covers model, decoder, configuration and tokenizer, from a written and a shipped folder."""
    parts = {"model": [*MODELS, "AutoTokenizer"], "decoder": MODELS, "configuration": MODELS}
    saved = {f"{name}/{part}": again / name / part for name in ("model and tokenizer", "family/r2") for part in parts}
    saved["tokenizer"] = again / "tokenizer of its own class" / "tokenizer"
    found = load_as_remote_code(saved, tmp_path)
    for name, folder in saved.items():
        assert_alike(folder, found[name], parts.get(name.rsplit("/")[-1], ["AutoTokenizer"]))


def test_a_saved_configuration_names_all_classes_and_has_their_code(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert sorted(path.name for path in tmp_path.glob("*.py")) == CODE_FILES
    assert json.loads((ROOT / "config.json").read_text())["auto_map"] == AUTO_MAP
    for name in SHIPPED:
        folder = ROOT / "checkpoints" / name
        assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
        assert sorted(path.name for path in folder.glob("*.py")) == CODE_FILES


def test_auto_map_keeps_the_classes_of_a_user(tmp_path):
    """Keeps classes whose code is in the folder, and drops those that belong to the folder the model came from."""
    (tmp_path / "own.py").write_text("# a model")
    config = tiny_config()
    config.auto_map = {
        "AutoModelForCausalLM": "own.Model",
        "AutoModel": "someone/model--modeling_plt.Model",
        "AutoModelForTokenClassification": "modeling_vendor.Model",
        "AutoTokenizer": ["tokenization_vendor.Tokenizer", None],
    }
    config.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == AUTO_MAP | {"AutoModelForCausalLM": "own.Model"}
