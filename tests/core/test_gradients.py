# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Gradients in float64 against finite differences of the oracle, which does not use autograd, and of the model itself.

In float32, rounding would hide the differences. RMSNorm and RoPE always compute in float32, so they are replaced.
"""

import itertools

import numpy as np
import pytest
import torch
from reference import Reference
from tiny import tiny_model, tokens
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from iquest_plt import attention_plt, grid_plt


TIME = 9
STEP = 1e-5  # the step of the central differences; their relative error is about its square
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "plt_window_size": [2, 0]}


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    def norm(self, states):
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rotary(self, states, position_ids):
        dim, theta = self.config.head_dim, self.config.rope_parameters["rope_theta"]
        angles = position_ids[..., None].double() * theta ** (-torch.arange(0, dim, 2).double() / dim)
        return torch.cat([angles.cos()] * 2, dim=-1), torch.cat([angles.sin()] * 2, dim=-1)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", rotary)


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def oracle_loss(model, ids: torch.Tensor, changed: dict) -> float:
    logits, _ = Reference(model.config, {**model.state_dict(), **changed})(ids[0].tolist())
    return loss_of(torch.from_numpy(logits)[None], ids).item()


def worst_error(model, ids: torch.Tensor, seed: int = 0) -> tuple[float, str]:
    """Returns the largest error of a directional derivative, relative to the gradient's norm, and its parameter."""
    loss = loss_of(model(ids, use_cache=False).logits, ids)
    assert abs(loss.item() - oracle_loss(model, ids, {})) < 1e-12
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    generator, errors = torch.Generator().manual_seed(seed), []
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        # Partly along the gradient itself, since a random direction in a large matrix is almost orthogonal to it.
        direction = F.normalize(random.flatten(), dim=0).view_as(random)
        if gradient.any():
            direction = direction + gradient / gradient.norm()
        ends = [oracle_loss(model, ids, {name: parameter.detach() + sign * STEP * direction}) for sign in (1.0, -1.0)]
        difference = (ends[0] - ends[1]) / (2 * STEP)
        error = abs(difference - (gradient * direction).sum().item())
        errors.append((error / max(gradient.norm().item(), 1e-3), name))
    return max(errors)


@pytest.mark.parametrize("gate_on_hidden", [True, False], ids=["gate-hidden", "gate-query"])
@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_every_parameter_against_oracle_differences(num_loops, gate_on_hidden):
    model = tiny_model(plt_num_loops=num_loops, plt_gate_use_hidden_states=gate_on_hidden, **SHAPE).double()
    error, name = worst_error(model, tokens(1, TIME))
    assert error < 1e-7, name


CONTROLS = [*itertools.product((True, False), ("gated", "shared", "own")), ("learned", "gated"), ("mixed", "joint")]


@pytest.mark.parametrize(("shift", "attention"), CONTROLS)
def test_the_controls_too(shift, attention):
    options = {"plt_cross_loop_shift": shift, "plt_loop_attention": attention, "plt_normalize_per_loop": False}
    error, name = worst_error(tiny_model(**options, **SHAPE).double(), tokens(1, TIME))
    assert error < 1e-7, name


def test_checkpointing_is_exact():
    model = tiny_model(plt_num_loops=3, **SHAPE).double().train()
    model.gradient_checkpointing_enable()
    error, name = worst_error(model, tokens(1, TIME))
    assert error < 1e-7, name


@pytest.mark.parametrize("path", ["shared keys", "shared values", "shift"])
def test_a_cut_gradient_path_is_detected(path, monkeypatch):
    """Detaching a path from one loop to the previous one changes no output. Only the gradients show it."""
    forward, states_before = attention_plt.IQuestPLTCoderAttention.forward, grid_plt.states_before

    def without_path(self, hidden, residual, key0, value0, *args, **kwargs):
        key0 = key0.detach() if path == "shared keys" and key0 is not None else key0
        value0 = value0.detach() if path == "shared values" and value0 is not None else value0
        return forward(self, hidden, residual, key0, value0, *args, **kwargs)

    def detached(*args):
        states = states_before(*args)
        return states.detach() if path == "shift" else states

    monkeypatch.setattr(attention_plt.IQuestPLTCoderAttention, "forward", without_path)
    monkeypatch.setattr(grid_plt, "states_before", detached)
    error, _ = worst_error(tiny_model(**SHAPE).double(), tokens(1, TIME))
    assert error > 1e-2


@pytest.mark.parametrize("rows", ["plain", "padded", "packed"])
def test_embeddings_against_the_model_itself(rows):
    """Covers what the oracle cannot: padding, which must not affect anything, and several documents in one row."""
    model = tiny_model(plt_num_loops=3, plt_emb_scale=None, plt_hidden_scale=None, **SHAPE).double()
    embeds = model.get_input_embeddings()(tokens(2, 6)).detach().requires_grad_()
    options = {
        "plain": {},
        "padded": {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]])},
        "packed": {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]])},
    }[rows]
    real = options.get("attention_mask", torch.ones(2, 6)).bool()

    def outputs(embeds):
        return model.model(inputs_embeds=embeds, use_cache=False, **options).last_hidden_state[real]

    assert torch.autograd.gradcheck(outputs, embeds, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)
    (gradient,) = torch.autograd.grad(outputs(embeds).square().sum(), embeds)
    reached = gradient.abs().sum(-1) > 1e-9
    assert np.array_equal(reached.numpy(), real.numpy())
