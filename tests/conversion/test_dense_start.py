# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""How the loops of a converted dense model start: `init="keep"` computes nearly what the dense model does."""

import pytest
import torch
from command_line import run
from tiny import VOCAB, llama_of, tiny_model, tokens
from transformers import AutoModelForCausalLM

from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.upcycling import GATE_BIAS, SHARE


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A Llama and its folder. Its files are small, so that numbers lie across the pieces in which they are read."""
    folder = tmp_path_factory.mktemp("dense")
    model = llama_of(tiny_model())
    model.save_pretrained(folder)
    return model, folder


def distance_to(dense, plt, num_loops: int) -> float:
    ids = tokens(2, 40)
    with torch.no_grad():
        expected, found = dense(ids).logits, plt(ids, num_loops=num_loops).logits
    return ((found - expected).norm() / expected.norm()).item()


def test_keep_is_the_default_and_follows_its_formula(dense, tmp_path):
    model, folder = dense
    convert(str(folder), tmp_path / "plt", plt={"plt_num_loops": 3})
    plt = AutoModelForCausalLM.from_pretrained(tmp_path / "plt")
    rms = [
        weight.double().square().mean().sqrt().item()
        for weight in (model.model.embed_tokens.weight, model.model.norm.weight)
    ]
    assert plt.config.plt_emb_scale == 1.0
    assert plt.config.plt_hidden_scale == pytest.approx(SHARE * rms[0] / rms[1], rel=1e-3)
    gates = {name: value for name, value in plt.state_dict().items() if "plt_gate" in name}
    assert gates and all((value == (GATE_BIAS if name.endswith("bias") else 0)).all() for name, value in gates.items())


@pytest.mark.parametrize("gate_on_hidden_states", [False, True])
@pytest.mark.parametrize("num_loops", [2, 3, 4])
def test_keep_computes_nearly_what_the_dense_model_does(dense, tmp_path, num_loops, gate_on_hidden_states):
    model, folder = dense
    distances = {}
    for init in ("keep", "zero"):
        fields = {"plt_num_loops": num_loops, "plt_gate_use_hidden_states": gate_on_hidden_states}
        convert(str(folder), tmp_path / init, plt=fields, init=init)
        distances[init] = distance_to(model, AutoModelForCausalLM.from_pretrained(tmp_path / init), num_loops)
    assert distance_to(model, AutoModelForCausalLM.from_pretrained(tmp_path / "keep"), 1) < 1e-6
    assert distances["keep"] < 0.1 and distances["keep"] < distances["zero"] / 5, distances


def test_what_keep_starts_with_can_be_trained(dense, tmp_path):
    """The gate, and the states that are fed back, get gradients of a size that an optimizer notices."""
    _, folder = dense
    convert(str(folder), tmp_path / "plt", plt={"plt_num_loops": 2})
    plt = AutoModelForCausalLM.from_pretrained(tmp_path / "plt").train()
    ids = torch.randint(VOCAB, (2, 40))
    fed_back = []

    def keep_gradient(module, inputs, output):
        output.retain_grad()
        fed_back.append(output)

    plt.model.norm.register_forward_hook(keep_gradient)
    plt(ids, labels=ids, use_cache=False).loss.backward()
    assert len(fed_back) == 2 and fed_back[0].grad.norm() > 1e-5  # H^0, which only the shift reads
    for layer in plt.model.layers:
        assert layer.self_attn.plt_gate.bias.grad.norm() > 1e-6
        assert layer.self_attn.plt_gate.weight.grad.norm() > 1e-6


def test_fields_that_are_given_stay(dense, tmp_path):
    _, folder = dense
    code, _, error = run("convert", folder, tmp_path / "plt", "--hidden-scale", "0.5", "--init", "keep", "--json")
    assert code == 0, error
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "plt").config
    assert (config.plt_emb_scale, config.plt_hidden_scale) == (1.0, 0.5)


def test_keep_is_refused_where_the_size_of_the_states_is_unknown(dense, tmp_path):
    _, folder = dense
    with pytest.raises(ValueError, match="init=zero"):
        convert(str(folder), tmp_path / "plt", plt={"plt_normalize_per_loop": False})
    with pytest.raises(ValueError, match="must be one of keep, zero"):
        convert(str(folder), tmp_path / "plt", init="half")
    assert not (tmp_path / "plt").exists()


@pytest.mark.parametrize("shift", ["learned", "mixed"])
def test_a_learned_shift_starts_at_the_shift_and_is_left_out_again(dense, tmp_path, shift):
    model, folder = dense
    convert(str(folder), tmp_path / "plt", plt={"plt_cross_loop_shift": shift})
    plt, info = AutoModelForCausalLM.from_pretrained(tmp_path / "plt", output_loading_info=True)
    assert not info["missing_keys"] and not plt.model.shift_mix.logits.any()
    assert distance_to(model, plt, 2) < 0.1
    convert(str(tmp_path / "plt"), tmp_path / "dense", to="dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
