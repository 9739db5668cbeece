# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""How the library and related tools use a model: devices, meta tensors, export, compilation, pipelines."""

import copy

import pytest
import torch
from tiny import VOCAB, distance, needs_dynamo, oracle, pytorch_before, tiny_config, tiny_model, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline

from iquest_plt import IQuestPLTCoderForCausalLM, PLTCache


pytestmark = pytest.mark.core


BACKEND = "aot_eager"  # captures the same graph as the default, but skips the C++ compiler
GREEDY = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 20}


@pytest.mark.parametrize(
    "placement",
    [
        {"device_map": "auto", "max_memory": {"cpu": 60_000}},
        {"device_map": {"model": "disk", "lm_head": "cpu"}},
        {
            "device_map": {
                "model.embed_tokens": "cpu",
                "model.norm": "disk",
                "model.rotary_emb": "cpu",
                "lm_head": "cpu",
            }
            | {f"model.layers.{i}": "disk" if i else "cpu" for i in range(3)}
        },
    ],
    ids=["auto", "model-on-disk", "layers-on-disk"],
)
@torch.no_grad()
def test_weights_that_stay_on_disk(placement, tmp_path):
    model = tiny_model(plt_num_loops=3)
    model.save_pretrained(tmp_path / "model")
    placement = {**placement, "offload_folder": tmp_path / "offload"}
    offloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **placement)
    assert "disk" in offloaded.hf_device_map.values()
    ids = tokens(1, 9)
    assert torch.equal(offloaded(ids).logits, model(ids).logits)
    expected = model.generate(ids, **GREEDY)
    drafter = offloaded.with_num_loops(1)
    assert torch.equal(drafter(ids).logits, model(ids, num_loops=1).logits)
    ways = [{}, {"cache_implementation": "static"}]
    if drafter.device.type != "meta":  # otherwise the library moves the tokens to "meta" too, for any model
        ways.append({"assistant_model": drafter})
    for arguments in ways:
        assert torch.equal(offloaded.generate(ids, **GREEDY, **arguments), expected)


@torch.no_grad()
def test_meta_device():
    with torch.device("meta"):
        model = IQuestPLTCoderForCausalLM(tiny_config(plt_num_loops=3))
        ids = torch.zeros(2, 5, dtype=torch.long)
        output = model(ids, use_cache=True)
        step = model(ids[:, :1], past_key_values=output.past_key_values)
    assert output.logits.shape == (2, 5, VOCAB) and step.logits.shape == (2, 1, VOCAB)
    assert output.logits.device.type == "meta"
    assert sum(layer.nbytes for layer in step.past_key_values.layers) == 2 * model.kv_bytes_per_sequence(6)


@torch.no_grad()
def test_export():
    model = tiny_model(plt_num_loops=3)
    ids = tokens(2, 9)
    exported = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
    other = tokens(2, 9, seed=4)
    assert torch.allclose(exported.module()(input_ids=other, use_cache=False).logits, model(other).logits, atol=1e-5)


@torch.no_grad()
def test_export_with_a_static_cache_is_rejected():
    """Exporters keep the shared keys and values as buffers, but would lose the windows and carries."""
    from transformers.integrations.executorch import convert_and_export_with_cache

    model = tiny_model()
    model.generation_config.cache_implementation = "static"
    model.generation_config.cache_config = {"batch_size": 1, "max_cache_len": 16}
    model.generation_config.use_cache = True
    for strict in (False, True):  # in strict mode, torch raises its own error, which quotes ours from 2.9 on
        reason = None if strict and pytorch_before("2.9") else "exporter cannot handle a PLT cache"
        with pytest.raises(RuntimeError if strict else ValueError, match=reason):
            convert_and_export_with_cache(copy.deepcopy(model), strict=strict)


@needs_dynamo
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_compiled_whole_passes(masked):
    torch._dynamo.reset()
    model = tiny_model(plt_num_loops=3)
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5], mask[1, 3:9] = 0, 0
    compiled = torch.compile(model, fullgraph=True, backend=BACKEND)
    logits = compiled(ids, attention_mask=mask if masked else None, use_cache=False).logits
    for index, row in enumerate(ids):
        real = mask[index].bool() if masked else slice(None)
        assert distance(logits[index, real], oracle(model, row[real])) < 1e-4


@needs_dynamo
@torch.no_grad()
def test_compiled_training_step():
    torch._dynamo.reset()
    model = tiny_model(plt_num_loops=2)
    ids = tokens(2, 9)
    with torch.enable_grad():
        losses = []
        for step in (model, torch.compile(model, fullgraph=True, backend=BACKEND)):
            model.zero_grad()
            step(ids, labels=ids, use_cache=False).loss.backward()
            losses.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, grad in losses[0].items():
        assert torch.allclose(grad, losses[1][name], atol=1e-5), name


@torch.no_grad()
def test_embeddings_in_place_of_tokens():
    model = tiny_model(plt_num_loops=3)
    ids = tokens(2, 9)
    embeds = model.model.embed_tokens(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), model.generate(ids, **GREEDY)[:, 9:])


def test_pipeline():
    model = tiny_model(plt_num_loops=3, initializer_range=0.3)
    words = Tokenizer(models.WordLevel({"[PAD]": 0} | {f"w{i}": i for i in range(1, VOCAB)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", padding_side="left")
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    texts = ["w1 w2 w3 w4 w5 w6 w7", "w9", "w8 w4 w5"]
    arguments = {"do_sample": False, "max_new_tokens": 12, "num_loops": 2}
    new_text = {"return_full_text": False}
    singles = [generator(text, **arguments, **new_text)[0]["generated_text"] for text in texts]
    together = [output[0]["generated_text"] for output in generator(texts, batch_size=3, **arguments, **new_text)]
    assert together == singles
    expected = model.generate(**tokenizer(texts[0], return_tensors="pt"), pad_token_id=0, **arguments)
    assert singles[0] == tokenizer.decode(expected[0, 7:])


def test_pipeline_parallel_is_rejected():
    class Distributed:
        pp_size = 2

    for distributed_config in ({"pp_size": 2}, Distributed()):
        with pytest.raises(ValueError, match="PLT models do not support pipeline parallelism"):
            IQuestPLTCoderForCausalLM.prepare_distribute_model(distributed_config)
    assert not tiny_model().supports_pp_plan


@torch.no_grad()
def test_offloaded_cache_layers():
    """Moving the shared part away and back changes nothing. (A real offloaded cache needs an accelerator.)"""
    model = tiny_model(plt_num_loops=3)
    ids = tokens(1, 12)
    cache = PLTCache(model.config)
    model(ids[:, :9], past_key_values=cache)
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    logits = model(ids[:, 9:], past_key_values=cache).logits
    assert torch.allclose(logits, model(ids).logits[:, 9:], atol=1e-5)


@pytest.mark.parametrize("padding", [0, 3])
@torch.no_grad()
def test_a_step_with_a_mask_waits_for_the_device_once(padding, monkeypatch):
    """Every number that Python reads from a tensor is a wait. The only one tells whether there is padding."""
    model = tiny_model(plt_num_loops=3)
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :padding] = 0
    cache = PLTCache(model.config)
    model(ids, attention_mask=mask, past_key_values=cache)
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    counted = []
    for name in ("__bool__", "__int__", "__float__", "item", "tolist"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, read=read: counted.append(read) or read(tensor))
    position_ids = (mask.cumsum(-1) - 1)[:, -1:]
    model(ids[:, :1], attention_mask=mask, position_ids=position_ids, past_key_values=cache)
    monkeypatch.undo()
    assert len(counted) == 1
