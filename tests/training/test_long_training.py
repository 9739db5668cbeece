# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Training on long rows: all kinds of rotary scaling, and memory linear in the length."""

import pytest
import torch
from tiny import ROPES, llama_of, tiny_model, tokens

from iquest_plt.benchmarks.common import peak_memory


ROPES = {"default": {}} | ROPES
TIME = 150  # longer than the original length of the scaled kinds


def scaled(rope: str) -> dict:
    fields = {"rope_type": rope, "rope_theta": 100.0} | ROPES[rope]
    if rope == "longrope":
        fields["original_max_position_embeddings"] = 64
    return {"rope_parameters": fields, "max_position_embeddings": 64 if rope == "dynamic" else 512}


def gradients(model, ids, **kwargs):
    model.zero_grad()
    loss = model(ids, labels=ids, use_cache=False, **kwargs).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rope", ROPES)
def test_every_rotary_scaling_trains(rope):
    """One loop equals Llama exactly, two loops are the same with checkpointing, and scaling has an effect."""
    model = tiny_model(attention="eager", **scaled(rope)).train()
    ids = tokens(1, TIME)
    loss, ours = gradients(model, ids, num_loops=1)
    expected, theirs = gradients(llama_of(model).train(), ids)
    assert loss == expected
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())
    loss, plain = gradients(model, ids)
    model.gradient_checkpointing_enable()
    again, checkpointed = gradients(model, ids)
    assert loss == again and plain.keys() == checkpointed.keys() == dict(model.named_parameters()).keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-7 * gradient.abs().max().item())
    if rope != "default":
        assert gradients(tiny_model(attention="eager", max_position_embeddings=512).train(), ids)[0] != loss


@pytest.mark.slow
@pytest.mark.parametrize("num_loops", [1, 2])
def test_memory_of_a_step_is_linear_up_to_32k_tokens(num_loops):
    """
    With checkpointing, 32K tokens need four times the memory of 8K, less than a mask would take. The vocabulary is
    small because logits are not tested here: TRL, which sft.py uses, computes them in pieces.
    """
    rope = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096, "rope_theta": 1e4}
    shape = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 16}
    options = {"max_position_embeddings": 32_768, "rope_parameters": rope, "plt_window_size": [64, 0], **shape}
    model = tiny_model(plt_num_loops=num_loops, **options).train()
    model.gradient_checkpointing_enable()
    peaks = {}
    for time in (1024, 8192, 32_768):  # the first covers one-time allocations
        peaks[time] = peak_memory(lambda time=time: gradients(model, tokens(1, time)), "cpu")
    print(num_loops, peaks)
    assert peaks[32_768] < 4.4 * peaks[8192]
    assert peaks[32_768] < 32_768**2 / 4
