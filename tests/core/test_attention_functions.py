# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""User-defined attention functions, registered with the library. They get contiguous keys, as from Llama's cache."""

import pytest
import torch
from tiny import llama_of, tiny_model, tokens
from transformers import AttentionInterface, AttentionMaskInterface
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
