# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The MLX model computes what the Transformers model computes, however the tokens are fed."""

import numpy as np
import pytest
import torch
from mlx_models import TOLERANCE, args_of, array, expected_logits, fed_in_chunks, largest_difference, mlx_copy, mx, nn
from paths import SMALL
from reference import WRONG, Reference
from tiny import ROPES, tiny_config, tiny_model, tokens

from iquest_plt import IQuestPLTCoderForCausalLM
from iquest_plt.grid_plt import GridShape, plan


tree_flatten = pytest.importorskip("mlx.utils").tree_flatten
plt_mlx = pytest.importorskip("iquest_plt.serving.mlx.plt_mlx")

LENGTH = 36  # much longer than the tiny models' window of 4, and than what their 3 layers see through it
# The sizes of the chunks, and how many of their logits are never read, as in mlx-lm.
FEEDS = {
    "prompt, then tokens": ([30] + [1] * 6, 1),
    "chunks and tokens": ([7, 16, 3, 1, 1, 8], 0),
}
MORE_FEEDS = {
    "token by token": ([1] * LENGTH, 0),
    "chunks shorter than the window": ([2, 3, 2, 3, 2] * 3, 0),
    "a token after unread chunks": ([20, 15, 1], 2),
}


def differences(model, copy, feeds=FEEDS) -> dict[str, float]:
    """Returns the largest difference from the Transformers model for each way to feed the tokens."""
    ids = tokens(2, LENGTH)
    expected = expected_logits(model, ids)
    found = {"no cache": largest_difference(np.array(copy(array(ids))), expected)}
    for name, (sizes, unread) in feeds.items():
        logits = fed_in_chunks(copy, ids, sizes, unread)
        found[name] = largest_difference(logits, expected[:, sum(sizes[:unread]) :])
    return found


@pytest.mark.parametrize("on_hidden_states", [True, False])
@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
def test_logits_equal_those_of_transformers(num_loops, on_hidden_states, tmp_path):
    model = tiny_model(initializer_range=0.05, plt_num_loops=num_loops, plt_gate_use_hidden_states=on_hidden_states)
    found = differences(model, mlx_copy(model, tmp_path))
    assert max(found.values()) <= TOLERANCE, found


def test_more_ways_to_feed_tokens(tmp_path):
    model = tiny_model(initializer_range=0.05, plt_num_loops=3)
    found = differences(model, mlx_copy(model, tmp_path), MORE_FEEDS)
    assert max(found.values()) <= TOLERANCE, found


OTHERS = {
    "states not normed": {"plt_normalize_per_loop": False},
    "no scales": {"plt_emb_scale": None, "plt_hidden_scale": None},
    "window 0": {"plt_window_size": [0, 0]},
    "window 1": {"plt_window_size": [1, 0]},
    "window longer than the text": {"plt_window_size": [64, 0]},
    "tied embedding": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head size": {"head_dim": 16},
}


@pytest.mark.parametrize("fields", OTHERS.values(), ids=OTHERS)
def test_other_configurations(fields, tmp_path):
    model = tiny_model(initializer_range=0.05, plt_num_loops=3, **fields)
    for name, parameter in model.named_parameters():
        if name.endswith("proj.bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    found = differences(model, mlx_copy(model, tmp_path))
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_rotary_embeddings(kind, tmp_path):
    rope = {"rope_type": kind, "rope_theta": 100.0, **ROPES[kind]}
    fields = {"rope_parameters": rope, "max_position_embeddings": 24 if kind == "dynamic" else 512}
    model = tiny_model(initializer_range=0.05, **fields)
    copy = mlx_copy(model, tmp_path)
    if kind != "dynamic":  # whose frequencies depend on the length so far, so on how the tokens are fed
        found = differences(model, copy)
        assert max(found.values()) <= TOLERANCE, found
    ids = tokens(1, LENGTH)
    expected = expected_logits(model, ids)
    assert largest_difference(np.array(copy(array(ids))), expected) <= TOLERANCE
    plain = tiny_model(initializer_range=0.05)  # the same weights
    assert largest_difference(expected_logits(plain, ids), expected) > 10 * TOLERANCE


def wrong_variants(on_hidden_states: bool) -> list[str]:
    """Returns the mistakes of the oracle that have an effect with R = 3 and normed states."""
    other = {"gate_before_rope"} if on_hidden_states else {"gate_on_normed", "gate_no_norm"}
    return sorted(WRONG.keys() - {"carry_always_normed"} - other)


@pytest.mark.parametrize("on_hidden_states", [True, False])
def test_mistakes_would_be_found(on_hidden_states, tmp_path):
    """The same weights and tokens, compared with the oracle and with each of its deliberate mistakes."""
    model = tiny_model(initializer_range=0.05, plt_num_loops=3, plt_gate_use_hidden_states=on_hidden_states)
    found = np.array(mlx_copy(model, tmp_path)(array(tokens(1, LENGTH))))[0]

    def distance(**kwargs) -> float:
        logits, _ = Reference(model.config, model.state_dict(), **kwargs)(tokens(1, LENGTH)[0].tolist())
        return largest_difference(found, logits)

    assert distance() <= TOLERANCE
    distances = {name: distance(wrong=name) for name in wrong_variants(on_hidden_states)}
    assert min(distances.values()) > 5 * TOLERANCE, distances


def test_half_precision_stays_close(tmp_path):
    model = tiny_model(initializer_range=0.05)
    copy = mlx_copy(model, tmp_path)
    copy.set_dtype(mx.bfloat16)
    assert {value.dtype for _, value in tree_flatten(copy.parameters())} == {mx.bfloat16}
    ids, sizes = tokens(2, LENGTH), [30] + [1] * 6
    expected = expected_logits(model, ids)
    found = fed_in_chunks(copy, ids, sizes)
    assert largest_difference(found, expected) < 0.05 * np.abs(expected).max()


def test_the_small_checkpoint(small):
    copy, _ = small
    model = IQuestPLTCoderForCausalLM.from_pretrained(SMALL, dtype=torch.float32).eval()
    ids = torch.randint(8192, (1, 300), generator=torch.Generator().manual_seed(5))
    expected = expected_logits(model, ids)
    # The chunk's later loops run over its end: 257 tokens. The last chunk is the full pass with a cache.
    found = fed_in_chunks(copy, ids, [280, 1, 19], unread=1)
    assert largest_difference(found, expected[:, 280:]) <= TOLERANCE


# -- the plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 9, 13, 30, 100])
@pytest.mark.parametrize("num_loops", [2, 3, 4])
def test_later_loops_run_over_the_end_of_a_prompt(num_loops, length):
    """The same tokens as in the plan of the Transformers model."""
    config = tiny_config(plt_num_loops=num_loops)
    model = plt_mlx.PLTModel(args_of(config))
    blocks = plan(GridShape(config.num_hidden_layers, num_loops, config.loop_window), length, keep=1)
    expected = {block.runs[0].loop: list(block.starts) for block in blocks if block.starts}
    assert model._tails(length) == expected


def test_the_caches_of_a_prompt_need_only_its_end(tmp_path, monkeypatch):
    """They do not depend on the pass over all tokens, whose results are destroyed here."""
    model = tiny_model(initializer_range=0.05)
    copy, ids = mlx_copy(model, tmp_path), tokens(1, LENGTH)
    run = plt_mlx.PLTModel._later_loops

    def only_ends(self, embeds, state0, before, shared, cells, caches, starts=None):
        states = run(self, embeds, state0, before, shared, cells, caches, starts)
        return states if starts else [state * float("nan") for state in states]

    monkeypatch.setattr(plt_mlx.PLTModel, "_later_loops", only_ends)
    found = fed_in_chunks(copy, ids, [30] + [1] * 6, unread=1)
    assert largest_difference(found, expected_logits(model, ids)[:, 30:]) <= TOLERANCE
    cache = copy.make_cache()
    assert np.isnan(np.array(copy(array(ids), cache=cache))).all()


@pytest.mark.parametrize("num_loops", [1, 2, 4])
def test_a_decode_step_reads_the_weights_once(num_loops, monkeypatch):
    rows = []
    forward = plt_mlx.MLP.__call__
    monkeypatch.setattr(plt_mlx.MLP, "__call__", lambda self, x: rows.append(x.shape) or forward(self, x))
    model = plt_mlx.Model(args_of(tiny_config(plt_num_loops=num_loops)))
    cache = model.make_cache()
    model(array(tokens(2, 10)), cache=cache)
    rows.clear()
    model(array(tokens(2, 1)), cache=cache)
    assert rows == [(2 * num_loops, 1, 32)] * 3


def test_gradient_checkpointing_changes_nothing(tmp_path):
    """Gradients flow through loop 0's keys and values, which are arguments of the layers."""
    from mlx_lm.tuner.trainer import grad_checkpoint

    copy = mlx_copy(tiny_model(initializer_range=0.05, plt_num_loops=3), tmp_path)
    ids = array(tokens(2, 12))

    def loss(model):
        return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean()

    plain = dict(tree_flatten(nn.value_and_grad(copy, loss)(copy)[1]))
    forward = plt_mlx.Layer.__call__
    grad_checkpoint(copy.layers[0])
    try:
        recomputed = dict(tree_flatten(nn.value_and_grad(copy, loss)(copy)[1]))
    finally:
        plt_mlx.Layer.__call__ = forward
    assert plain.keys() == recomputed.keys() and len(plain) > 30
    for name, gradient in plain.items():
        assert mx.abs(gradient).max().item() > 0, name
        assert mx.abs(gradient - recomputed[name]).max().item() <= 1e-5, name


def test_gradients_equal_those_of_transformers(tmp_path):
    model = tiny_model(initializer_range=0.05, plt_num_loops=3)
    copy, ids = mlx_copy(model, tmp_path), tokens(2, 12)
    model(ids, labels=ids).loss.backward()

    def loss(model):
        return nn.losses.cross_entropy(model(array(ids)[:, :-1]), array(ids)[:, 1:]).mean()

    gradients = dict(tree_flatten(nn.value_and_grad(copy, loss)(copy)[1]))
    for name, parameter in model.named_parameters():
        assert largest_difference(np.array(gradients[name]), parameter.grad.numpy()) <= 1e-4, name
