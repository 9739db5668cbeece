# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Several adapters in one batch. Loops are placed along the sequence, so a batch has as many rows as in Llama."""

import peft
import pytest
import torch
from tiny import tiny_model, tokens


GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
WAYS = {"together": {}, "in sequence": {"loop_schedule": "sequence"}, "no cache": {"use_cache": False}}


def lora(**kwargs):
    modules = ["q_proj", "v_proj", "o_proj", "down_proj"]
    return peft.LoraConfig(r=4, target_modules=modules, init_lora_weights=False, **kwargs)


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_of_several_adapters(way, num_loops):
    model = peft.get_peft_model(tiny_model(plt_num_loops=num_loops), lora(), adapter_name="first")
    model.add_adapter("second", lora())
    model.eval()
    ids = tokens(3, 8)
    names = ["first", "second", "__base__"]
    mixed = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, **GREEDY, **WAYS[way]
    )
    alone = []
    for row, name in enumerate(names[:2]):
        model.set_adapter(name)
        alone.append(model.generate(input_ids=ids[row : row + 1], **GREEDY))
    with model.disable_adapter():
        alone.append(model.generate(input_ids=ids[2:], **GREEDY))
    assert torch.equal(mixed, torch.cat(alone))
    assert len({tuple(row[8:].tolist()) for row in mixed}) == 3


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("invocation", [[5], [5, 6, 7, 8]])
def test_activated_adapters(invocation, num_loops):
    """aLoRA: the adapter is active from its invocation tokens on. Their position differs between rows."""
    config = lora(alora_invocation_tokens=invocation, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(plt_num_loops=num_loops), config).eval()
    ids = tokens(2, 9)
    for row in range(2):
        ids[row, 4 + row : 4 + row + len(invocation)] = torch.tensor(invocation)
    arguments = {"attention_mask": torch.ones_like(ids), **GREEDY}
    text = model.generate(input_ids=ids, **arguments)
    assert torch.equal(text, model.generate(input_ids=ids, loop_schedule="sequence", **arguments))
    for row in range(2):
        assert torch.equal(text[row : row + 1], model.generate(input_ids=ids[row : row + 1], **GREEDY))
    with model.disable_adapter():
        assert not torch.equal(text, model.generate(input_ids=ids, **arguments))
    if num_loops <= len(invocation):
        assert torch.equal(text, model.generate(input_ids=ids, loop_schedule="together", **arguments))
        return
    with pytest.raises(ValueError, match="Leave out `loop_schedule`"):
        model.generate(input_ids=ids, loop_schedule="together", **arguments)


@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_an_invocation_at_the_end_of_a_prompt(num_loops):
    """PEFT then adapts only the last position of a pass, so the loops of a token must not share one."""
    config = lora(alora_invocation_tokens=[5], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(plt_num_loops=num_loops), config).eval()
    ids = torch.cat([tokens(1, 9), torch.tensor([[5]])], dim=1)
    text = model.generate(input_ids=ids, **GREEDY)
    assert torch.equal(text, model.generate(input_ids=ids, loop_schedule="sequence", **GREEDY))
    for length in range(11, text.shape[1]):
        offsets = {"alora_offsets": [length - 9]}  # PEFT looks for the invocation in the prompt only
        assert model(input_ids=text[:, :length], **offsets).logits[0, -1].argmax() == text[0, length]
