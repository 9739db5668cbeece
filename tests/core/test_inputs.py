# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Masks and positions as callers write them. Each works as stated or is rejected."""

import pytest
import torch
from tiny import TOLERANCE, distance, llama_of, oracle, tiny_model, tokens

from iquest_plt import PLTCache


pytestmark = pytest.mark.core
LOOPS = [1, 2, 3]


@pytest.mark.parametrize("num_loops", LOOPS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_4d_masks(kind, attention, num_loops):
    model, ids = tiny_model(attention=attention), tokens(1, 12)
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    if kind == "additive":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    logits = model(ids, attention_mask=mask, num_loops=num_loops).logits[0]
    assert distance(logits, oracle(model, ids[0], num_loops)) < TOLERANCE


@pytest.mark.parametrize("num_loops", LOOPS)
def test_a_4d_mask_that_a_kernel_ignores_is_rejected(num_loops):
    model, ids = tiny_model(), tokens(1, 12)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="does not accept a 4D mask"):
        model(ids, attention_mask=torch.ones(1, 1, 12, 12, dtype=torch.bool).tril(), num_loops=num_loops)


@pytest.mark.parametrize("num_loops", LOOPS)
@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("told_by", ["position_ids", "cu_seq_lens_q"])
def test_packed_rows_do_not_leak(told_by, use_cache, num_loops):
    model, documents = tiny_model(), (tokens(1, 7), tokens(1, 5, seed=2))
    ids = torch.cat(documents, dim=1)
    how = {
        "position_ids": {"position_ids": torch.cat([torch.arange(7), torch.arange(5)])[None]},
        "cu_seq_lens_q": {"cu_seq_lens_q": torch.tensor([0, 7, 12], dtype=torch.int32)},
    }[told_by]
    output = model(ids, num_loops=num_loops, use_cache=use_cache, **how)
    assert output.cache is None  # one cache cannot hold several documents
    for part, document in zip((output.logits[0, :7], output.logits[0, 7:]), documents, strict=True):
        assert distance(part, oracle(model, document[0], num_loops)) < TOLERANCE
    with pytest.raises(ValueError, match="cannot share a cache"):
        model(ids, num_loops=num_loops, cache=PLTCache(model.config, num_loops), **how)


@pytest.mark.parametrize("num_loops", LOOPS)
@pytest.mark.parametrize("value", [2, 7.5, True])
def test_any_number_but_0_is_a_token_in_a_2d_mask(value, num_loops):
    model, ids = tiny_model(), tokens(2, 9)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1]])
    expected = model(ids, attention_mask=mask, num_loops=num_loops).logits
    logits = model(ids, attention_mask=torch.where(mask == 0, 0, torch.tensor(value)), num_loops=num_loops).logits
    assert torch.equal(logits, expected)
    assert distance(logits[0, 2:], oracle(model, ids[0, 2:], num_loops)) < TOLERANCE


@pytest.mark.parametrize("gate_on_hidden", [True, False])
@pytest.mark.parametrize("num_loops", LOOPS)
def test_padding_between_tokens(num_loops, gate_on_hidden):
    model, ids = tiny_model(plt_gate_use_hidden_states=gate_on_hidden), tokens(2, 11)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]]).bool()
    logits = model(ids, attention_mask=mask, num_loops=num_loops).logits
    for row in range(2):
        alone = oracle(model, ids[row, mask[row]], num_loops)
        assert distance(logits[row, mask[row]], alone) < TOLERANCE


def test_one_loop_counts_columns_like_llama():
    model, ids = tiny_model(attention="eager"), tokens(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    assert torch.equal(
        model(ids, attention_mask=mask, num_loops=1).logits, llama_of(model)(ids, attention_mask=mask).logits
    )


@pytest.mark.parametrize("num_loops", LOOPS)
def test_negative_logits_to_keep_are_rejected(num_loops):
    with pytest.raises(ValueError, match="logits_to_keep"):
        tiny_model()(tokens(1, 5), logits_to_keep=-1, num_loops=num_loops)
