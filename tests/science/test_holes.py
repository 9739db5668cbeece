# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Loops per token: no holes equal the model, all holes equal loop 0, and any holes equal a token-by-token reference."""

import pytest
import torch
from tiny import VOCAB, tiny_model
from transformers.models.llama.modeling_llama import rotate_half


pytest.importorskip("scipy", reason="the statistics need scipy: pip install '.[training]'")
pytest.importorskip("iquest_plt.science.holes")

from iquest_plt.science.heldout import Heldout
from iquest_plt.science.holes import LoopsWithHoles, compare, most, rule


ROWS, TOKENS, WINDOW = 2, 20, 5


@pytest.fixture(scope="module")
def model():
    return tiny_model(plt_num_loops=3, plt_window_size=[WINDOW, 0]).double()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(VOCAB, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))


def reference(model, tokens: list[int], has_run: list[list[bool]], lend: bool) -> torch.Tensor:
    """Returns the newest state of each token (T, D). Takes one cell at a time, and lists of keys without masks."""
    config, core = model.config, model.model
    newest: list[torch.Tensor] = []
    shared = [([], []) for _ in core.layers]
    for loop, runs in enumerate(has_run):
        own = [([], []) for _ in core.layers]  # (position, key), (position, value)
        before = [torch.zeros(config.hidden_size).double(), *newest][: len(tokens)]
        for token, runs_here in enumerate(runs):
            if not runs_here:
                for index in range(len(own) if lend else 0):
                    for part in (0, 1):
                        own[index][part].append(shared[index][part][token])
                continue
            x = core.embed_tokens.weight[tokens[token]]
            if loop:
                x = config.plt_emb_scale * x + config.plt_hidden_scale * before[token]
            cos, sin = (part[0, 0] for part in core.rotary_emb(x[None, None], torch.tensor([[token]])))
            for index, layer in enumerate(core.layers):
                attention, normed = layer.self_attn, layer.input_layernorm(x)
                q, k, v = (
                    project(normed).view(-1, config.head_dim)
                    for project in (attention.q_proj, attention.k_proj, attention.v_proj)
                )
                q, k = (part * cos + rotate_half(part) * sin for part in (q, k))
                own[index][0].append((token, k))
                own[index][1].append((token, v))
                if loop == 0:
                    shared[index] = own[index]
                heads = _attend(q, shared[index], token, len(tokens))
                if loop:
                    near = _attend(q, own[index], token, WINDOW)
                    gate = attention.plt_gate(attention.plt_gate.gate_norm(x))[:, None]
                    heads = gate * heads + (1 - gate) * near
                x = x + attention.o_proj(heads.flatten())
                x = x + layer.mlp(layer.post_attention_layernorm(x))
            if loop == 0:
                newest.append(core.norm(x))
            else:
                newest[token] = core.norm(x)
    return torch.stack(newest)


def _attend(query, stored, token: int, reach: int) -> torch.Tensor:
    keys, values = (
        torch.stack([part for place, part in parts if token - reach <= place <= token], dim=1) for parts in stored
    )
    groups = len(query) // len(keys)
    keys, values = (part.repeat_interleave(groups, dim=0) for part in (keys, values))
    weights = torch.softmax(torch.einsum("hc,hsc->hs", query, keys) * query.shape[-1] ** -0.5, dim=-1)
    return torch.einsum("hs,hsc->hc", weights, values)


@torch.no_grad()
def test_no_holes_equal_the_model_and_all_holes_equal_loop_0(model, ids):
    expected = model.model(ids, use_cache=False, output_loop_states=True).loop_states
    rows = LoopsWithHoles(model, ids)
    everything, nothing = torch.ones_like(ids).bool(), torch.zeros_like(ids).bool()
    torch.testing.assert_close(rows.newest, expected[0])
    torch.testing.assert_close(rows.next_loop(nothing).next_loop(everything).newest, rows.newest, rtol=0, atol=0)
    for loop in (1, 2):
        rows = rows.next_loop(everything)
        torch.testing.assert_close(rows.newest, expected[loop])
        assert not torch.allclose(expected[loop], expected[0], atol=0.1)


@pytest.mark.parametrize("lend", [False, True])
@torch.no_grad()
def test_holes_equal_a_token_by_token_reference(model, ids, lend):
    generator = torch.Generator().manual_seed(2)
    chosen = [torch.rand(ids.shape, generator=generator) < share for share in (0.6, 0.7)]
    chosen[0][:, 4:13] = False  # longer than a window
    first = LoopsWithHoles(model, ids, lend)
    second = first.next_loop(chosen[0])
    third = second.next_loop(chosen[1])
    assert torch.equal(third.has_run, chosen[0] & chosen[1])
    for row in range(ROWS):
        runs = [[True] * TOKENS, second.has_run[row].tolist(), third.has_run[row].tolist()]
        for loops, found in enumerate((first, second, third), 1):
            # LlamaRMSNorm computes in float32, and so do the rotary embeddings.
            torch.testing.assert_close(
                found.newest[row], reference(model, ids[row].tolist(), runs[:loops], lend), rtol=1e-4, atol=1e-5
            )


def test_a_hole_changes_its_neighbours(model, ids):
    """Otherwise the tests above could pass with masks that are ignored."""
    everything = torch.ones_like(ids).bool()
    with_hole = everything.clone()
    with_hole[:, 8] = False
    with torch.no_grad():
        full, found = (LoopsWithHoles(model, ids).next_loop(chosen).newest for chosen in (everything, with_hole))
    moved = (full - found).abs().amax(dim=(0, 2))
    assert (moved[:8] == 0).all()
    assert (moved[8 : 8 + WINDOW + 1] > 1e-3).all()


def test_rules_choose_the_given_share():
    entropy = torch.tensor([[5.0, 1.0, 4.0, 2.0], [9.0, 3.0, 8.0, 7.0]])
    has_run = torch.tensor([[True, True, True, True], [False, True, True, True]])
    assert most(entropy, has_run, 3).tolist() == [[True, False, False, False], [False, False, True, True]]
    assert rule("entropy", 3 / 7)(entropy, has_run).tolist() == most(entropy, has_run, 3).tolist()
    # The first token has none before it, and is always chosen.
    assert rule("before", 3 / 7)(entropy, has_run).tolist() == [[True, False, False, False], [False, True, False, True]]
    choose = rule("random", 3 / 7)
    first, second = choose(entropy, has_run), choose(entropy, has_run)
    assert first.sum() == second.sum() == 3 and not (first | second)[1, 0]


def test_comparison_reaches_both_ends(model, ids):
    """Shares of 0 and 1 are one loop and all loops, whatever the rule."""
    heldout = Heldout(ids, bytes_per_token=3.0)
    found = compare(model, heldout, shares=(0.0, 1.0))
    for point in found["points"]:
        assert point["loops"] == 1 + 2 * point["share"]
        assert point["bits_per_byte"] == (found["all"] if point["share"] else found["none"])
    with torch.no_grad():
        expected = [model(ids, labels=ids, num_loops=loops).loss.item() for loops in (3, 1)]
    bits = [loss / 3 / torch.log(torch.tensor(2.0)).item() for loss in expected]
    assert [found["all"], found["none"]] == pytest.approx(bits, abs=2e-5)
    assert found["all"] != found["none"]


def test_other_models_are_refused(model, ids):
    model.config.plt_cross_loop_shift = False
    try:
        with pytest.raises(ValueError, match="only defined with the shift"):
            LoopsWithHoles(model, ids)
    finally:
        model.config.plt_cross_loop_shift = True
