# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Models and configurations can be unpickled in another process, even if their code is remote code."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from paths import ROOT
from tiny import tiny_model, tokens


SHIPPED = ROOT / "checkpoints" / "family" / "r2"
IDS = "torch.arange(3, 43)[None]"
WRITE = f"""if True:
    import copy, pickle, sys, torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    folder, out = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    head = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    logits = model({IDS}).logits
    for twin in (copy.copy(model), copy.deepcopy(model)):
        assert type(twin) is type(model) and torch.equal(twin({IDS}).logits, logits)
    assert type(copy.copy(config)) is type(copy.deepcopy(config)) is type(config)
    torch.save(logits, f"{{out}}/logits")
    for name, thing in (("model", model), ("config", config), ("head", head)):
        torch.save(thing, f"{{out}}/{{name}}.pt")
        for protocol in (2, pickle.HIGHEST_PROTOCOL):
            with open(f"{{out}}/{{name}}.{{protocol}}", "wb") as file:
                pickle.dump(thing, file, protocol)
"""
READ = f"""if True:
    import pathlib, pickle, sys, torch
    path = pathlib.Path(sys.argv[1])
    with open(path, "rb") as file:
        thing = torch.load(file, weights_only=False) if path.suffix == ".pt" else pickle.load(file)
    assert "iquest_plt" not in sys.modules and type(thing).__module__.startswith("transformers_modules.")
    if path.stem == "model":
        with torch.no_grad():
            assert torch.equal(thing({IDS}).logits, torch.load(path.with_name("logits")))
            thing.generate({IDS}, max_new_tokens=3)
    elif path.stem == "config":
        assert thing.plt_num_loops == 2 and thing.to_dict()["model_type"] == "iquestpltcoder"
    else:
        assert thing({IDS}).logits.shape == (1, 2)
"""


def run_python(code, *args):
    run = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def pickles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pickles")
    run_python(WRITE, SHIPPED, folder)
    return folder


@pytest.mark.parametrize("name", ["model.pt", "model.2", f"model.{pickle.HIGHEST_PROTOCOL}", "config.2", "head.pt"])
def test_remote_code_unpickles_in_a_new_process(name, pickles):
    run_python(READ, pickles / name)


def test_the_packages_classes_pickle_like_any_other():
    model, ids = tiny_model(), tokens(1, 9)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert type(twin) is type(model) and torch.equal(twin(ids).logits, model(ids).logits)
