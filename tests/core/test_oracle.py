# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Compares the model with the float64 oracle, and with Llama at R = 1."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import WRONG
from tiny import TOLERANCE, distance, llama_of, oracle, tiny_model, tokens
from torch import nn
from transformers import StaticCache

from iquest_plt import PLTCache, inputs_plt


pytestmark = pytest.mark.core


TIME = 24


@pytest.mark.parametrize("window", [0, 1, 4, TIME - 1, TIME, TIME + 9])
@pytest.mark.parametrize("scales", [(0.7, 0.4), (None, None)], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("gate_on_hidden", [True, False], ids=["gate-hidden", "gate-query"])
@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
@torch.no_grad()
def test_logits_and_loop_states_equal_the_oracle(num_loops, gate_on_hidden, scales, window):
    model = tiny_model(
        plt_window_size=[window, 0],
        plt_emb_scale=scales[0],
        plt_hidden_scale=scales[1],
        plt_gate_use_hidden_states=gate_on_hidden,
    )
    ids = tokens(1, TIME)
    output = model(ids, num_loops=num_loops, output_loop_states=True, use_cache=False)
    assert distance(output.logits[0], oracle(model, ids[0], num_loops)) < TOLERANCE
    assert len(output.loop_states) == num_loops
    assert torch.equal(model.lm_head(output.loop_states[-1]), output.logits)


@torch.no_grad()
def test_states_fed_back_without_the_norm():
    model = tiny_model(plt_normalize_per_loop=False, plt_num_loops=3)
    ids = tokens(1, TIME)
    assert distance(model(ids).logits[0], oracle(model, ids[0])) < TOLERANCE


@pytest.mark.parametrize("attention", ["gated", "shared", "own"])
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@torch.no_grad()
def test_the_controls_equal_the_oracle(kernel, shift, attention):
    """Each control equals the oracle in one pass and token by token, and differs from the other controls."""
    model = tiny_model(attention=kernel, plt_num_loops=3, plt_cross_loop_shift=shift, plt_loop_attention=attention)
    ids = tokens(1, TIME)
    expected = oracle(model, ids[0])
    assert distance(model(ids, use_cache=False).logits[0], expected) < TOLERANCE
    cache = PLTCache(model.config)
    steps = [model(piece, past_key_values=cache).logits for piece in (ids[:, :9], *ids[:, 9:].split(1, dim=1))]
    assert distance(torch.cat(steps, dim=1)[0], expected) < TOLERANCE
    assert cache.nbytes == model.kv_bytes_per_sequence(TIME)
    if shift:
        schedules = [
            model.generate(ids, max_new_tokens=9, do_sample=False, loop_schedule=s) for s in ("together", "sequence")
        ]
        assert torch.equal(*schedules)
    another = "own" if attention == "gated" else "gated"
    for other in ({"plt_cross_loop_shift": not shift}, {"plt_loop_attention": another}):
        model = tiny_model(
            **({"plt_num_loops": 3, "plt_cross_loop_shift": shift, "plt_loop_attention": attention} | other)
        )
        assert distance(model(ids).logits[0], expected) > 1e-3


def test_decoding_without_the_shift_warns_that_it_runs_in_sequence(monkeypatch):
    said = []
    monkeypatch.setattr(inputs_plt.logger, "warning_once", said.append)
    for shift in (True, False):
        tiny_model(plt_cross_loop_shift=shift).generate(tokens(1, 5), max_new_tokens=3, do_sample=False)
        assert bool(said) is not shift
    assert "in sequence" in said[0]


# Each mistake must show with at least one of these two. Together they cover what the mistakes need (see `WRONG`).
CATCHERS = (
    {"plt_gate_use_hidden_states": True, "plt_normalize_per_loop": True},
    {"plt_gate_use_hidden_states": False, "plt_normalize_per_loop": False},
)


@pytest.mark.parametrize("wrong", WRONG)
@torch.no_grad()
def test_wrong_variants_are_caught(wrong):
    ids = tokens(1, TIME)
    errors = []
    for fields in CATCHERS:
        model = tiny_model(plt_num_loops=3, **fields)
        errors.append(distance(model(ids).logits[0], oracle(model, ids[0], wrong=wrong)))
    assert max(errors) > 1e-3, WRONG[wrong]


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_one_loop_is_llama(attention, cache):
    model = tiny_model(attention=attention, plt_num_loops=1)
    llama = llama_of(model)
    ids, mask = tokens(2, TIME), torch.ones(2, TIME, dtype=torch.long)
    mask[0, :5] = 0
    assert torch.equal(model(ids, attention_mask=mask).logits, llama(ids, attention_mask=mask).logits)
    arguments = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    arguments |= {"cache_implementation": cache, "output_logits": True, "return_dict_in_generate": True}
    ours, theirs = model.generate(ids, **arguments), llama.generate(ids, **arguments)
    assert torch.equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0 if attention == "eager" else 1e-5)


def test_one_loop_trains_like_llama():
    model = tiny_model(attention="eager", plt_num_loops=1).train()
    llama = llama_of(model).train()
    ids = tokens(2, TIME)
    for each in (model, llama):
        each(ids, labels=ids).loss.backward()
    ours = dict(model.named_parameters())
    assert all(torch.equal(ours[name].grad, p.grad) for name, p in llama.named_parameters())


# Not so small that float32, which has the states, would round them to zero.
SCALES = st.floats(-1, 1, width=16, allow_subnormal=False)


@st.composite
def cases(draw):
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    fields = {
        "num_key_value_heads": kv_heads,
        "num_attention_heads": heads,
        "head_dim": draw(st.sampled_from([2, 6, 8])),
        "hidden_size": draw(st.sampled_from([8, 24])),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "plt_num_loops": draw(st.integers(1, 5)),
        "plt_window_size": [draw(st.integers(0, 20)), 0],
        "plt_emb_scale": draw(st.none() | SCALES),
        "plt_hidden_scale": draw(st.none() | SCALES),
        "plt_normalize_per_loop": draw(st.booleans()),
        "plt_gate_use_hidden_states": draw(st.booleans()),
        "plt_cross_loop_shift": draw(st.sampled_from([True, True, False, "learned", "mixed"])),
        "plt_loop_attention": draw(st.sampled_from(["gated", "gated", "shared", "own", "joint"])),
    }
    width = draw(st.integers(1, 20))
    padding = draw(st.sampled_from(["none", "left", "anywhere", "late"]))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        if padding in ("anywhere", "late"):
            first = draw(st.integers(0, width)) if padding == "late" else 0
            rows.append([True] * first + draw(st.lists(st.booleans(), min_size=width - first, max_size=width - first)))
        else:
            first = draw(st.integers(0, width - 1)) if padding == "left" else 0
            rows.append([column >= first for column in range(width)])
    mask = None if padding == "none" else torch.tensor(rows, dtype=torch.long)
    chunks = draw(st.lists(st.integers(1, 5), max_size=6))
    # The number of tokens to add and roll back after each chunk. A static cache cannot roll back.
    cache = draw(st.sampled_from(["dynamic", "static", "recording"]))
    rollbacks = draw(st.lists(st.integers(0, 7), max_size=6)) if cache == "recording" else []
    return fields, len(rows), width, mask, chunks, cache, rollbacks, draw(st.integers(0, 2**16))


def check_case(case):
    """Feeds a padded batch in chunks and then token by token, and compares every token's logits with the oracle."""
    fields, batch, width, mask, chunks, kind, rollbacks, seed = case
    model = tiny_model(seed=seed, attention="sdpa", **fields)
    ids, other = tokens(batch, width, seed=seed), tokens(batch, 7, seed=seed + 1)
    cache = StaticCache(model.config, max_cache_len=width) if kind == "static" else PLTCache(model.config)
    if kind == "recording":
        cache.activate_past_recording()
    positions = torch.arange(width)[None].expand(batch, -1) if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    outputs, start = [], 0
    for index, size in enumerate([*chunks, *[1] * width]):
        piece = slice(start, start + size)
        if start >= width:
            break
        start = min(start + size, width)
        seen = None if mask is None else mask[:, :start]
        output = model(ids[:, piece], attention_mask=seen, position_ids=positions[:, piece], past_key_values=cache)
        outputs.append(output.logits)
        if index < len(rollbacks):
            tried = other[:, : rollbacks[index]]
            if tried.shape[1]:
                tried_mask = None if mask is None else nn.functional.pad(seen, (0, tried.shape[1]), value=1)
                model(tried, attention_mask=tried_mask, past_key_values=cache)
            cache.crop(-tried.shape[1])
    logits = torch.cat(outputs, dim=1)
    assert cache.get_seq_length() == width
    for row in range(batch):
        real = slice(None) if mask is None else mask[row].bool()
        if len(ids[row, real]):
            assert distance(logits[row, real], oracle(model, ids[row, real])) < TOLERANCE


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases())
@torch.no_grad()
def test_random_models_paddings_chunks_and_caches(case):
    check_case(case)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(cases())
@torch.no_grad()
def test_many_random_models_paddings_chunks_and_caches(case):
    check_case(case)
