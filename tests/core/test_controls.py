# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The research controls that replace parts of PLT: learned shifts, and one softmax over both sets of keys."""

import itertools

import pytest
import torch
from reference import WRONG_CONTROLS
from tiny import TOLERANCE, distance, needs_dynamo, oracle, tiny_config, tiny_model, tokens
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from iquest_plt import IQuestPLTCoderConfig, IQuestPLTCoderForCausalLM, PLTCache, controls_plt
from iquest_plt.diagnostics.trace import check_controls


pytestmark = pytest.mark.core

TIME = 24
SHIFTS = ("learned", "mixed")
# Each new shift with each attention, and the new attention with each old shift.
PAIRS = [*itertools.product(SHIFTS, ("gated", "shared", "own", "joint")), (True, "joint"), (False, "joint")]
NEW = [("learned", "gated"), ("mixed", "gated"), (True, "joint"), ("mixed", "joint")]
each_pair = pytest.mark.parametrize(("shift", "attention"), PAIRS)
each_new = pytest.mark.parametrize(("shift", "attention"), NEW)


def control(shift, attention, kernel: str = "sdpa", **fields) -> IQuestPLTCoderForCausalLM:
    fields = {"plt_num_loops": 3, "plt_cross_loop_shift": shift, "plt_loop_attention": attention} | fields
    return tiny_model(attention=kernel, **fields)


def in_pieces(model, ids, cache, num_loops=None):
    """Returns the logits (time, vocabulary) of a chunk of 9 tokens and then one by one."""
    pieces = (ids[:, :9], *ids[:, 9:].split(1, dim=1))
    steps = [model(piece, past_key_values=cache, num_loops=num_loops).logits for piece in pieces]
    return torch.cat(steps, dim=1)[0]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@each_pair
@torch.no_grad()
def test_any_number_of_loops_equals_the_oracle(shift, attention, kernel):
    """In one pass, token by token, and where only the last logits are wanted."""
    model, ids = control(shift, attention, kernel), tokens(1, TIME)
    for num_loops in (1, 2, 3, 4, 5) if kernel == "sdpa" else (3,):
        expected = oracle(model, ids[0], num_loops)
        arguments = {"num_loops": num_loops}
        assert distance(model(ids, use_cache=False, **arguments).logits[0], expected) < TOLERANCE
        assert distance(model(ids, logits_to_keep=1, **arguments).logits[0], expected[-1:]) < TOLERANCE
        cache = PLTCache(model.config, **arguments)
        assert distance(in_pieces(model, ids, cache, num_loops), expected) < TOLERANCE
        assert cache.nbytes == model.kv_bytes_per_sequence(TIME, num_loops)


@pytest.mark.parametrize("window", [0, 1, TIME + 9])
@each_new
@torch.no_grad()
def test_windows_and_states_without_the_norm(shift, attention, window):
    model = control(shift, attention, plt_window_size=[window, 0], plt_normalize_per_loop=False)
    ids = tokens(1, TIME)
    expected = oracle(model, ids[0])
    assert distance(model(ids).logits[0], expected) < TOLERANCE
    assert distance(in_pieces(model, ids, PLTCache(model.config)), expected) < TOLERANCE


@pytest.mark.parametrize("wrong", WRONG_CONTROLS)
@pytest.mark.parametrize("other", [True, False], ids=["combined", "alone"])
@torch.no_grad()
def test_wrong_variants_are_caught(wrong, other):
    """Each mistake shows in its control, alone and together with another one."""
    kind = wrong.split("_")[0]
    alone, combined = ((True, kind), ("learned", kind)) if kind == "joint" else ((kind, "gated"), (kind, "joint"))
    model, ids = control(*(combined if other else alone)), tokens(1, TIME)
    assert distance(model(ids).logits[0], oracle(model, ids[0], wrong=wrong)) > 1e-3, WRONG_CONTROLS[wrong]


@each_new
@torch.no_grad()
def test_a_control_differs_from_the_others(shift, attention):
    """With the same weights, and the shift's where it starts."""
    ids = tokens(1, TIME)
    expected = control(shift, attention)(ids).logits[0].double().numpy()
    for other in [*PAIRS, (True, "gated"), (False, "gated")]:
        if other != (shift, attention):
            assert distance(control(*other)(ids).logits[0], expected) > 1e-3, other


# -- rows that are not one text ---------------------------------------------------------------------------------------

PADDING = {
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 12],
    "anywhere": [[0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1]],
    "late": [[0] * 9 + [1, 1, 1], [1, 0] * 6],
}


@pytest.mark.parametrize("kind", ["one pass", "dynamic", "eager", "static", "recording"])
@pytest.mark.parametrize("padding", PADDING)
@each_new
@torch.no_grad()
def test_padding_changes_nothing(shift, attention, padding, kind):
    """Each row equals the oracle on its tokens alone, in chunks, with each cache, and after a rollback."""
    kernel = "eager" if kind == "eager" else "sdpa"
    model, mask = control(shift, attention, kernel), torch.tensor(PADDING[padding])
    ids, time = tokens(2, mask.shape[1]), mask.shape[1]
    cache = {"one pass": lambda: None, "static": lambda: StaticCache(model.config, max_cache_len=time)}.get(
        kind, lambda: PLTCache(model.config)
    )()
    if kind == "recording":
        cache.activate_past_recording()
    logits, start = [], 0
    for stop in (time,) if cache is None else (3, 7, *range(8, time + 1)):
        piece = slice(start, stop)
        output = model(ids[:, piece], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=cache is not None)
        logits.append(output.logits)
        start = stop
        if kind == "recording":
            tried = torch.nn.functional.pad(mask[:, :stop], (0, 2), value=1)
            model(tokens(2, 2, seed=stop), attention_mask=tried, past_key_values=cache)
            cache.crop(-2)
    for row, is_token in enumerate(mask.bool()):
        expected = oracle(model, ids[row, is_token])
        assert distance(torch.cat(logits, dim=1)[row, is_token], expected) < TOLERANCE


@torch.no_grad()
def test_the_mask_of_full_rows_does_not_grow_with_the_batch():
    model, masks = control(True, "joint"), []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, args: masks.append(args[3].window.mask))
    model(tokens(3, TIME), use_cache=False)
    hook.remove()
    assert masks[0].shape == (1, 1, TIME, 2 * TIME)
    assert masks[0].sum() == TIME * (TIME + 1) / 2 + 5 * TIME - (4 + 3 + 2 + 1)  # w + 1 = 5 keys of its own loop


@each_pair
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(shift, attention):
    """As positions that restart, and as a 4D mask."""
    model, ids, lengths = control(shift, attention), tokens(1, TIME), (3, 1, 9, 2, 9)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (document[:, None] == document) & torch.ones(TIME, TIME, dtype=torch.bool).tril()
    packed = model(ids, position_ids=positions, use_cache=False).logits[0]
    masked = model(ids, position_ids=positions, attention_mask=mask[None, None], use_cache=False).logits[0]
    parts = zip(ids[0].split(lengths), packed.split(lengths), masked.split(lengths), strict=True)
    for text, *found in parts:
        expected = oracle(model, text)
        assert max(distance(logits, expected) for logits in found) < TOLERANCE


# -- generation -------------------------------------------------------------------------------------------------------


@each_pair
@torch.no_grad()
def test_generation_equals_a_growing_prompt(shift, attention):
    """Greedily, in both schedules, with a static cache, with beams, and with drafts."""
    model, ids = control(shift, attention), tokens(2, 7)
    grown = ids
    for _ in range(9):
        grown = torch.cat([grown, model(grown, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    arguments = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    for options in ({}, {"loop_schedule": "sequence"}, {"cache_implementation": "static", "disable_compile": True}):
        assert torch.equal(model.generate(ids, **arguments, **options), grown), options
    drafted = model.generate(ids[:1], prompt_lookup_num_tokens=3, **arguments)
    assert torch.equal(drafted, grown[:1])
    beams = model.generate(ids, num_beams=3, **arguments)
    assert torch.equal(beams, model.generate(ids, num_beams=3, use_cache=False, **arguments))


@torch.no_grad()
def test_decoding_a_mix_of_earlier_states_runs_the_loops_together():
    model, passes = control("mixed", "joint"), []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    model.generate(tokens(1, 5), max_new_tokens=4, do_sample=False)
    hook.remove()
    assert passes[3:] == [3, 3, 3]  # three cells, one per loop, for each token after the prompt


@torch.no_grad()
def test_both_sets_of_weights_are_recorded_and_sum_to_one():
    model, ids = control(True, "joint", "eager"), tokens(1, TIME)
    output = model.model(ids, output_attentions=True, output_window_attentions=True, output_gates=True)
    for shared, own in zip(output.attentions, output.window_attentions, strict=True):
        assert shared.shape == own.shape == (1, 4, TIME, TIME)
        torch.testing.assert_close(shared.sum(-1) + own.sum(-1), torch.ones(1, 4, TIME))
        assert (own[0, :, 9, :5] == 0).all() and (own[0, :, 9, 5:10] > 0).all()
    assert not output.gates


# -- training ---------------------------------------------------------------------------------------------------------


def gradients(model, run) -> dict[str, torch.Tensor]:
    ids = tokens(2, TIME)
    model.zero_grad()
    run(ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@needs_dynamo
@pytest.mark.parametrize(("shift", "attention"), [("learned", "joint"), ("mixed", "gated")])
def test_compiled_training_is_the_same(shift, attention):
    model = control(shift, attention, plt_num_loops=2, num_hidden_layers=1).train()
    expected = gradients(model, model)
    names = [name for name, _ in model.named_parameters() if attention != "joint" or "plt_gate" not in name]
    assert list(expected) == names and expected["model.shift_mix.logits"].norm() > 1e-4
    found = gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"))
    for name in names:
        torch.testing.assert_close(found[name], expected[name], msg=name)


@needs_dynamo
@pytest.mark.parametrize("attention", ["gated", "joint"])
def test_compiled_layers_share_one_graph_per_loop(attention):
    torch._dynamo.reset()  # what earlier tests compiled would count
    model, graphs = control(True, attention, num_hidden_layers=2).train(), CompileCounterWithBackend("aot_eager")
    expected = gradients(model, model)
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, fullgraph=True, backend=graphs)
    found = gradients(model, model)
    assert graphs.frame_count == model.config.plt_num_loops
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_learned_shift_starts_at_the_shift_and_learns(shift):
    """In bfloat16 too, where a step of 0.001 would be lost beside a logit of 4."""
    model = IQuestPLTCoderForCausalLM(tiny_config(plt_cross_loop_shift=shift)).to(torch.bfloat16)
    mix = model.model.shift_mix
    start = mix.shares()
    torch.testing.assert_close(start.float().sum(0), torch.ones(32), atol=1e-2, rtol=0)
    assert start[0].min() > 0.97
    optimizer = torch.optim.AdamW([mix.logits], lr=1e-3)
    ids = tokens(2, 9)
    for _ in range(3):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    assert (mix.logits != 0).all()


# -- configurations and checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [True, False, *SHIFTS])
def test_only_learned_shifts_have_a_parameter(shift):
    model = tiny_model(plt_cross_loop_shift=shift)
    added = model.state_dict().keys() - tiny_model().state_dict().keys()
    assert added == ({"model.shift_mix.logits"} if shift in SHIFTS else set())
    assert model.with_num_loops(4).model.shift_mix is model.model.shift_mix


@each_new
@torch.no_grad()
def test_a_saved_control_loads_as_remote_code_and_from_the_package(shift, attention, tmp_path):
    model, ids = control(shift, attention), tokens(1, TIME)
    model.save_pretrained(tmp_path)
    for remote in (True, False):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=remote)
        assert loaded.config.plt_cross_loop_shift == shift and loaded.config.plt_loop_attention == attention
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert torch.equal(loaded.with_num_loops(2)(ids).logits, model(ids, num_loops=2).logits)


def test_a_checkpoint_without_a_mix_starts_at_the_shift(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, plt_cross_loop_shift="mixed", output_loading_info=True)
    assert set(info["missing_keys"]) == {"model.shift_mix.logits"} and not model.model.shift_mix.logits.any()


@pytest.mark.parametrize("value", ["Learned", "", 1, 0, None, 1.0, ["mixed"]])
def test_other_shifts_are_refused(value, tmp_path):
    words = '`plt_cross_loop_shift` must be true, false, "learned" or "mixed", got'
    with pytest.raises(ValueError, match=words):
        IQuestPLTCoderConfig(plt_cross_loop_shift=value)
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words):
        IQuestPLTCoderForCausalLM(AutoConfig.from_pretrained(tmp_path, plt_cross_loop_shift=value))


def test_attention_kernels_that_may_not_take_the_mask_are_refused():
    model = control(True, "joint")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match='Load the model with `attn_implementation="sdpa"`'):
        model(tokens(1, 5))


@each_new
def test_the_diagnostics_refuse(shift, attention):
    check_controls(tiny_model(plt_cross_loop_shift=False, plt_loop_attention="own"))
    with pytest.raises(ValueError, match="`loop_lens` takes any model"):
        check_controls(control(shift, attention))


def test_each_value_has_a_strategy():
    assert controls_plt.GRIDS.keys() >= controls_plt.MIXES.keys() == set(SHIFTS)
