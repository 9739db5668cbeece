# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Attention functions registered with the library. User-defined ones get contiguous keys, as from Llama's cache. Flash
attention gets a mask that hides the unused columns of a static cache.
"""

import pytest
import torch
from tiny import TOLERANCE, distance, llama_of, oracle, tiny_model, tokens
from transformers import AttentionInterface, AttentionMaskInterface, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def with_views(module, query, key, value, attention_mask, **kwargs):
    """Merges dimensions with `.view`, as many kernels do."""
    key, value = (states.view(len(states), -1).view(states.shape) for states in (key, value))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


@pytest.fixture
def kernel():
    AttentionInterface.register("with_views", with_views)
    AttentionMaskInterface.register("with_views", sdpa_mask)
    yield "with_views"
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop("with_views")


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_function_may_use_view(num_loops, padding, kernel):
    """Past the window, with a cache, with and without padding, the result equals the library's own function."""
    model, ids = tiny_model(), tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True, "pad_token_id": 0}
    expected = model.generate(ids, num_loops=num_loops, **options)
    if num_loops == 1:  # Llama also supports this function
        llama = llama_of(model)
        llama.set_attn_implementation(kernel)
        assert torch.equal(llama.generate(ids, **options).sequences, expected.sequences)
    model.set_attn_implementation(kernel)
    found = model.generate(ids, num_loops=num_loops, **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def flash(module, query, key, value, attention_mask, sliding_window=None, is_causal=None, **kwargs):
    """Computes, on a CPU, what the library's flash kernels compute for left-padded rows: causal from the end back."""
    assert attention_mask is None or attention_mask.ndim == 2
    length = key.shape[2] if attention_mask is None else attention_mask.shape[1]
    key, value, new = key[:, :, :length], value[:, :, :length], query.shape[2]
    mask = torch.ones(1, 1, new, length, dtype=torch.bool).tril(length - new)
    if sliding_window is not None:
        mask = mask.triu(length - new - sliding_window + 1)
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None].bool()
    return sdpa_attention_forward(module, query, key, value, mask, is_causal=False, **kwargs)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_loops", [1, 2, 3])
@torch.no_grad()
def test_flash_attention_does_not_see_unused_columns_of_a_static_cache(num_loops, masked, monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    ids, outputs, start = tokens(2, 12), [], 0
    cache = StaticCache(model.config, max_cache_len=12)  # full in the end
    for size in (2, 4, 1, 1, 3, 1):
        mask = torch.ones(2, start + size, dtype=torch.long) if masked else None
        new = ids[:, start : start + size]
        outputs.append(model(new, attention_mask=mask, past_key_values=cache, num_loops=num_loops).logits)
        start += size
    for row, logits in enumerate(torch.cat(outputs, dim=1)):
        assert distance(logits, oracle(model, ids[row], num_loops)) < TOLERANCE
