# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Tests all ways to run the model: attention kernel × feeding of the tokens × layout of the batch × number of loops.

Every combination is compared with the oracle, row by row. A row's result must not depend on the other rows or on how
its tokens arrive. Unsupported combinations must be rejected.
"""

import pytest
import torch
from tiny import TOLERANCE, distance, oracle, tiny_model, tokens
from transformers import StaticCache

from iquest_plt import PLTCache


LENGTHS = (14, 9, 1)  # with a window of 4 keys besides the token itself
LONGEST = max(LENGTHS)
ATTENTION = ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]


# -- ways of feeding the tokens ---------------------------------------------------------------------------------------


def run_full(model, ids, mask, positions, **kwargs):
    return model(ids, attention_mask=mask, position_ids=positions, use_cache=False, **kwargs).logits


def run_pieces(sizes, loop_schedule="together", static=False, compiled=None):
    """Feeds the tokens in pieces of the given sizes with one cache, and the rest token by token."""

    def run(model, ids, mask, positions, **kwargs):
        step = model
        if compiled:
            torch._dynamo.reset()
            step = torch.compile(model, fullgraph=True, backend=compiled)
        cache = StaticCache(config=model.config, max_cache_len=LONGEST + 3) if static else None
        outputs, start = [], 0
        for size in [*sizes, *[1] * LONGEST]:
            if start >= ids.shape[1]:
                break
            piece = slice(start, start + size)
            arguments = {
                "input_ids": ids[:, piece],
                "attention_mask": None if mask is None else mask[:, : start + size],
                "position_ids": None if positions is None else positions[:, piece],
                "past_key_values": cache,
            }
            if compiled and start:  # like `generate()` after the first pass
                arguments = model.prepare_inputs_for_generation(**arguments)
            function = step if compiled and start else model
            output = function(**arguments, use_cache=True, loop_schedule=loop_schedule, **kwargs)
            cache, start = output.past_key_values, start + size
            outputs.append(output.logits.clone())
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
    "static": run_pieces([7], static=True),
    "static-decode-only": run_pieces([], static=True),
    "static-chunked": run_pieces([3, 3, 3, 3], "sequence", static=True),
    "static-second-turn": run_pieces([6, 1, 1, 4], static=True),
    "compiled-graph": run_pieces([7], static=True, compiled="aot_eager"),
    "compiled": run_pieces([7], static=True, compiled="inductor"),
}
SLOW_FEEDING = ["compiled-graph", "compiled"]


# -- layouts of the batch ---------------------------------------------------------------------------------------------


def left_padded():
    mask = torch.zeros(len(LENGTHS), LONGEST, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, LONGEST - length :] = 1
    return mask


def right_padded():
    return left_padded().flip(1)


def padded_between():
    """Returns a mask with padding before, between and after tokens. One gap is wider than the window."""
    rows = ("11011101110111", "00110000000111", "10000000011100", "00000000000010")
    return torch.tensor([[int(column) for column in row] for row in rows])


def one_row():
    return None


LAYOUTS = [one_row, left_padded, right_padded, padded_between]


def name(value):
    return value.__name__.replace("_", "-") if callable(value) else None


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("feeding", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW_FEEDING)) for f in FEEDING])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_every_way_of_running_gives_the_same(attention, layout, feeding, num_loops):
    # torch 2.13 cannot compile flex attention for cached steps on a CPU, not even for Llama.
    stance = "force_eager" if attention == "flex_attention" and not feeding.startswith("full") else "default"
    if stance == "force_eager" and feeding.startswith("compiled"):
        pytest.skip("flex attention runs uncompiled here")
    model = tiny_model(attention=attention)
    mask = layout()
    ids = tokens(1 if mask is None else len(mask), LONGEST)
    positions = None  # counts tokens by default, except that one loop counts columns like Llama
    if feeding.startswith("compiled") or (mask is not None and num_loops == 1):
        positions = torch.arange(LONGEST)[None] if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.compiler.set_stance(stance):
        logits = FEEDING[feeding](model, ids, mask, positions, num_loops=num_loops)
    assert torch.isfinite(logits).all()  # padding included
    for index, row in enumerate(ids):
        real = slice(None) if mask is None else mask[index].bool()
        assert distance(logits[index, real], oracle(model, row[real], num_loops)) < TOLERANCE


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_packed_documents_equal_separate_ones(attention, num_loops):
    model = tiny_model(attention=attention)
    ids = tokens(1, sum(LENGTHS))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    cu_seq_lens = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0)
    lengths = {"cu_seq_lens_q": cu_seq_lens, "cu_seq_lens_k": cu_seq_lens}
    # One loop behaves exactly like Llama, where `use_cache=True` joins the documents.
    arguments = {"num_loops": num_loops} | ({"use_cache": False} if num_loops == 1 else {})
    for packing in ({"position_ids": positions}, lengths, {"position_ids": positions, **lengths}):
        output = model(ids, **packing, **arguments)
        assert output.past_key_values is None
        for document, logits in zip(ids[0].split(LENGTHS), output.logits[0].split(LENGTHS), strict=True):
            assert distance(logits, oracle(model, document, num_loops)) < TOLERANCE


@pytest.mark.parametrize(
    "cache_of", [PLTCache, lambda config: StaticCache(config, max_cache_len=8)], ids=["dynamic", "static"]
)
def test_packed_documents_with_a_cache_are_rejected(cache_of):
    model = tiny_model()
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    with pytest.raises(ValueError, match="cannot share a cache"):
        model(tokens(1, 8), position_ids=positions, past_key_values=cache_of(model.config))


@pytest.mark.parametrize("form", ["boolean", torch.finfo(torch.float32).min, float("-inf"), -1e4])
@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_4d_masks_share_a_prompt_among_continuations(attention, num_loops, form):
    """Puts a prompt of 9 tokens and three continuations in one row. The third continuation branches again."""
    model = tiny_model(attention=attention)
    if attention == "eager" and form == "boolean":
        pytest.skip("eager attention adds the mask, also in Llama")
    ids = tokens(1, 22)
    branches = ([9, 10, 11, 12], [13], [14, 15, 16, 17, 19, 21], [14, 15, 18, 20])
    texts = [[*range(9), *branch] for branch in branches]
    mask, positions = torch.eye(22, dtype=torch.bool), torch.zeros(1, 22, dtype=torch.long)
    for text in texts:
        for place, column in enumerate(text):
            mask[column, text[:place]], positions[0, column] = True, place
    mask = mask[None, None]
    if form != "boolean":
        mask = torch.zeros(mask.shape).masked_fill(~mask, form)
    output = model(ids, attention_mask=mask, position_ids=positions, num_loops=num_loops)
    for text in texts:
        assert distance(output.logits[0, text], oracle(model, ids[0, text], num_loops)) < TOLERANCE
    if num_loops > 1:
        assert output.past_key_values is None
        with pytest.raises(ValueError, match="2D attention mask"):
            cache = PLTCache(model.config, num_loops)
            model(ids, attention_mask=mask, position_ids=positions, num_loops=num_loops, past_key_values=cache)


@pytest.mark.parametrize("form", ["boolean", "additive"])
@torch.no_grad()
def test_4d_masks_of_separate_documents(form):
    model = tiny_model(plt_num_loops=3)
    ids, positions = tokens(2, 14), torch.tensor([[*range(9), *range(5)]])
    mask = torch.ones(14, 14, dtype=torch.bool).tril()
    mask[9:, :9] = False
    mask = mask.expand(2, 1, 14, 14)
    if form == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    for row, text in zip(logits, ids, strict=True):
        for part in (slice(0, 9), slice(9, 14)):
            assert distance(row[part], oracle(model, text[part])) < TOLERANCE
    one = torch.ones(2, 1, 1, 1, dtype=torch.bool)
    assert torch.allclose(model(ids[:, :1], attention_mask=one).logits, model(ids[:, :1]).logits, atol=1e-5)


@pytest.mark.parametrize("packing", ["position_ids", "cu_seq_lens"])
@torch.no_grad()
def test_packed_documents_compiled(packing):
    """Leaves `use_cache` at its default. A graph cannot check the positions, so it creates no cache."""
    torch._dynamo.reset()
    model = tiny_model(plt_num_loops=3)
    ids = tokens(1, sum(LENGTHS))
    cu_seq_lens = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0)
    arguments = {
        "position_ids": {"position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None]},
        "cu_seq_lens": {"cu_seq_lens_q": cu_seq_lens, "cu_seq_lens_k": cu_seq_lens},
    }[packing]
    output = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, **arguments)
    assert output.past_key_values is None
    for document, logits in zip(ids[0].split(LENGTHS), output.logits[0].split(LENGTHS), strict=True):
        assert distance(logits, oracle(model, document)) < TOLERANCE


@torch.no_grad()
def test_compiled_steps():
    """Runs one compiled combination in the fast tests."""
    test_every_way_of_running_gives_the_same.__wrapped__("sdpa", padded_between, "compiled-graph", 3)


@torch.no_grad()
def test_a_leaking_shift_would_be_detected():
    """A wrong carry for the first token, from padding or the previous document, visibly changes the logits."""
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
    """Passes positions as `generate()` does. They matter because the query gate depends on absolute positions."""
    model = tiny_model(plt_gate_use_hidden_states=gate_on_hidden)
    ids = tokens(len(LENGTHS), LONGEST)
    mask = left_padded()
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    for arguments in ({}, {"position_ids": positions}):
        logits = model(ids, attention_mask=mask, **arguments).logits
        for index, row in enumerate(ids):
            real = mask[index].bool()
            assert distance(logits[index, real], oracle(model, row[real])) < TOLERANCE
