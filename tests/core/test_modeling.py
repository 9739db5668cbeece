# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The model as part of Transformers: names, initialisation, outputs, losses, gradients, and rejected inputs."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import distance, oracle, tiny_config, tiny_model, tokens
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import get_model_param_count

from iquest_plt import IQuestPLTCoderConfig, IQuestPLTCoderForCausalLM, PLTCache
from iquest_plt.conversion.layout import CODE_FILES


pytestmark = pytest.mark.core


LAYER_TENSORS = [
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.k_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.plt_gate.bias",
    "self_attn.plt_gate.gate_norm.weight",
    "self_attn.plt_gate.weight",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
]


def test_tensor_names_and_shapes_are_the_released_ones():
    config = IQuestPLTCoderConfig(vocab_size=76800, plt_gate_use_hidden_states=True)
    with torch.device("meta"):
        model = IQuestPLTCoderForCausalLM(config).to(torch.bfloat16)
    tensors = model.state_dict()
    layers = [f"model.layers.{i}.{name}" for i in range(14) for name in LAYER_TENSORS]
    assert sorted(tensors) == sorted(["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", *layers])
    assert len(tensors) == 171
    assert sum(t.numel() for t in tensors.values()) == 7_615_749_680
    assert sum(t.nbytes for t in tensors.values()) == 15_231_499_360
    gate = "model.layers.0.self_attn.plt_gate."
    assert tensors[gate + "weight"].shape == (40, 5120)
    assert tensors[gate + "bias"].shape == (40,)
    assert tensors[gate + "gate_norm.weight"].shape == (5120,)
    assert model.kv_bytes_per_token() == 57_344
    assert model.kv_bytes_per_sequence(1000) - 1000 * 57_344 == 64 * 57_344 + 5120 * 2


def test_the_query_gate_has_one_vector_per_head():
    model = tiny_model(plt_gate_use_hidden_states=False)
    tensors = {k: v.shape for k, v in model.state_dict().items() if "layers.0.self_attn.plt_gate" in k}
    prefix = "model.layers.0.self_attn.plt_gate."
    assert tensors == {prefix + "weight": (4, 8), prefix + "bias": (4,)}


@pytest.mark.parametrize("gate_on_hidden", [True, False])
def test_gates_start_at_one_half(gate_on_hidden):
    model = IQuestPLTCoderForCausalLM(tiny_config(plt_gate_use_hidden_states=gate_on_hidden))
    for name, parameter in model.named_parameters():
        if "plt_gate" in name:
            assert (parameter == ("norm" in name)).all(), name
    ids = tokens(1, 9)
    expected = oracle(model, ids[0], wrong="gate_half")
    assert distance(model(ids).logits[0], expected) < 1e-4


def test_the_gate_loads_under_its_training_name(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    assert load_file(file).keys() == model.state_dict().keys()
    renamed = {k.replace("plt_gate", "loop_gate_proj"): v for k, v in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == model.state_dict().keys()


def test_save_and_load(tmp_path):
    model = tiny_model(plt_num_loops=3, tie_word_embeddings=True)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is IQuestPLTCoderForCausalLM and loaded.config.plt_num_loops == 3
    ids = tokens(1, 9)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForCausalLM"] == "modeling_plt.IQuestPLTCoderForCausalLM"
    assert {path.name for path in tmp_path.glob("*_plt.py")} == set(CODE_FILES)
    for fields in ({"plt_num_loops": 0}, {"plt_window_size": [3, 1]}):
        with pytest.raises(ValueError, match="plt_"):
            AutoModelForCausalLM.from_pretrained(tmp_path, **fields)


@pytest.mark.parametrize("num_loops", [1, 2, 4])
@torch.no_grad()
def test_one_decode_step_calls_each_linear_once(num_loops):
    model = tiny_model()
    cache = model(tokens(2, 9), num_loops=num_loops).past_key_values
    calls = {"linear": 0, "gate": 0}

    def count(key):
        def hook(*_):
            calls[key] += 1

        return hook

    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count("linear"))
        elif name.endswith("plt_gate"):
            module.register_forward_hook(count("gate"))
    step = {"input_ids": tokens(2, 1), "past_key_values": cache, "num_loops": num_loops}
    model(**step)
    layers = model.config.num_hidden_layers
    assert calls == {"linear": 7 * layers, "gate": layers if num_loops > 1 else 0}
    model(**step, loop_schedule="sequence")
    assert calls["linear"] == 7 * layers * (1 + num_loops)


@torch.no_grad()
def test_outputs():
    model = tiny_model(attention="eager", plt_num_loops=3)
    ids = tokens(2, 9)
    output = model(ids, output_hidden_states=True, output_attentions=True, output_loop_states=True)
    assert [h.shape for h in output.hidden_states] == [(2, 9, 32)] * 4
    assert torch.equal(output.hidden_states[0], model.model.embed_tokens(ids))
    assert torch.equal(output.hidden_states[-1], output.loop_states[-1])
    assert [a.shape for a in output.attentions] == [(2, 4, 9, 9)] * 3
    for weights in output.attentions:
        assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 9), atol=1e-5)
        assert (weights.triu(1) == 0).all()
    assert output.window_attentions is None and output.gates is None
    output = model(ids, output_window_attentions=True, output_gates=True)
    for weights, gates in zip(output.window_attentions, output.gates, strict=True):
        assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 9), atol=1e-5)
        assert (weights.triu(1) == 0).all() and (weights.tril(-5) == 0).all()  # a window of 4 and the token itself
        assert gates.shape == (2, 4, 9) and 0 < gates.min() < gates.max() < 1
    assert output.attentions is None and len(output.gates) == 3
    assert output.to_tuple()[0] is output.logits
    assert torch.allclose(model(ids, logits_to_keep=2).logits, output.logits[:, -2:], atol=1e-5)
    assert torch.equal(model(inputs_embeds=model.model.embed_tokens(ids)).logits, model(ids).logits)
    assert model(ids).loop_states is None
    assert isinstance(model(ids, return_dict=False), tuple)


@torch.no_grad()
def test_recording_a_decode_step_changes_nothing_but_rounding():
    model = tiny_model(attention="eager", plt_num_loops=3)
    ids, step = tokens(2, 9), tokens(2, 1, seed=7)
    plain = model(step, past_key_values=model(ids).past_key_values)
    recorded = model(step, past_key_values=model(ids).past_key_values, output_attentions=True)
    assert torch.allclose(plain.logits, recorded.logits, atol=1e-5)
    assert [a.shape for a in recorded.attentions] == [(2, 4, 1, 10)] * 3
    model.config.output_hidden_states = True
    recorded = model(step, past_key_values=model(ids).past_key_values)
    assert [h.shape for h in recorded.hidden_states] == [(2, 1, 32)] * 4


def test_loss_is_what_trainer_expects():
    model = tiny_model()
    ids = tokens(2, 9)
    labels = ids.clone()
    labels[0, :4] = -100
    output = model(ids, labels=labels)
    logits, targets = output.logits[:, :-1].reshape(-1, 97), labels[:, 1:].reshape(-1)
    assert torch.allclose(output.loss, nn.functional.cross_entropy(logits, targets))
    count = int((targets != -100).sum())
    halved = model(ids, labels=labels, num_items_in_batch=2 * count).loss
    assert torch.allclose(halved, output.loss / 2)


def gradients(model, ids, **kwargs):
    model.zero_grad()
    model(ids, labels=ids, **kwargs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    model = tiny_model(plt_num_loops=3).train()
    ids = tokens(2, 9)
    expected = gradients(model, ids)
    assert all(g.abs().max() > 0 for g in expected.values())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    actual = gradients(model, ids)
    assert all(torch.allclose(actual[name], g, atol=1e-6) for name, g in expected.items())


def test_gradient_checkpointing_leaves_a_given_cache_alone():
    model = tiny_model(plt_num_loops=3).train()
    model.gradient_checkpointing_enable()
    cache = PLTCache(model.config)
    output = model(tokens(1, 9), past_key_values=cache)
    assert output.past_key_values is None
    assert cache.get_seq_length() == 0 and cache.layers[0].carries is None


def test_gradients_reach_loop_zero():
    """Nothing is detached: the last token's loss reaches every embedding, through loop 0's keys and the shift."""
    model = tiny_model(plt_num_loops=2)
    embeds = model.model.embed_tokens(tokens(1, 9)).detach().requires_grad_()
    model(inputs_embeds=embeds).logits[0, -1].sum().backward()
    assert (embeds.grad[0].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_dtypes(dtype):
    model = tiny_model().to(dtype)
    ids = tokens(1, 12)
    cache = model(ids[:, :9]).past_key_values
    steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(9, 12)]
    logits = torch.cat(steps, dim=1)
    assert logits.dtype == dtype
    tolerance = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float64: 1e-4}[dtype]
    assert distance(logits[0], oracle(model.float(), ids[0])[9:]) < tolerance


def test_parallel_plans_name_what_exists():
    model = tiny_model()
    modules = {name.replace(".0.", ".*.") for name, _ in model.model.named_modules()}
    assert set(model.config.base_model_tp_plan) <= modules
    assert model.config.base_model_tp_plan["layers.*.self_attn.plt_gate"] == "colwise"
    assert set(model._no_split_modules) <= {type(module).__name__ for module in model.modules()}
    assert get_model_param_count(model) == model.num_parameters()


def test_decode_flops_count_the_matrix_products():
    model = tiny_model(plt_num_loops=2)
    weights = sum(m.weight.numel() for m in model.model.layers.modules() if isinstance(m, nn.Linear))
    head = model.lm_head.weight.numel()
    attention = 2 * 2 * 32 * 3  # q·k and a·v, a multiply and an add, over all heads of three layers
    assert model.decode_flops(100, num_loops=1) == 2 * (weights + head) + 100 * attention
    gate = 3 * 4 * 32
    assert model.decode_flops(100, num_loops=2) == 2 * (2 * weights + gate + head) + (2 * 100 + 5) * attention


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_loops": 0}, "`num_loops` must be an integer >= 1"),
        ({"num_loops": 2.0}, "`num_loops` must be an integer >= 1"),
        ({"loop_schedule": "parallel"}, "`loop_schedule` must be"),
        ({"attention_mask": torch.ones(1, 1, 4, 4, dtype=torch.bool)}, "see later ones"),
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, "see later ones"),
        ({"attention_mask": torch.full((1, 1, 4, 4), -1.0)}, "must be 0 for visible keys"),
        ({"attention_mask": torch.ones(1, 1, 4, 4, dtype=torch.long)}, "boolean or additive"),
        ({"attention_mask": torch.ones(1, 4), "position_ids": torch.tensor([[1, 2, 1, 2]])}, "without an"),
        ({"cu_seq_lens_q": torch.tensor([0, 2, 4]), "position_ids": torch.arange(4)[None]}, "different tokens"),
        ({"attention_mask": torch.ones(1, 2, 4, 4, dtype=torch.bool).tril()}, "2D attention mask"),
        ({"attention_mask": {"global_mask": None, "tokens": None}}, "Pass `position_ids` with it"),
        ({"attention_mask": torch.ones(1, 3)}, "must cover both"),
        ({"attention_mask": {}}, "2D attention mask"),
        ({"attention_mask": torch.ones(1, 4), "position_ids": torch.tensor([[0, 1, 0, 1]])}, "without an"),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "exactly one of `input_ids` and `inputs_embeds`"),
    ],
)
def test_unsupported_inputs_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(tokens(1, 4), **arguments)


def test_continuous_batching_is_rejected():
    with pytest.raises(ValueError, match="left-padded batch"):
        tiny_model().generate_batch([[1, 2, 3]])
