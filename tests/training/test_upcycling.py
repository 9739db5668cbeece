# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Upcycling: a dense Llama becomes a PLT with two loops, as in the README, and learns to use the second."""

import json

import pytest
import torch
from tiny import llama_of
from transformers import AutoModelForCausalLM, AutoTokenizer


pytest.importorskip(
    "datasets", reason="the training scripts need it: pip install '.[training]' in a checkout of iquest-plt"
)

from finetuning import one_thread, write_model, write_texts  # noqa: F401 (a fixture for all)

from iquest_plt.conversion.convert import convert
from iquest_plt.training import finetune


def test_a_dense_model_learns_to_loop(tmp_path):
    plt = write_model(tmp_path / "plt")
    dense = llama_of(AutoModelForCausalLM.from_pretrained(plt))
    for file in ("config.json", "model.safetensors"):
        (plt / file).unlink()
    for code in plt.glob("*_plt.py"):
        code.unlink()
    dense.save_pretrained(plt)  # beside the tokenizer
    start, out = tmp_path / "start", tmp_path / "run"
    plt_fields = {"plt_num_loops": 2, "plt_emb_scale": 0.707, "plt_hidden_scale": 0.053, "plt_window_size": [8, 0]}
    convert(str(plt), start, plt=plt_fields | {"plt_gate_use_hidden_states": True}, init="zero")
    before = AutoModelForCausalLM.from_pretrained(start)
    data = write_texts(tmp_path / "texts")
    text = "\n".join(file.read_text() for file in sorted(data.rglob("[0-9]*.py")))
    ids = torch.tensor([AutoTokenizer.from_pretrained(start)(text).input_ids[:400]])

    def loss(model, num_loops):
        with torch.no_grad():
            return model(ids, labels=ids, num_loops=num_loops).loss.item()

    with torch.no_grad():
        assert loss(before, 1) == pytest.approx(dense(ids, labels=ids).loss.item(), abs=1e-6)
    gates = [
        value for name, value in before.state_dict().items() if name.endswith(("plt_gate.weight", "plt_gate.bias"))
    ]
    assert gates and not any(gate.any() for gate in gates), "both branches have equal weight at first"

    command = f"--model {start} --data {data} --out {out} --length 64 --batch 8 --steps 12 --lr 1e-2 --heldout-share 0"
    finetune.main([*command.split(), "--log-steps", "1"])
    after = AutoModelForCausalLM.from_pretrained(out / "model")
    assert after.config.plt_num_loops == 2
    assert loss(after, 2) < loss(before, 2) - 0.5 and loss(after, 2) < loss(before, 1) - 0.5
    weights = after.state_dict()
    moved = [name for name, value in before.state_dict().items() if not torch.equal(value, weights[name])]
    assert set(moved) == set(weights), "the gates and the layers of both loops"
    assert json.loads((out / "model" / "config.json").read_text())["architectures"] == ["IQuestPLTCoderForCausalLM"]
