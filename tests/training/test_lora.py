# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters: trained weights, merging, quantised frozen weights, and adapters on remote code."""

import subprocess
import sys

import pytest
import torch
from paths import ROOT
from tiny import tokens
from transformers import AutoModelForCausalLM


pytest.importorskip(
    "datasets", reason="the training scripts need it: pip install '.[training]' in a checkout of iquest-plt"
)
pytest.importorskip("peft", reason="adapters need it: pip install '.[training]' in a checkout of iquest-plt")

import peft
from finetuning import (
    VOCAB_SIZE,
    losses_of,
    one_thread,  # noqa: F401 (a fixture for all)
    write_model,
    write_texts,
)
from safetensors.torch import load_file

from iquest_plt import IQuestPLTCoderForCausalLM
from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify
from iquest_plt.training import lora


IDS = tokens(2, 30) % VOCAB_SIZE
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module", params=[True, False], ids=["gate on state", "gate on query"])
def model_folder(request, tmp_path_factory):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = tmp_path_factory.mktemp("model") / "model"
    return write_model(folder, plt_gate_use_hidden_states=request.param, **sizes)


@pytest.fixture
def command(model_folder, tmp_path):
    options = {"model": model_folder, "data": write_texts(tmp_path / "texts"), "out": tmp_path / "run", "length": 40}
    options |= {"batch": 2, "steps": 4, "lr": 1e-2, "heldout-share": 0.25, "log-steps": 1, "save-steps": 2, "rank": 4}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def adapted(model_folder, out):
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), out / "adapter")


@pytest.mark.parametrize("targets, layers", [("attention", ATTENTION), ("mlp", MLP), ("all", ATTENTION | MLP)])
@pytest.mark.parametrize("gates", [True, False])
def test_only_the_adapters_are_trained(targets, layers, gates, command, model_folder, tmp_path):
    parser_options = [*command, "--targets", targets, "--gates" if gates else "--no-gates"]
    lora.main(parser_options)
    base = load_file(model_folder / "model.safetensors")
    model = adapted(model_folder, tmp_path / "run")
    trained, frozen = {}, {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base_model.model.").replace(".original_module", "").replace(".base_layer", "")
        is_new = "lora_" in name or "modules_to_save" in name
        (trained if is_new else frozen)[name] = parameter
    assert frozen.keys() == base.keys() and all(torch.equal(frozen[name], base[name]) for name in base)
    assert {name.split(".")[-4] for name in trained if "lora_" in name} == layers
    for name, parameter in trained.items():
        if "lora_B" in name:  # initialised to zero
            assert parameter.abs().max() > 1e-3, name
        elif ".plt_gate." in name:
            assert (parameter - base[name.replace(".modules_to_save.default", "")]).abs().max() > 1e-3, name
    in_gates = {name for name in base if ".plt_gate." in name}
    assert {name.replace(".modules_to_save.default", "") for name in trained if "lora_" not in name} == (
        in_gates if gates else set()
    )


def test_merged_model(command, model_folder, tmp_path):
    lora.main([*command, "--merge", "--num-loops", "3"])
    curve = [loss for _, loss, _ in losses_of(tmp_path / "run") if loss]
    assert len(curve) == 4
    assert verify(tmp_path / "run" / "model")["problems"] == []
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert type(merged) is IQuestPLTCoderForCausalLM and merged.config.plt_num_loops == 3
    base = AutoModelForCausalLM.from_pretrained(model_folder, plt_num_loops=3)
    before = logits(base)
    expected = logits(peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter"))
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)


def test_adapters_on_remote_code(command, model_folder, tmp_path):
    """Adapters trained with the package work the same on the model's remote code without the package."""
    lora.main(command)
    code = """if True:
        import sys, torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
        folder, adapter, ids, out = sys.argv[1:]
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules.") and "iquest_plt" not in sys.modules
        model = PeftModel.from_pretrained(model, adapter).eval()
        ids = torch.load(ids)
        with torch.no_grad():
            torch.save((model(ids).logits, model.generate(ids[:1], max_new_tokens=8, do_sample=False)), out)
    """
    torch.save(IDS, tmp_path / "ids.pt")
    paths = [model_folder, tmp_path / "run" / "adapter", tmp_path / "ids.pt", tmp_path / "out.pt"]
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], cwd=tmp_path, check=True)
    found, generated = torch.load(tmp_path / "out.pt")
    model = adapted(model_folder, tmp_path / "run")
    torch.testing.assert_close(found, logits(model), rtol=0, atol=0)
    assert torch.equal(generated, model.generate(IDS[:1], max_new_tokens=8, do_sample=False))
    assert (found - logits(AutoModelForCausalLM.from_pretrained(model_folder))).abs().max() > 0.1


@pytest.mark.parametrize(
    "options, dtype",
    [
        (["--bits", "4"], torch.uint8),  # two weights per byte
        (["--bits", "4", "--bf16", "--checkpointing"], torch.uint8),
        (["--bits", "8", "--bf16"], torch.int8),
        (["--bf16"], torch.bfloat16),
    ],
    ids=["4", "4-bf16-checkpointing", "8-bf16", "bf16"],
)
def test_quantised_frozen_weights(options, dtype, command, model_folder, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    load, seen = lora.load_adapted, []

    def keep(args):
        seen.append(load(args))
        return seen[0]

    monkeypatch.setattr(lora, "load_adapted", keep)
    lora.main([*command, "--merge", *options, "--steps", "12"])
    model = seen[0][0]
    projection = model.base_model.model.model.layers[0].self_attn.q_proj
    assert projection.base_layer.weight.dtype == dtype
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    curve = [loss for _, _, loss in losses_of(tmp_path / "run") if loss]
    assert curve[-1] < curve[0] - 0.1
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(logits(merged), logits(adapted(model_folder, tmp_path / "run")), rtol=0, atol=1e-5)


def test_a_killed_run_resumes_exactly(command, tmp_path, monkeypatch):
    lora.main([*command, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        patch.setattr("iquest_plt.training.divergence.Guard.on_log", kill_at_step_3)
        with pytest.raises(KeyError, match="killed"):
            lora.main(command)
    lora.main(command)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def kill_at_step_3(self, args, state, control, **kwargs):
    if state.global_step == 3:
        raise KeyError("killed")


def test_small_checkpoint(tmp_path):
    convert(str(ROOT / "checkpoints" / "small"), tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick onyx goblin jumps over the lazy dwarf.\n" * 4)
    options = ["--model", tmp_path / "model", "--data", tmp_path / "text.txt", "--heldout", tmp_path / "text.txt"]
    options += ["--out", tmp_path / "run", "--length", 64, "--steps", 8, "--lr", 1e-2, "--save-steps", 4, "--merge"]
    lora.main([*map(str, options), "--bf16"])
    curve = [loss for _, _, loss in losses_of(tmp_path / "run") if loss]
    assert curve[-1] < 0.7 * curve[0]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert merged.dtype == torch.bfloat16
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size < 4_000_000
