# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""`generate()`: cached equals recomputed, batched equals single, and the library's other decoding methods."""

import copy

import pytest
import torch
from tiny import tiny_model, tokens
from transformers import DynamicCache

from iquest_plt import PLTCache


GREEDY = {"do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
@torch.no_grad()
def test_greedy_equals_full_recompute_past_the_window(num_loops):
    """200 tokens past the window. The weights are such that the text does not fall into a loop."""
    model = tiny_model(plt_window_size=[8, 0], initializer_range=0.3)
    ids = tokens(1, 12)
    generated = model.generate(ids, max_new_tokens=200, num_loops=num_loops, **GREEDY)
    assert generated.shape == (1, 212)
    logits = model(generated, num_loops=num_loops, use_cache=False).logits[0, 11:-1]
    best = logits.max(-1).values
    chosen = logits.gather(-1, generated[0, 12:, None])[:, 0]
    # A tie to within rounding may fall either way; the runs measured have none.
    assert (best - chosen).max() <= 1e-4 * logits.abs().max()
    assert len(generated[0, 12:].unique()) > 10


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@torch.no_grad()
def test_left_padded_batch_equals_single_rows(num_loops):
    model = tiny_model(initializer_range=0.3)
    prompts = [tokens(n, seed=n) for n in (11, 5, 1)]
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=30, num_loops=num_loops, **GREEDY)
    for row, prompt in enumerate(prompts):
        single = model.generate(prompt[None], max_new_tokens=30, num_loops=num_loops, **GREEDY)
        assert torch.equal(batch[row, longest:], single[0, len(prompt) :])


@torch.no_grad()
def test_the_number_of_loops_and_the_schedule_are_arguments():
    model = tiny_model(initializer_range=0.3)
    ids = tokens(1, 9)
    texts = {r: model.generate(ids, max_new_tokens=20, num_loops=r, **GREEDY) for r in (1, 2, 3)}
    assert not torch.equal(texts[1], texts[2]) and not torch.equal(texts[2], texts[3])
    assert torch.equal(model.generate(ids, max_new_tokens=20, **GREEDY), texts[2])
    in_sequence = model.generate(ids, max_new_tokens=20, num_loops=3, loop_schedule="sequence", **GREEDY)
    assert torch.equal(in_sequence, texts[3])


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"prompt_lookup_num_tokens": 3},
        {"assistant": "one loop"},
        {"assistant": "another model"},
        {"assistant_early_exit": 1},
        {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_other_ways_to_decode_give_the_same_tokens(arguments):
    model = tiny_model(attention="eager", initializer_range=0.3)
    ids = tokens(1, 11).repeat(1, 2)
    expected = model.generate(ids, max_new_tokens=40, **GREEDY)
    arguments = dict(arguments)
    if assistant := arguments.pop("assistant", None):
        arguments["assistant_model"] = copy.deepcopy(model) if assistant == "one loop" else tiny_model(seed=3)
        if assistant == "one loop":
            arguments["assistant_model"].config.plt_num_loops = 1
    output = model.generate(ids, max_new_tokens=40, **GREEDY, **arguments)
    assert torch.equal(getattr(output, "sequences", output), expected)


@torch.no_grad()
def test_beam_search_and_several_samples():
    model = tiny_model(initializer_range=0.3, plt_num_loops=3)
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    arguments = {"attention_mask": mask, "max_new_tokens": 15, "num_beams": 3, "num_return_sequences": 2, **GREEDY}
    cached = model.generate(ids, **arguments)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **arguments))
    samples = model.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=True, num_return_sequences=4, pad_token_id=0
    )
    assert samples.shape == (8, 15)


@pytest.mark.parametrize("cache_of", [lambda c: DynamicCache(config=c), PLTCache], ids=["DynamicCache", "PLTCache"])
@torch.no_grad()
def test_a_kept_cache_over_three_turns_equals_one_go(cache_of):
    model = tiny_model(initializer_range=0.3)
    cache, text = cache_of(model.config), tokens(1, 0)
    for turn in range(3):
        text = torch.cat([text, tokens(1, 7, seed=turn)], dim=1)
        kept = model.generate(text, past_key_values=cache, max_new_tokens=8, **GREEDY)
        assert torch.equal(kept, model.generate(text, max_new_tokens=8, **GREEDY))
        text = kept


@torch.no_grad()
def test_one_prompt_continued_several_ways():
    model = tiny_model(initializer_range=0.3)
    prompt = tokens(1, 12)
    cache = model(prompt).past_key_values
    for seed in range(3):
        text = torch.cat([prompt, tokens(1, 4, seed=seed)], dim=1)
        continued = model.generate(text, past_key_values=copy.deepcopy(cache), max_new_tokens=8, **GREEDY)
        assert torch.equal(continued, model.generate(text, max_new_tokens=8, **GREEDY))
