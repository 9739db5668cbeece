# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`with_num_loops`: two models that share one set of weights and differ only in the number of loops."""

import copy
import json
import pickle

import huggingface_hub
import pytest
import torch
import yaml
from tiny import tiny_model, tokens
from transformers import AutoConfig, AutoModelForCausalLM

from iquest_plt import IQuestPLTCoderConfig, IQuestPLTCoderForCausalLM


IDS = tokens(2, 11)
GREEDY = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 9}


def pair(**kwargs):
    model = tiny_model(**kwargs)
    return model, model.with_num_loops(3)


def same(twin, model, **kwargs):
    """Asserts that the twin, and its decoder without the head, equal the model with three loops."""
    with torch.no_grad():
        return torch.equal(twin(IDS, **kwargs).logits, model(IDS, num_loops=3, **kwargs).logits) and torch.equal(
            twin.get_decoder()(IDS, **kwargs).last_hidden_state,
            model.get_decoder()(IDS, num_loops=3, **kwargs).last_hidden_state,
        )


def test_the_decoder_has_the_loops_too():
    model, twin = pair()
    assert same(twin, model) and twin.model.config is twin.config and twin.base_model is twin.model
    assert (model.model.config.plt_num_loops, twin.model.config.plt_num_loops) == (2, 3)
    third = twin.with_num_loops(1)
    assert torch.equal(third.model(IDS).last_hidden_state, model.model(IDS, num_loops=1).last_hidden_state)
    assert [id(p) for p in third.parameters()] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("by", ["model", "twin", "the model's decoder", "the twin's decoder"])
def test_one_attention_kernel(by):
    """A mask made for one kernel would be wrong for another."""
    model, twin = pair()
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    with torch.no_grad():
        expected = twin(IDS, attention_mask=mask).logits[mask.bool()]
    changed = twin if "twin" in by else model
    (changed.model if "decoder" in by else changed).set_attn_implementation("eager")
    for each in (model, twin, model.model, twin.model, model.model.layers[0].self_attn):
        assert each.config._attn_implementation == "eager"
    assert same(twin, model, attention_mask=mask)
    with torch.no_grad():
        torch.testing.assert_close(twin(IDS, attention_mask=mask).logits[mask.bool()], expected)
    arguments = {"attention_mask": mask, "cache_implementation": "static", "num_loops": 3, **GREEDY}
    assert torch.equal(twin.generate(IDS, **arguments), model.generate(IDS, **arguments))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("by_twin", [False, True])
def test_resized_embeddings_apply_to_both_models(by_twin, tied, tmp_path):
    model, twin = pair(tie_word_embeddings=tied)
    (twin if by_twin else model).resize_token_embeddings(120, mean_resizing=False)
    assert twin.lm_head is model.lm_head and twin.model.embed_tokens is model.model.embed_tokens
    assert same(twin, model)
    for number, each in enumerate((model, twin)):
        assert each.config.vocab_size == each.vocab_size == 120
        assert each(IDS, labels=IDS).logits.shape[-1] == 120
        each.save_pretrained(tmp_path / str(number))
        loaded = IQuestPLTCoderForCausalLM.from_pretrained(tmp_path / str(number))
        assert torch.equal(loaded(IDS).logits, each(IDS).logits)


@pytest.mark.parametrize("by_twin", [False, True])
def test_changes_to_one_apply_to_both(by_twin):
    model, twin = pair(attention_dropout=0.5)
    changed = twin if by_twin else model
    changed.gradient_checkpointing_enable()
    changed.train()
    assert model.is_gradient_checkpointing and twin.is_gradient_checkpointing
    assert twin.model(IDS, use_cache=True)[1:] == ()  # no cache: the layers would not fill it
    assert not torch.equal(twin.model(IDS)[0], twin.model(IDS)[0])  # dropout
    changed.eval()
    changed.gradient_checkpointing_disable()
    assert torch.equal(twin.model(IDS)[0], twin.model(IDS)[0])
    calls = []
    hook = model.model.register_forward_hook(lambda module, args, output: calls.append(module.config.plt_num_loops))
    twin(IDS), model(IDS)
    hook.remove()
    twin(IDS)
    assert calls == [3, 2]
    changed.double()
    assert twin(IDS).logits.dtype == model(IDS).logits.dtype == torch.float64 and same(twin, model)


def test_adapters_apply_to_both_models():
    peft = pytest.importorskip("peft", reason="adapters need it: pip install '.[training]' in a checkout of iquest-plt")
    model, twin = pair()
    plain = model(IDS).logits
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(twin, config)
    assert same(twin, model) and not torch.equal(model(IDS).logits, plain)
    assert torch.equal(adapted(IDS).logits, twin(IDS).logits)
    with adapted.disable_adapter():
        assert torch.equal(model(IDS).logits, plain)


def test_copies():
    """Copies of one model, of both together, and via pickle have their own weights and keep the number of loops."""
    model, twin = pair()
    with torch.no_grad():
        expected = twin(IDS).logits
    copies = [copy.deepcopy(twin), pickle.loads(pickle.dumps(twin)), copy.deepcopy((model, twin))[1]]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for each in copies:
        assert torch.equal(each(IDS).logits, expected)
        assert torch.equal(each.lm_head(each.model(IDS).last_hidden_state), expected)
        each.set_attn_implementation("eager")
        assert each.model.layers[0].self_attn.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_recording_and_early_exit():
    model, twin = pair()
    model(IDS, output_hidden_states=True)
    assert len(twin(IDS, output_hidden_states=True).hidden_states) == 4  # not twice
    fresh, other = pair()
    other(IDS, output_hidden_states=True)
    assert len(fresh(IDS, output_hidden_states=True).hidden_states) == 4
    exited = twin.generate(IDS[:1], assistant_early_exit=1, **GREEDY)
    assert torch.equal(exited, twin.generate(IDS[:1], **GREEDY))
    assert model.config.num_hidden_layers == twin.config.num_hidden_layers == 3


@torch.no_grad()
def test_patched_methods_stay_with_their_model():
    """Patches `forward` on the instance, as accelerate and TRL do."""
    model = tiny_model()
    original = model.forward
    model.forward = lambda *args, **kwargs: original(*args, num_loops=1, **kwargs)
    twin = model.with_num_loops(3)
    assert torch.equal(twin(IDS).logits, tiny_model(plt_num_loops=3)(IDS).logits)


@torch.no_grad()
def test_hooks_that_move_tensors_work_for_both():
    hooks = pytest.importorskip("accelerate.hooks", reason="pip install '.[serving]' in a checkout of iquest-plt")
    moved = []

    class Recording(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            moved.append(module.config.plt_num_loops)
            return args, kwargs

    model = tiny_model()
    hooks.add_hook_to_module(model, Recording())
    hooks.add_hook_to_module(model.model, Recording())
    twin = model.with_num_loops(3)
    assert torch.equal(twin(IDS).logits, tiny_model(plt_num_loops=3)(IDS).logits)
    assert moved == [3, 3]


def test_data_parallelism_in_one_process_is_rejected():
    with pytest.raises(ValueError, match="accelerate launch"):
        tiny_model().with_num_loops(3)._replicate_for_data_parallel()


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("way", ["model", "model class", "config", "config class"])
def test_a_reload_by_path_keeps_the_loops(way, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, plt_num_loops=3)
    path = pickle.loads(pickle.dumps(copy.deepcopy(model.config)))._name_or_path
    load = {
        "model": lambda *args, **kwargs: AutoModelForCausalLM.from_pretrained(*args, **kwargs).config,
        "model class": lambda *args, **kwargs: IQuestPLTCoderForCausalLM.from_pretrained(*args, **kwargs).config,
        "config": AutoConfig.from_pretrained,
        "config class": IQuestPLTCoderConfig.from_pretrained,
    }[way]
    assert load(path).plt_num_loops == 3
    assert load(path, plt_num_loops=1).plt_num_loops == 1  # an explicit argument takes precedence
    assert load(str(path)).plt_num_loops == load(folder).plt_num_loops == 2
    model.config.plt_num_loops = 4
    assert load(model.config._name_or_path).plt_num_loops == 4
    assert load(model.with_num_loops(5).config._name_or_path).plt_num_loops == 5


def test_a_path_is_written_as_text(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder, plt_num_loops=3)
    path = model.config._name_or_path
    assert path == str(folder) and model.config.to_dict()["_name_or_path"] == path
    assert type(model.config.to_dict()["_name_or_path"]) is str
    assert yaml.safe_load(yaml.dump({"base": path})) == yaml.safe_load(yaml.safe_dump({"base": path})) == {"base": path}
    card = huggingface_hub.ModelCardData(base_model=path)
    assert yaml.safe_load(card.to_yaml())["base_model"] == path
    model.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["plt_num_loops"] == 3 and "_name_or_path" not in written and str(folder) not in str(written)
    assert IQuestPLTCoderConfig().name_or_path == ""
