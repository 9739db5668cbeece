# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The windows of a static cache are rings: they give the same results as other windows, and no step copies them."""

import pytest
import torch
from tiny import TOLERANCE, distance, oracle, tiny_model, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StaticCache

from iquest_plt import PLTCache
from iquest_plt.cache_staircase_plt import Staircase


pytestmark = pytest.mark.core

GREEDY = {"do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("window, new_tokens", [(0, 6), (1, 8), (64, 200)])
@pytest.mark.parametrize("reads_residual, num_loops", [(True, 2), (False, 3), (True, 4)])
@torch.no_grad()
def test_generation_past_several_turns_of_the_ring(window, new_tokens, reads_residual, num_loops):
    """The tokens equal those with the default cache, after a prompt shorter and one longer than the window."""
    fields = {"plt_window_size": [window, 0], "plt_gate_use_hidden_states": reads_residual, "num_hidden_layers": 2}
    model = tiny_model(initializer_range=0.3, **fields)
    for prompt, count in ((3, new_tokens), (window + 4, min(new_tokens, 20))):
        ids, mask = tokens(2, prompt), torch.ones(2, prompt, dtype=torch.long)
        mask[0, :2] = 0
        arguments = {"attention_mask": mask, "max_new_tokens": count, "num_loops": num_loops, **GREEDY}
        expected = model.generate(ids, **arguments)
        assert torch.equal(model.generate(ids, cache_implementation="static", **arguments), expected)


@pytest.mark.parametrize("schedule", ["together", "sequence"])
@pytest.mark.parametrize("num_loops", [2, 4])
@torch.no_grad()
def test_padding_within_steps_and_chunks_after_them(num_loops, schedule):
    """Rows whose rings stand at different columns: chunks take them out in each row's own order."""
    model = tiny_model()
    rows = ("001101101110111010111011", "111111111111111111111111", "111000000001011011101101")
    mask = torch.tensor([[int(column) for column in row] for row in rows])
    ids = tokens(*mask.shape)
    cache, outputs, start = StaticCache(model.config, max_cache_len=ids.shape[1]), [], 0
    for size in (2, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 7, 1, 1, 1):
        arguments = {"attention_mask": mask[:, : start + size], "num_loops": num_loops, "loop_schedule": schedule}
        outputs.append(model(ids[:, start : start + size], past_key_values=cache, **arguments).logits)
        start += size
    assert start == ids.shape[1]
    logits = torch.cat(outputs, dim=1)
    assert torch.isfinite(logits).all()
    for row, real in enumerate(mask.bool()):
        assert distance(logits[row, real], oracle(model, ids[row, real], num_loops)) < TOLERANCE


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("num_loops", [1, 3])
@torch.no_grad()
def test_flex_attention_masks_outlive_the_update_of_the_cache(num_loops, padding):
    """Flex attention evaluates its mask after the cache has counted the new tokens, which must not move the mask."""
    model = tiny_model(attention="flex_attention")
    ids, mask, outputs, start = tokens(2, 12), torch.ones(2, 12, dtype=torch.long), [], 0
    mask[0, :padding] = 0
    cache = StaticCache(model.config, max_cache_len=16)
    with torch.compiler.set_stance("force_eager"):  # torch 2.13 cannot compile such steps on a CPU
        for size in (6, 1, 1, 3, 1):
            arguments = {"attention_mask": mask[:, : start + size] if padding else None, "num_loops": num_loops}
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, start : start + size]
            outputs.append(model(ids[:, start : start + size], past_key_values=cache, **arguments).logits)
            start += size
    logits = torch.cat(outputs, dim=1)
    for row, real in enumerate(mask.bool()):
        assert distance(logits[row, real], oracle(model, ids[row, real], num_loops)) < TOLERANCE


@torch.no_grad()
def test_padding_leaves_its_column_to_the_next_token():
    model = tiny_model()
    ids, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, 6] = 0
    cache = StaticCache(model.config, max_cache_len=8)
    columns = []
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 8)):
        model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
        columns.append(cache.layers[0].next_column.tolist())
    assert columns == [[0, 0], [1, 1], [2, 1], [3, 2]]
    assert cache.layers[0].is_token.sum(-1).tolist() == [5, 5]
    assert cache.layers[1].is_token is None and cache.layers[1].next_column is None  # only layer 0 counts


@pytest.mark.parametrize("kind", ["gated", "own", "joint"])
@pytest.mark.parametrize("num_loops", [2, 3])
@torch.no_grad()
def test_recorded_window_attention_is_in_the_order_of_the_text(num_loops, kind):
    model = tiny_model(attention="eager", plt_num_loops=num_loops, plt_loop_attention=kind)
    ids = tokens(2, 12)
    caches = StaticCache(model.config, max_cache_len=12), PLTCache(model.config, num_loops)
    for cache in caches:
        model(ids[:, :7], past_key_values=cache)
    for i in range(7, 12):
        static, dynamic = (
            model(ids[:, i : i + 1], past_key_values=cache, output_window_attentions=True).window_attentions
            for cache in caches
        )
        for ours, theirs in zip(static, dynamic, strict=True):
            unused = ours.shape[-1] - theirs.shape[-1]  # "own" keeps all keys, so its window is not full
            assert torch.allclose(ours[..., unused:], theirs, atol=1e-5) and not ours[..., :unused].any()


@pytest.mark.parametrize("num_loops", [2, 3])
@torch.no_grad()
def test_drafts_between_steps(num_loops):
    """A pass with drafts takes the columns out of a ring that has turned, and steps continue from what it puts back."""
    model = tiny_model()
    ids = tokens(1, 20)
    cache = StaticCache(model.config, max_cache_len=24)
    arguments = {"past_key_values": cache, "num_loops": num_loops}
    model(ids[:, :6], **arguments)
    logits = [model(ids[:, i : i + 1], **arguments).logits[0, -1] for i in range(6, 13)]
    assert int(cache.layers[0].next_column) == 2
    staircase, known = Staircase(cache, num_loops), 13
    while known < 17:  # the drafts hold
        positions = torch.arange(known, 17)[None]
        settled = model(ids[:, known:17], position_ids=positions, staircase=staircase, **arguments).logits[0]
        logits += settled
        known += len(settled)
        staircase.settle(len(settled), True)
    staircase.drop()
    logits += [model(ids[:, i : i + 1], **arguments).logits[0, -1] for i in range(known, 20)]
    assert distance(torch.stack(logits), oracle(model, ids[0], num_loops)[6:]) < TOLERANCE


class Operations(TorchDispatchMode):
    """Records the name and the outputs of every operation."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else [result]
        self.calls.append((str(function), [output for output in outputs if isinstance(output, torch.Tensor)]))
        return result


def operations_of_a_step(num_loops: int, num_layers: int):
    """Returns the operations of a step with a static cache, and the cache. Its window has 38 columns."""
    model = tiny_model(plt_window_size=[37, 0], num_hidden_layers=num_layers)
    cache = StaticCache(model.config, max_cache_len=60)
    arguments = {"past_key_values": cache, "num_loops": num_loops}
    model(tokens(2, 45), **arguments)
    model(tokens(2, 1), **arguments)
    with Operations() as operations:
        model(tokens(2, 1), **arguments)
    return operations.calls, cache


@pytest.mark.parametrize("num_loops", [2, 3])
@torch.no_grad()
def test_a_step_does_not_copy_the_windows(num_loops):
    calls, cache = operations_of_a_step(num_loops, num_layers=2)
    rings = [ring for layer in cache.layers for ring in (layer.window_keys, layer.window_values)]
    addresses = {ring.untyped_storage().data_ptr() for ring in rings}
    heads = rings[0].shape[2:3] + rings[0].shape[-1:]
    whole = [
        (name, output)
        for name, outputs in calls
        for output in outputs
        if output.ndim >= 4 and output.shape[-2] in (37, 38) and (output.shape[-3], output.shape[-1]) == heads
    ]
    assert whole  # attention reads the rings as they are
    for name, output in whole:
        assert output.untyped_storage().data_ptr() in addresses, name


@torch.no_grad()
def test_a_second_loop_adds_few_operations_per_layer():
    """Views are not counted. Measured: 23 more operations; each copy of the windows would add at least two."""

    def per_layer(num_loops):
        counts = []
        for num_layers in (1, 2):
            calls, _ = operations_of_a_step(num_loops, num_layers)
            counts.append(sum(not any(o._is_view() for o in outputs) for _, outputs in calls))
        return counts[1] - counts[0]

    assert 0 < per_layer(2) - per_layer(1) <= 24
