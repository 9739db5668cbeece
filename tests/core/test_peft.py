# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""PEFT works as with Llama: default targets, prompt tuning, and the error message of prefix tuning."""

import subprocess
import sys

import pytest
import torch
import transformers
from packaging.version import Version
from paths import ROOT
from tiny import llama_of, tiny_model, tokens


peft = pytest.importorskip("peft", reason="adapters need it: pip install '.[training]' in a checkout of iquest-plt")

from iquest_plt import IQuestPLTCoderConfig  # noqa: E402
from iquest_plt.peft_plt import add_peft_targets  # noqa: E402


# Transformers 5.24 needs a PEFT version that knows the new name of the cache. An older PEFT passes a learned prompt's
# cache under both names or not at all, and even Llama then silently generates another text than without a cache.
KNOWS_THE_CACHE = Version(transformers.__version__) < Version("5.24") or Version(peft.__version__) >= Version("0.22")
SHIPPED = ROOT / "checkpoints" / "family" / "r2"
METHODS = {
    "LoRA": peft.LoraConfig(),
    "AdaLoRA": peft.AdaLoraConfig(total_step=10),
    "LoHa": peft.LoHaConfig(),
    "IA3": peft.IA3Config(),
    "VeRA": peft.VeraConfig(),
    "OFT": peft.OFTConfig(oft_block_size=8),
    "LayerNorm tuning": peft.LNTuningConfig(),
}


def adapted_layers(model) -> set[str]:
    return {
        name for name, module in model.named_modules() if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
    }


@pytest.mark.parametrize("method", METHODS)
def test_default_targets_are_llamas(method):
    config = METHODS[method]
    model = tiny_model()
    llama = peft.get_peft_model(llama_of(model), type(config)(**config.to_dict() | {"task_type": "CAUSAL_LM"}))
    plt = peft.get_peft_model(model, type(config)(**config.to_dict() | {"task_type": "CAUSAL_LM"}))
    assert adapted_layers(plt) == adapted_layers(llama) != set()
    ids = tokens(2, 9)
    plt(input_ids=ids, labels=ids).loss.backward()
    assert any(parameter.grad is not None for parameter in plt.parameters() if parameter.requires_grad)


@pytest.mark.skipif(not KNOWS_THE_CACHE, reason="this Transformers rejects adapters from PEFT < 0.22")
def test_the_librarys_own_adapters_find_their_targets():
    model = tiny_model()
    model.add_adapter(peft.LoraConfig())
    assert {name.rsplit(".")[-1] for name in adapted_layers(model)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("first", ["peft", "model"])
def test_default_targets_in_any_import_order(first):
    """Covers remote code, which loads even later. The model must not import PEFT itself."""
    code = f"""if True:
        import sys
        if "{first}" == "peft":
            import peft
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
        assert "iquest_plt" not in sys.modules
        assert ("peft" in sys.modules) == ("{first}" == "peft")
        import peft
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))
        print(sorted(model.peft_config["default"].target_modules))
    """
    run = subprocess.run([sys.executable, "-c", code, SHIPPED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "['q_proj', 'v_proj']"


def test_an_existing_table_entry_is_kept(monkeypatch):
    tables = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.setitem(tables, IQuestPLTCoderConfig.model_type, ["o_proj"])
    add_peft_targets(IQuestPLTCoderConfig.model_type)
    assert tables[IQuestPLTCoderConfig.model_type] == ["o_proj"]


PROMPTS = {
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "P-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
}


@pytest.mark.parametrize("method", PROMPTS)
def test_learned_prompts(method):
    """The alternatives to prefix tuning train, and generate with and without a cache, with and without padding."""
    model = peft.get_peft_model(tiny_model(), PROMPTS[method]).eval()
    ids = tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    texts = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(texts[0, 3:], model.generate(input_ids=ids[:1, 3:], use_cache=False, **options)[0])
    if KNOWS_THE_CACHE:
        assert torch.equal(texts, model.generate(input_ids=ids, attention_mask=mask, **options))
        return
    with pytest.raises(ValueError, match="attention mask"):  # rather than another text
        model.generate(input_ids=ids, attention_mask=mask, **options)


def test_prefix_tuning_names_the_alternatives():
    model = peft.get_peft_model(tiny_model(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    for call in (model, model.generate) if KNOWS_THE_CACHE else (model,):
        with pytest.raises(ValueError, match=r"PromptTuningConfig.*PromptEncoderConfig.*LoraConfig"):
            call(input_ids=tokens(1, 5))
