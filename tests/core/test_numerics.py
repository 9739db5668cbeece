# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Other number formats: in each, every way of running is as close to the oracle as the format allows."""

import peft
import pytest
import torch
from tiny import distance, oracle, tiny_model, tokens
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, StaticCache, TorchAoConfig

from iquest_plt import IQuestPLTCoderForCausalLM, PLTCache


TIME = 12
# Relative to the largest logit, at R = 3. Measured over four seeds: 0.026, 0.0053, 3e-7.
TOLERANCE = {torch.bfloat16: 0.06, torch.float16: 0.012, torch.float64: 1e-5}


def stepwise(model, ids, cache=None, prompt=7, **kwargs):
    """Returns the logits of a prompt and of the steps after it."""
    cache = PLTCache(model.config) if cache is None else cache
    outputs = [model(ids[:, :prompt], past_key_values=cache, **kwargs).logits]
    for i in range(prompt, ids.shape[1]):
        outputs.append(model(ids[:, i : i + 1], past_key_values=cache, **kwargs).logits)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@torch.no_grad()
def test_half_and_double_precision(dtype, attention):
    model = tiny_model(attention=attention, plt_num_loops=3).to(dtype)
    expected_model = tiny_model(plt_num_loops=3).to(dtype).float()  # the same rounded weights
    ids = tokens(1, TIME)
    expected = oracle(expected_model, ids[0])
    static = StaticCache(model.config, max_cache_len=TIME)
    for logits in (model(ids).logits, stepwise(model, ids), stepwise(model, ids, static)):
        assert logits.dtype == dtype
        assert distance(logits[0], expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_autocast(dtype):
    model = tiny_model(plt_num_loops=3)
    ids = tokens(1, TIME)
    expected = oracle(model, ids[0])
    with torch.autocast("cpu", dtype):
        for logits in (model(ids).logits, stepwise(model, ids)):
            assert logits.dtype == dtype
            assert distance(logits[0], expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, *TOLERANCE], ids=str)
@torch.no_grad()
def test_rows_of_only_padding_give_no_nan(dtype, attention):
    model = tiny_model(attention=attention, plt_num_loops=3).to(dtype)
    ids, mask = tokens(2, TIME), torch.ones(2, TIME, dtype=torch.long)
    mask[0] = 0
    for cache in (PLTCache(model.config), StaticCache(model.config, max_cache_len=TIME)):
        outputs = [model(ids[:, :7], attention_mask=mask[:, :7], past_key_values=cache).logits]
        for i in range(7, TIME):
            outputs.append(model(ids[:, i : i + 1], attention_mask=mask[:, : i + 1], past_key_values=cache).logits)
        logits = torch.cat(outputs, dim=1)
        assert logits.isfinite().all()
        assert torch.allclose(
            logits[1].float(), model(ids[1:]).logits[0].float(), atol=2 * TOLERANCE.get(dtype, 1e-4) * 10
        )


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model wide enough for the quantizers' groups, and the folder it was saved in."""
    path = tmp_path_factory.mktemp("wide")
    model = tiny_model(hidden_size=128, intermediate_size=256, plt_num_loops=3, initializer_range=0.05)
    model.save_pretrained(path)
    return model, path


def torchao(bits):
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if bits == 8 else IntxWeightOnlyConfig(weight_dtype=torch.int4))


def bitsandbytes(bits):
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("quantizer", [torchao, bitsandbytes])
@torch.no_grad()
def test_quantized_weights(quantizer, bits, wide):
    model, path = wide
    quantized = AutoModelForCausalLM.from_pretrained(path, quantization_config=quantizer(bits), device_map="cpu").eval()
    for ours, theirs in zip(quantized.model.layers, model.model.layers, strict=True):
        assert type(ours.self_attn.q_proj.weight) is not type(theirs.self_attn.q_proj.weight)
        # No quantizer may drop the gate or its norm.
        for name, parameter in theirs.self_attn.plt_gate.named_parameters():
            assert torch.equal(ours.self_attn.plt_gate.get_parameter(name).float(), parameter)
    ids = tokens(1, TIME)
    expected = model(ids).logits
    full, steps = quantized(ids).logits, stepwise(quantized, ids)
    # Measured: 0.022 for 8 bits, 0.25 for 4 bits.
    assert 1e-3 < (full - expected).abs().max() / expected.abs().max() < {8: 0.06, 4: 0.5}[bits]
    assert (steps - full).abs().max() / expected.abs().max() < 1e-4


@torch.no_grad()
def test_merged_lora_weights(wide, tmp_path):
    model, path = wide
    model = IQuestPLTCoderForCausalLM.from_pretrained(path)
    ids = tokens(1, TIME)
    before = model(ids).logits
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], modules_to_save=["plt_gate"])
    adapted = peft.get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    full = adapted(ids).logits
    assert (full - before).abs().max() > 0.05 * before.abs().max()
    assert torch.allclose(stepwise(adapted, ids), full, atol=1e-4)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(IQuestPLTCoderForCausalLM.from_pretrained(path), tmp_path / "adapter")
    assert torch.allclose(loaded.eval()(ids).logits, full, atol=1e-5)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged) is IQuestPLTCoderForCausalLM
    assert torch.allclose(merged(ids).logits, full, atol=1e-4)
    assert distance(merged(ids).logits[0], oracle(merged, ids[0])) < 1e-4
