# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The cache: its contents, its growth, every operation on it, and the caches that are rejected."""

import copy
import pickle
import weakref

import pytest
import torch
from tiny import tiny_config, tiny_model, tokens
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, QuantizedCache, StaticCache

from iquest_plt import PLTCache, PLTCacheLayer


pytestmark = pytest.mark.core


WINDOW = 4
TIME = 12  # the windows have wrapped


@pytest.fixture
def model():
    return tiny_model(plt_num_loops=3)


def filled(model, ids, num_loops=3, record=False):
    cache = PLTCache(model.config, num_loops)
    if record:
        cache.activate_past_recording()
    model(ids, past_key_values=cache, num_loops=num_loops)
    return cache


def contents(cache):
    """Yields every tensor of the cache, layer by layer."""
    for layer in cache.layers:
        names = ("keys", "values", "window_keys", "window_values", "is_token", "next_column", "carries")
        yield from (tensor for name in names if (tensor := getattr(layer, name)) is not None)


def assert_same(cache, expected):
    pairs = list(zip(contents(cache), contents(expected), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
    assert cache.get_seq_length() == expected.get_seq_length()


@pytest.mark.parametrize("cache_of", [lambda c: DynamicCache(config=c), PLTCache], ids=["DynamicCache", "PLTCache"])
@torch.no_grad()
def test_shapes(model, cache_of):
    cache = cache_of(model.config)
    assert all(type(layer) is PLTCacheLayer for layer in cache.layers)
    model(tokens(2, TIME), past_key_values=cache)
    assert cache.get_seq_length() == TIME
    for index, layer in enumerate(cache.layers):
        assert layer.keys.shape == layer.values.shape == (2, 2, TIME, 8)
        assert layer.window_keys.shape == layer.window_values.shape == (2, 2, 2, WINDOW, 8)
        if index == 0:
            assert layer.carries.shape == (2, 2, 1, 32)
        else:
            assert layer.carries is None


@pytest.mark.parametrize("num_loops", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_costs_are_those_of_the_tensors(num_loops, dtype):
    model = tiny_model().to(dtype)
    for length in (1, 3, WINDOW, TIME):
        cache = filled(model, tokens(1, length), num_loops)
        assert cache.nbytes == model.kv_bytes_per_sequence(length, num_loops)
        assert cache.nbytes == sum(t.nbytes for t in contents(cache))
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in contents(cache)}
        assert sum(storages.values()) == cache.nbytes  # no view keeps the prompt alive
    model(tokens(1, 1), past_key_values=cache, num_loops=num_loops)
    assert cache.nbytes == model.kv_bytes_per_sequence(TIME + 1, num_loops)
    per_token = 2 * 3 * 2 * 8 * dtype.itemsize
    assert model.kv_bytes_per_token() == model.kv_bytes_per_token(num_loops) == per_token
    model = tiny_model(plt_loop_attention="own").to(dtype)
    more, less = (filled(model, tokens(1, length), num_loops).nbytes for length in (TIME, TIME - 1))
    assert more - less == model.kv_bytes_per_token(num_loops) == num_loops * per_token
    assert model.kv_bytes_per_token() == 2 * per_token


@torch.no_grad()
def test_a_step_does_not_copy_the_text(model):
    """The shared part moves only when its spare room is used up, and tensors returned earlier never change."""
    cache = filled(model, tokens(2, TIME))
    handed_out, places = [], set()
    for step in range(40):
        model(tokens(2, 1, seed=step), past_key_values=cache, num_loops=3)
        for layer in cache.layers:
            handed_out += [(states, states.clone()) for states in (layer.keys, layer.values)]
        places.add(cache.layers[0].keys.data_ptr())
    assert cache.get_seq_length() == TIME + 40
    assert len(places) == 3  # moved to make room for the 13th, 26th and 52nd token
    cache.activate_past_recording()
    cache.crop(0)
    model(tokens(2, 3), past_key_values=cache, num_loops=3)
    cache.crop(-2)
    model(tokens(2, 4, seed=1), past_key_values=cache, num_loops=3)
    assert all(torch.equal(states, before) for states, before in handed_out)


def with_copied_tensors(layer):
    """Copies the layer and its tensors. A copied tensor shares its memory."""
    twin = copy.copy(layer)
    twin.keys, twin.values = copy.copy(layer.keys), copy.copy(layer.values)
    return twin


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled, with_copied_tensors])
@torch.no_grad()
def test_copies_of_a_cache_do_not_write_into_each_other(model, copied):
    prompt, steps = tokens(1, TIME), [tokens(1, 5, seed=seed) for seed in (1, 2)]
    cache = filled(model, prompt)
    model(prompt[:, :1], past_key_values=cache, num_loops=3)  # now there is spare room
    other = PLTCache(model.config, 3)
    other.layers = [copied(layer) for layer in cache.layers]
    for step in range(5):
        for each, ids in zip((cache, other), steps, strict=True):
            model(ids[:, step : step + 1], past_key_values=each, num_loops=3)
    for each, ids in zip((cache, other), steps, strict=True):
        assert_same(each, filled(model, torch.cat([prompt, prompt[:, :1], ids], dim=1)))


@pytest.mark.parametrize("num_loops", [1, 2])
@torch.no_grad()
def test_another_batch_size_is_rejected(model, num_loops):
    cache = filled(model, tokens(2, TIME), num_loops)
    model(tokens(2, 1), past_key_values=cache, num_loops=num_loops)
    with pytest.raises(ValueError, match="holds 2 rows, but the new tokens have 1"):
        model(tokens(1, 1), past_key_values=cache, num_loops=num_loops)
    assert [layer.get_seq_length() for layer in cache.layers] == [TIME + 1] * 3


@pytest.mark.parametrize("num_loops", [1, 3])
@torch.no_grad()
def test_a_step_with_the_kernel_s_causal_flag(model, num_loops):
    ids = tokens(1, TIME)
    cache = filled(model, ids[:, :-1], num_loops)
    step = model(ids[:, -1:], past_key_values=cache, num_loops=num_loops, is_causal=True)
    assert torch.allclose(step.logits[:, -1], model(ids, num_loops=num_loops).logits[:, -1], atol=1e-5)


def test_steps_with_and_without_gradients_and_inference_mode(model):
    """A cache started in one mode can continue in another, and gradients flow into it when they are enabled."""
    ids = tokens(1, TIME + 6)
    cache = PLTCache(model.config, 3)
    modes = [torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad]
    with torch.no_grad():
        model(ids[:, :TIME], past_key_values=cache)
    for step, mode in enumerate(modes, start=TIME):
        with mode():
            model(ids[:, step : step + 1], past_key_values=cache)
    for step in range(TIME + 4, TIME + 6):
        embeds = model.model.embed_tokens(ids[:, step : step + 1]).detach().requires_grad_()
        model(inputs_embeds=embeds, past_key_values=cache)
    assert cache.layers[0].keys.requires_grad
    cache.layers[-1].keys[:, :, -1].sum().backward()
    assert embeds.grad.abs().sum() > 0
    with torch.no_grad():
        assert_same(cache, filled(model, ids))


@torch.no_grad()
def test_two_loops_add_under_one_percent_at_8k_tokens():
    """Uses LoopCoder-V2's ratio of window to length, and measures the tensors."""
    model = tiny_model(plt_window_size=[64, 0], max_position_embeddings=8192, num_hidden_layers=2)
    ids = tokens(1, 8192)
    one, two = filled(model, ids, 1).nbytes, filled(model, ids, 2).nbytes
    assert two / one <= 1.01


@torch.no_grad()
def test_batch_operations(model):
    ids = tokens(3, TIME)
    whole = filled(model, ids)
    rows = [filled(model, ids[i : i + 1]) for i in range(3)]

    def joined(*indices):
        expected = copy.deepcopy(whole)
        for layer, *sources in zip(expected.layers, *(rows[i].layers for i in indices), strict=True):
            layer.keys, layer.values = (torch.cat([getattr(s, n) for s in sources]) for n in ("keys", "values"))
            for name in ("window_keys", "window_values", "carries"):
                if getattr(layer, name) is not None:
                    setattr(layer, name, torch.cat([getattr(s, name) for s in sources], dim=1))
        return expected

    cache = copy.deepcopy(whole)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert_same(cache, joined(2, 0, 0))
    cache = copy.deepcopy(whole)
    cache.batch_select_indices(torch.tensor([1, 2]))
    assert_same(cache, joined(1, 2))
    cache = copy.deepcopy(whole)
    cache.batch_repeat_interleave(2)
    assert_same(cache, joined(0, 0, 1, 1, 2, 2))


@pytest.mark.parametrize("window", [0, 3, WINDOW, 30])
@pytest.mark.parametrize("removed", [0, 1, 5])
@torch.no_grad()
def test_crop_rolls_back_windows_and_carries(window, removed):
    model = tiny_model(plt_num_loops=3, plt_window_size=[window, 0])
    ids = tokens(2, TIME + 5)
    cache = filled(model, ids[:, :TIME])
    cache.activate_past_recording()
    for i in range(TIME, TIME + 5):
        model(ids[:, i : i + 1], past_key_values=cache)
    cache.crop(-removed)
    kept = TIME + 5 - removed
    assert_same(cache, filled(model, ids[:, :kept]))
    expected = model(ids[:, :kept]).past_key_values
    step = tokens(2, 1, seed=9)
    ours, theirs = model(step, past_key_values=cache), model(step, past_key_values=expected)
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-4)


@torch.no_grad()
def test_padding_after_a_full_window_while_recording(model):
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, 12], mask[1, 14:17] = 0, 0
    cache = PLTCache(model.config)
    cache.activate_past_recording()
    pieces = (slice(0, 10), slice(10, 13), slice(13, 14), slice(14, 20))
    logits = torch.cat(
        [model(ids[:, p], attention_mask=mask[:, : p.stop], past_key_values=cache).logits for p in pieces], dim=1
    )
    expected = model(ids, attention_mask=mask).logits
    assert torch.allclose(logits[mask.bool()], expected[mask.bool()], atol=1e-4)
    cache.crop(-5)
    again = model(ids[:, 15:], attention_mask=mask, past_key_values=cache).logits
    assert torch.allclose(again[mask[:, 15:].bool()], expected[:, 15:][mask[:, 15:].bool()], atol=1e-4)


@torch.no_grad()
def test_crop_to_nothing_and_reset(model):
    ids = tokens(2, TIME)
    for empty in (lambda c: c.crop(-TIME), lambda c: c.reset()):
        cache = filled(model, ids)
        empty(cache)
        assert cache.get_seq_length() == 0
        model(ids, past_key_values=cache)
        assert_same(cache, filled(model, ids))


@torch.no_grad()
def test_crop_rejects_what_was_not_recorded(model):
    cache = filled(model, tokens(2, TIME))
    before = copy.deepcopy(cache)
    with pytest.raises(ValueError, match="activate_past_recording"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)
    assert_same(cache, before)
    one_loop = filled(model, tokens(2, TIME), num_loops=1)  # only the growing part: always croppable
    one_loop.crop(-3)
    assert one_loop.get_seq_length() == TIME - 3


@torch.no_grad()
def test_copies_are_independent(model):
    ids = tokens(1, TIME)
    for duplicate in (copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))):
        cache = filled(model, ids)
        other = duplicate(cache)
        model(tokens(1, 3, seed=5), past_key_values=other)
        assert_same(cache, filled(model, ids))
        assert other.get_seq_length() == TIME + 3


@torch.no_grad()
def test_foreign_caches_are_rejected(model):
    ids = tokens(1, 3)
    for foreign in (DynamicCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())):
        with pytest.raises(ValueError, match="PLTCache"):
            model(ids, past_key_values=foreign)
    cache = filled(model, ids, num_loops=2)
    before = copy.deepcopy(cache)
    with pytest.raises(ValueError, match="built for num_loops=2"):
        model(ids, past_key_values=cache, num_loops=3)
    assert_same(cache, before)
    for num_loops in (0, True, 1.5):
        with pytest.raises(ValueError, match="`num_loops`"):
            PLTCache(tiny_config(), num_loops=num_loops)
    for fields in ({"plt_window_size": [2, 0]}, {"num_hidden_layers": 2}, {"num_hidden_layers": 4}):
        cache = PLTCache(tiny_config(plt_num_loops=3, **fields))
        with pytest.raises(ValueError, match="Start a new cache"):
            model(ids, past_key_values=cache)
        assert cache.get_seq_length() == 0


def test_caches_the_library_cannot_build_are_rejected(model):
    with pytest.raises(ValueError, match="full attention layers"):
        QuantizedCache("quanto", model.config)  # only `PLTCache(config, quantization=...)` supports loops
    for quantization, message in (
        ({"backend": "none"}, "Unknown cache quantization"),
        ({"backend": "quanto", "nbit": 4}, "does not accept these options"),
        ("quanto", "must be a dict"),
    ):
        with pytest.raises(ValueError, match=message):
            PLTCache(model.config, quantization=quantization)
    with pytest.raises(ValueError, match="on the CPU"):
        model.generate(tokens(1, 3), max_new_tokens=3, cache_implementation="offloaded", pad_token_id=0)
    llama = LlamaConfig(num_hidden_layers=3)
    for foreign in (StaticCache(llama, max_cache_len=9), DynamicCache(config=llama), ((torch.zeros(1),),)):
        with pytest.raises(ValueError, match="PLTCache"):
            model(tokens(1, 3), past_key_values=foreign)


@torch.no_grad()
def test_padding_is_left_out_of_the_windows(model):
    """A row's window and carries depend only on its tokens, wherever the padding is."""
    ids, mask = tokens(3, TIME), torch.ones(3, TIME, dtype=torch.long)
    mask[0, 2:7], mask[1, 9:], mask[2, :10] = 0, 0, 0
    cache = PLTCache(model.config)
    for piece in (slice(0, 5), slice(5, 6), slice(6, TIME)):
        model(ids[:, piece], attention_mask=mask[:, : piece.stop], past_key_values=cache)
    for row in range(3):
        alone = filled(model, ids[row, mask[row].bool()][None])
        for layer, expected in zip(cache.layers, alone.layers, strict=True):
            columns = layer.is_token[row]
            assert columns.sum() == min(WINDOW, mask[row].sum())
            for name in ("window_keys", "window_values"):
                kept = getattr(layer, name)[:, row, :, columns]
                assert torch.allclose(kept, getattr(expected, name)[:, 0], atol=1e-5)
        assert torch.allclose(cache.layers[0].carries[:, row], alone.layers[0].carries[:, 0], atol=1e-5)


@pytest.mark.parametrize("cache_of", [PLTCache, lambda config: StaticCache(config, max_cache_len=TIME)])
@torch.no_grad()
def test_a_cache_needs_its_rows_and_its_mask(model, cache_of):
    ids, mask = tokens(2, TIME), torch.ones(2, TIME, dtype=torch.long)
    mask[0, :3] = 0
    cache = cache_of(model.config)
    model(ids[:, :5], attention_mask=mask[:, :5], past_key_values=cache)
    for i in range(5, TIME - 1):  # the padding has left the windows, but not loop 0's keys
        model(ids[:, i : i + 1], attention_mask=mask[:, : i + 1], past_key_values=cache)
    with pytest.raises(ValueError, match="holds padding"):
        model(ids[:, -1:], past_key_values=cache)
    with pytest.raises(ValueError, match="2 rows, but the new tokens have 3"):
        model(tokens(3, 1), attention_mask=torch.ones(3, TIME), past_key_values=cache)
    logits = model(ids[:, -1:], attention_mask=mask, past_key_values=cache).logits
    assert torch.allclose(logits, model(ids, attention_mask=mask).logits[:, -1:], atol=1e-4)


@pytest.mark.parametrize("window", [0, WINDOW, 30])
@torch.no_grad()
def test_static_cache_keeps_its_tensors(window):
    """Addresses never change, as CUDA graphs require. After a reset the cache works like a new one."""
    model = tiny_model(plt_num_loops=3, plt_window_size=[window, 0])
    ids = tokens(2, TIME)
    cache = StaticCache(model.config, max_cache_len=TIME)
    model(ids[:, :7], past_key_values=cache)
    addresses = [tensor.data_ptr() for tensor in contents(cache)]
    assert len(addresses) == (4 * len(cache.layers) + 2 if window else 2 * len(cache.layers)) + 1
    size = sum(layer.nbytes for layer in cache.layers)
    for _ in range(2):
        for i in range(int(cache.get_seq_length()), TIME):
            logits = model(ids[:, i : i + 1], past_key_values=cache).logits
        assert torch.allclose(logits, model(ids).logits[:, -1:], atol=1e-4)
        assert [tensor.data_ptr() for tensor in contents(cache)] == addresses
        assert sum(layer.nbytes for layer in cache.layers) == size
        cache.reset()
        assert all(not tensor.any() for tensor in contents(cache)) and cache.get_seq_length() == 0


@torch.no_grad()
def test_unsupported_operations_on_a_quantized_cache_are_rejected(model):
    cache = PLTCache(tiny_config(plt_num_loops=3), quantization={"backend": "quanto", "q_group_size": 16})
    model(tokens(2, TIME), past_key_values=cache)
    before = cache.nbytes
    for operation in (
        lambda: cache.crop(-1),
        lambda: cache.activate_past_recording(),
        lambda: cache.batch_repeat_interleave(2),
        lambda: cache.batch_select_indices(torch.tensor([0])),
    ):
        with pytest.raises(ValueError, match="quantized cache cannot"):
            operation()
    assert cache.nbytes == before
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.layers[0].carries is None


@torch.no_grad()
def test_a_tensor_that_a_layer_drops_is_freed():
    model = tiny_model()
    cache = PLTCache(model.config)
    for ids in (tokens(1, 6), tokens(1, 1), tokens(1, 1)):
        model(ids, cache=cache)
    layer = cache.layers[0]
    held = weakref.ref(layer.keys)
    layer.keys = layer.keys.clone()  # `offload` and `reorder_cache` also replace the tensor
    assert held() is None
    expected = layer.keys.clone()
    model(tokens(1, 1), cache=cache)
    assert torch.equal(layer.keys[..., :-1, :], expected)
