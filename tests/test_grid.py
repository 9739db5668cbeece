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
"""
One grid for all ways to run: attention kernel × way of feeding the tokens × layout of the batch × number of loops.

Every cell is compared with the oracle, row by row: whatever stands beside a row, and however its tokens arrive, it
gives what it gives alone.
"""

import pytest
import torch
from tiny import TOLERANCE, distance, oracle, tiny_model, tokens

from iquest_plt import PLTCache


LENGTHS = (14, 9, 1)  # with a window of 4 keys besides the token itself
LONGEST = max(LENGTHS)
ATTENTION = ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]


def run_full(model, ids, mask, **kwargs):
    return model(ids, attention_mask=mask, use_cache=False, **kwargs).logits


def run_pieces(sizes, loop_schedule="together"):
    """Feeds the tokens in pieces of the given sizes, on one cache; the rest token by token."""

    def run(model, ids, mask, **kwargs):
        cache, outputs, start = None, [], 0
        for size in [*sizes, *[1] * LONGEST]:
            piece = slice(start, start + size)
            if start >= ids.shape[1]:
                break
            seen = None if mask is None else mask[:, : start + size]
            output = model(
                ids[:, piece],
                attention_mask=seen,
                past_key_values=cache,
                use_cache=True,
                loop_schedule=loop_schedule,
                **kwargs,
            )
            cache, start = output.past_key_values, start + size
            outputs.append(output.logits)
        return torch.cat(outputs, dim=1)

    return run


FEEDING = {
    "full": run_full,
    "full-with-cache": run_pieces([LONGEST]),
    "prefill-decode": run_pieces([7]),
    "prefill-decode-in-sequence": run_pieces([7], "sequence"),
    "decode-only": run_pieces([]),
    "chunked-prefill": run_pieces([3, 3, 3, 3]),
    "second-turn": run_pieces([6, 1, 1, 4]),
}


def left_padded(ids):
    mask = torch.zeros(len(LENGTHS), LONGEST, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, LONGEST - length :] = 1
    return mask, [ids[row, LONGEST - length :] for row, length in enumerate(LENGTHS)]


def right_padded(ids):
    mask = torch.zeros(len(LENGTHS), LONGEST, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return mask, [ids[row, :length] for row, length in enumerate(LENGTHS)]


def one_row(ids):
    return None, [ids[0]]


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("feeding", FEEDING)
@pytest.mark.parametrize("layout", [one_row, left_padded, right_padded], ids=lambda f: f.__name__.replace("_", "-"))
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_every_way_of_running_gives_the_same(attention, layout, feeding, num_loops):
    if attention == "flex_attention" and feeding not in ("full", "full-with-cache"):
        pytest.skip("the compiler of torch 2.13 cannot build flex attention for cached steps on a CPU, nor for Llama")
    model = tiny_model(attention=attention)
    ids = tokens(1 if layout is one_row else len(LENGTHS), LONGEST)
    mask, rows = layout(ids)
    logits = FEEDING[feeding](model, ids, mask, num_loops=num_loops)
    assert torch.isfinite(logits).all()  # padding included
    for index, row in enumerate(rows):
        real = slice(None) if mask is None else mask[index].bool()
        assert distance(logits[index, real], oracle(model, row, num_loops)) < TOLERANCE


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_packed_documents_equal_separate_ones(attention, num_loops):
    model = tiny_model(attention=attention)
    ids = tokens(1, sum(LENGTHS))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    cu_seq_lens = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0)
    lengths = {"cu_seq_lens_q": cu_seq_lens, "cu_seq_lens_k": cu_seq_lens}
    # One loop is Llama, to the letter: there `use_cache=True` joins the documents.
    arguments = {"num_loops": num_loops} | ({"use_cache": False} if num_loops == 1 else {})
    for packing in ({"position_ids": positions}, lengths, {"position_ids": positions, **lengths}):
        output = model(ids, **packing, **arguments)
        assert output.past_key_values is None
        for document, logits in zip(ids[0].split(LENGTHS), output.logits[0].split(LENGTHS), strict=True):
            assert distance(logits, oracle(model, document, num_loops)) < TOLERANCE
    if num_loops > 1:
        with pytest.raises(ValueError, match="no common cache"):
            model(ids, position_ids=positions, past_key_values=PLTCache(model.config, num_loops))


@torch.no_grad()
def test_the_grid_would_see_a_leaking_shift():
    """The state of a padding token, or of the document before, as the first token's carry shows in the logits."""
    from reference import Reference

    model = tiny_model(plt_num_loops=3)
    reference = Reference(model.config, model.state_dict())
    first, second = tokens(2, 9).tolist()
    _, states = reference(first)
    leaked, _ = reference(second, initial_carry=states[:-1, -1])
    assert distance(model(torch.tensor([second])).logits[0], leaked) > 1e-3


@pytest.mark.parametrize("gate_on_hidden", [True, False])
@torch.no_grad()
def test_left_padding_with_given_positions(gate_on_hidden):
    """As `generate()` passes them; the query gate knows absolute positions."""
    model = tiny_model(plt_gate_use_hidden_states=gate_on_hidden)
    ids = tokens(len(LENGTHS), LONGEST)
    mask, rows = left_padded(ids)
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    for arguments in ({}, {"position_ids": positions}):
        logits = model(ids, attention_mask=mask, **arguments).logits
        for index, row in enumerate(rows):
            assert distance(logits[index, mask[index].bool()], oracle(model, row)) < TOLERANCE
