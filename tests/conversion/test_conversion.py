# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion: every known layout converts to the same model, and damaged checkpoints are rejected."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import SMALL
from safetensors.torch import load_file, save_file
from tiny import ROPES, TOLERANCE, distance, llama_of, oracle, tiny_model, tokens
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM
from vendor_checkpoints import contents, write_shards, write_vendor

from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify


IDS = tokens(40)


@torch.no_grad()
def logits(model, **kwargs):
    return model.eval()(IDS[None], **kwargs).logits[0]


def loaded(folder, **kwargs):
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()


def refused(source, target, match, **kwargs):
    """Asserts that conversion fails for that reason, leaves the source unchanged, and leaves nothing behind."""
    before = contents(source)
    with pytest.raises(ValueError, match=match):
        convert(str(source), target, **kwargs)
    assert contents(source) == before
    assert not target.exists() and not list(target.parent.glob(f".{target.name}*"))


# -- the vendor's layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_states", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("gate", ["plt_gate", "loop_gate_proj", "gate_projections"])
def test_every_layout_is_the_same_model(gate, shards, hidden_states, tmp_path):
    model = tiny_model(plt_gate_use_hidden_states=hidden_states)
    source = write_vendor(tmp_path / "source", model, gate, shards)
    before = contents(source)
    manifest = convert(str(source), tmp_path / "target")
    assert contents(source) == before
    report = verify(tmp_path / "target")
    assert not report["problems"]
    assert (report["tensors"], report["parameters"]) == (len(model.state_dict()), model.num_parameters())
    assert manifest == json.loads((tmp_path / "target" / "manifest.json").read_text())
    result = loaded(tmp_path / "target")
    for num_loops in (1, 2, 3):
        assert distance(logits(result, num_loops=num_loops), oracle(model, IDS, num_loops)) < TOLERANCE
    assert {name: tuple(entry["shape"]) for name, entry in manifest["tensors"].items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }


def test_loads_as_remote_code_without_the_package(tmp_path):
    model = tiny_model()
    convert(str(write_vendor(tmp_path / "source", model)), tmp_path / "target")
    code = """if True:
        import sys, torch
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
        assert "iquest_plt" not in sys.modules
        with torch.no_grad():
            torch.save(model(torch.tensor([eval(sys.argv[2])])).logits[0], sys.argv[3])
    """
    arguments = [str(tmp_path / "target"), str(IDS.tolist()), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_missing_plt_keys_get_the_defaults_of_the_vendors_class(tmp_path):
    model = tiny_model(
        plt_window_size=[64, 0], plt_emb_scale=None, plt_hidden_scale=None, plt_gate_use_hidden_states=False
    )
    omit = [name for name in model.config.to_dict() if name.startswith("plt_")]
    convert(str(write_vendor(tmp_path / "source", model, omit=omit)), tmp_path / "target")
    written = json.loads((tmp_path / "target" / "config.json").read_text())
    assert {name: written[name] for name in omit} == {name: getattr(model.config, name) for name in omit}
    assert distance(logits(loaded(tmp_path / "target")), oracle(model, IDS)) < TOLERANCE


def test_unchanged_files_are_copied_byte_for_byte(tmp_path):
    source = write_vendor(tmp_path / "source", tiny_model(), shards=3)
    convert(str(source), tmp_path / "target")
    convert(str(source), tmp_path / "linked", hard_link=True)
    for shard in source.glob("*.safetensors"):
        assert (tmp_path / "target" / shard.name).read_bytes() == shard.read_bytes()
        assert not (tmp_path / "target" / shard.name).samefile(shard)
        assert (tmp_path / "linked" / shard.name).samefile(shard)
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("target", "linked")]
    for name in (path.name for path in source.glob("*.safetensors")):
        assert manifests[0]["files"][name] == manifests[1]["files"][name]


def test_a_folder_of_this_package_also_converts(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    convert(str(tmp_path / "source"), tmp_path / "target")
    assert torch.equal(logits(loaded(tmp_path / "target")), logits(model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtype_and_shard_size_rewrite(dtype, tmp_path):
    model = tiny_model()
    source = write_vendor(tmp_path / "source", model, "loop_gate_proj", shards=2)
    convert(str(source), tmp_path / "target", dtype=dtype, max_shard_size=9_000)
    files = [load_file(file) for file in (tmp_path / "target").glob("model-*.safetensors")]
    assert len(files) > 4
    assert all(sum(t.nbytes for t in file.values()) <= 9_000 or len(file) == 1 for file in files)
    assert not verify(tmp_path / "target")["problems"]
    result = loaded(tmp_path / "target")
    assert result.dtype == getattr(torch, dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(result.state_dict()[name], tensor.to(result.dtype)), name


def test_numbers_that_do_not_fit_a_dtype_are_rejected(tmp_path):
    model = tiny_model()
    model.lm_head.weight.data[3, 3] = 1e6
    source = write_vendor(tmp_path / "source", model)
    refused(source, tmp_path / "target", "too large for torch.float16", dtype="float16")


def test_tied_embeddings_and_stored_rotary_frequencies(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    source = write_vendor(tmp_path / "source", model)
    tensors = load_file(source / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    write_shards(source, tensors, 1)
    convert(str(source), tmp_path / "target")
    assert not verify(tmp_path / "target")["problems"]
    assert torch.equal(logits(loaded(tmp_path / "target")), logits(model))


def test_generation_stops_at_all_released_stop_tokens(tmp_path):
    """The released config.json names only one of the stop tokens."""
    model = tiny_model(vocab_size=76800, hidden_size=8, num_hidden_layers=1, eos_token_id=2, bos_token_id=1)
    convert(str(write_vendor(tmp_path / "source", model)), tmp_path / "target")
    generation = GenerationConfig.from_pretrained(tmp_path / "target")
    assert generation.eos_token_id == [2, 75864, 75869]
    assert (generation.temperature, generation.top_p, generation.top_k) == (0.6, 0.95, 20)


# -- dense models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "iquestcoder", "mistral"])
@pytest.mark.parametrize("overrides", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_one_loop_equals_the_dense_model(model_type, overrides, tmp_path):
    if model_type != "llama" and overrides.get("attention_bias"):
        pytest.skip("Mistral has no biases")
    model = llama_of(tiny_model(**overrides))
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    path = tmp_path / "source" / "config.json"
    fields = json.loads(path.read_text()) | {"model_type": model_type, "sliding_window": None}
    path.write_text(json.dumps(fields))
    plt = {"plt_num_loops": 3, "plt_window_size": [8, 0], "plt_emb_scale": 0.5, "plt_hidden_scale": 0.1}
    plt_fields = plt | {"plt_gate_use_hidden_states": True}
    convert(str(tmp_path / "source"), tmp_path / "target", plt=plt_fields, init="zero")
    assert not verify(tmp_path / "target")["problems"]
    result = loaded(tmp_path / "target", attn_implementation="eager")
    model.set_attn_implementation("eager")
    assert torch.equal(logits(result, num_loops=1), logits(model))
    assert {name: getattr(result.config, name) for name in plt} == plt
    gates = {name: tensor for name, tensor in result.state_dict().items() if "plt_gate" in name}
    assert len(gates) == 9
    assert all(bool((tensor == float("gate_norm" in name)).all()) for name, tensor in gates.items())
    with torch.no_grad():
        opened = result(IDS[None], output_gates=True).gates
    assert all(bool((gate == 0.5).all()) for gate in opened)
    assert distance(logits(result), oracle(result, IDS)) < TOLERANCE


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_embeddings_of_every_type_are_kept(rope, tmp_path):
    """Includes older configurations, with `original_max_position_embeddings` at the top level."""
    model = llama_of(tiny_model())
    model.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    fields = json.loads(path.read_text())
    del fields["rope_parameters"]
    fields |= {"rope_theta": 100.0, "rope_scaling": {"rope_type": rope, **ROPES[rope]}}
    if rope == "longrope":
        fields["original_max_position_embeddings"] = 64
    path.write_text(json.dumps(fields))
    convert(str(tmp_path / "source"), tmp_path / "plt")
    convert(str(tmp_path / "plt"), tmp_path / "dense", to="dense")
    source, plt, dense = (loaded(tmp_path / name, attn_implementation="eager") for name in ("source", "plt", "dense"))
    ids = tokens(1, 100)
    with torch.no_grad():
        expected = source(ids).logits
        assert torch.equal(plt(ids, num_loops=1).logits, expected)
        assert torch.equal(dense(ids).logits, expected)


def test_other_files_are_kept(tmp_path):
    """Keeps the licence, the source's chat template, and its generation settings."""
    source = write_vendor(tmp_path / "source", tiny_model(vocab_size=8192))
    shutil.copy(SMALL / "tokenizer.json", source)
    small = json.loads((SMALL / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    (source / "tokenizer_config.json").write_text(json.dumps(small | {"chat_template": template}))
    (source / "generation_config.json").write_text(
        json.dumps({"temperature": 0.3, "do_sample": True, "eos_token_id": 9})
    )
    (source / "LICENSE").write_text("Use it well.")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: well\n---\n# A model\n")
    convert(str(source), tmp_path / "target")
    assert (tmp_path / "target" / "LICENSE").read_text() == "Use it well."
    assert (tmp_path / "target" / "chat_template.jinja").read_text() == template
    generation = json.loads((tmp_path / "target" / "generation_config.json").read_text())
    assert (generation["temperature"], generation["do_sample"]) == (0.3, True)
    assert {9, 2} <= set(generation["eos_token_id"])  # plus </s>, <|im_end|>, <|endoftext|> of the vocabulary
    assert "license_name: well" in (tmp_path / "target" / "README.md").read_text()


def test_to_dense_runs_without_the_package(tmp_path):
    model = tiny_model(attention="eager")
    source = write_vendor(tmp_path / "source", model, shards=2)
    convert(str(source), tmp_path / "target", to="dense")
    assert not verify(tmp_path / "target")["problems"]
    assert not list((tmp_path / "target").glob("*.py"))
    result = loaded(tmp_path / "target", attn_implementation="eager")
    assert type(result) is LlamaForCausalLM
    assert torch.equal(logits(result), logits(model, num_loops=1))
    convert(str(tmp_path / "target"), tmp_path / "again")  # and back
    again = loaded(tmp_path / "again", attn_implementation="eager")
    assert torch.equal(logits(again, num_loops=1), logits(model, num_loops=1))


def test_a_dense_model_keeps_its_own_ids_and_chat_template(tmp_path):
    """Even if its vocabulary has the size or the tokens of the released one."""
    model = llama_of(tiny_model(vocab_size=76_800, hidden_size=8, num_hidden_layers=1))
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = 5, [6, 7]
    model.save_pretrained(tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SMALL / name, tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "target")
    generation = json.loads((tmp_path / "target" / "generation_config.json").read_text())
    assert generation["bos_token_id"] == 5 and {6, 7} <= set(generation["eos_token_id"])
    assert 75864 not in generation["eos_token_id"] and "temperature" not in generation
    assert not (tmp_path / "target" / "chat_template.jinja").exists()
    card = (tmp_path / "target" / "README.md").read_text()
    assert "untrained" in card


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("vocab.json", "{}", "save_pretrained"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a", "template": "b"}]}', "several chat templates"),
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("tokenizer.model", "no model", "tokenizer.model"),
    ],
)
def test_a_tokenizer_that_cannot_be_kept_is_rejected_before_the_weights_are_written(name, content, match, tmp_path):
    source = write_vendor(tmp_path / "source", tiny_model())
    (source / name).write_text(content)
    written = []
    refused(source, tmp_path / "target", match, progress=lambda done, total: written.append(done))
    assert sum(written) < 100_000


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"model_type": "qwen2"}, "biases"),
        ({"model_type": "iquestloopcoder"}, "without the shift"),
        ({"model_type": "gpt2"}, "cannot be converted"),
        ({"model_type": "mistral"}, "sliding window"),  # the default of its class
        ({"model_type": "iquestcoder", "clip_qkv": 3.0}, "clip"),
        ({"quantization_config": {"quant_method": "gptq"}}, "Quantised"),
    ],
)
def test_models_that_are_not_a_llama_are_rejected(fields, match, tmp_path):
    llama_of(tiny_model()).save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    refused(tmp_path / "source", tmp_path / "target", match)


def test_unknown_fields_are_rejected(tmp_path):
    llama_of(tiny_model()).save_pretrained(tmp_path / "source")
    refused(tmp_path / "source", tmp_path / "target", "Unknown fields: plt_loops", plt={"plt_loops": 2})
    refused(tmp_path / "source", tmp_path / "target", "plt_num_loops", plt={"plt_num_loops": 0})


def test_biases_that_the_configuration_does_not_mention_are_rejected(tmp_path):
    llama_of(tiny_model()).save_pretrained(tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(32)
    write_shards(tmp_path / "source", tensors, 1)
    refused(tmp_path / "source", tmp_path / "target", r"q_proj\.bias does not belong to this model")


# -- damage ------------------------------------------------------------------------------------------------------------


def edit_header(path: Path, change) -> None:
    """Rewrites the header of a safetensors file with `change(header)`. The tensors do not change."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    raw = json.dumps(change(header) or header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def overlap(header):
    first, second, *_ = [name for name in header if name != "__metadata__"]
    size = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    header[second]["data_offsets"] = [header[first]["data_offsets"][0], header[first]["data_offsets"][0] + size]


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def index_of(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def remap(folder: Path, file: str) -> None:
    weight_map = json.loads(index_of(folder).read_text())["weight_map"]
    edit_json(index_of(folder), weight_map=weight_map | {"model.norm.weight": file})


def replace_by_link(folder: Path) -> None:
    shard = first_shard(folder)
    outside = folder.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(first_shard(folder))
    change(tensors)
    save_file(tensors, first_shard(folder))


DAMAGE = {
    "truncated shard": (
        lambda folder: os.truncate(first_shard(folder), first_shard(folder).stat().st_size - 5),
        "damaged",
    ),
    "shard cut within its header": (lambda folder: os.truncate(first_shard(folder), 100), "damaged"),
    "empty shard": (lambda folder: os.truncate(first_shard(folder), 0), "damaged"),
    "bytes behind the tensors": (lambda folder: first_shard(folder).open("ab").write(b"more"), "damaged"),
    "flipped header bytes": (
        lambda folder: first_shard(folder).write_bytes(
            first_shard(folder).read_bytes().replace(b"data_offsets", b"data_0ffsets", 1)
        ),
        "damaged",
    ),
    "header of an absurd length": (
        lambda folder: first_shard(folder).write_bytes(struct.pack("<Q", 2**62) + b"{}"),
        "damaged",
    ),
    "overlapping offsets": (lambda folder: edit_header(first_shard(folder), overlap), "damaged"),
    "unknown dtype": (
        lambda folder: edit_header(
            first_shard(folder), lambda header: header["model.embed_tokens.weight"].update(dtype="Q7")
        ),
        "dtype",
    ),
    "wrong shape": (
        lambda folder: edit_header(
            first_shard(folder), lambda header: header["model.embed_tokens.weight"].update(shape=[32, 97])
        ),
        r"shape \[32, 97\], but config.json needs \[97, 32\]",
    ),
    "tensor of another name": (
        lambda folder: change_tensors(folder, lambda t: t.update(extra=t.pop("model.embed_tokens.weight"))),
        "is in model-00001-of-00003.safetensors, but model.safetensors.index.json says: nowhere",
    ),
    "tensor in another dtype": (
        lambda folder: change_tensors(
            folder, lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].half()})
        ),
        "several dtypes",
    ),
    "integers for weights": (
        lambda folder: change_tensors(
            folder, lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].to(torch.int8)})
        ),
        "quantised",
    ),
    "missing shard": (lambda folder: first_shard(folder).unlink(), "missing"),
    "index names an absent file": (lambda folder: remap(folder, "absent.safetensors"), "absent.safetensors is missing"),
    "index leads out of the folder": (lambda folder: remap(folder, "../outside.safetensors"), "not the name of a file"),
    "index names an absolute path": (lambda folder: remap(folder, "/etc/hostname"), "not the name of a file"),
    "index names the folder": (lambda folder: remap(folder, ".."), "not the name of a file"),
    "index names a number": (lambda folder: remap(folder, 3), "to a file name"),
    "index gives the wrong file": (lambda folder: remap(folder, first_shard(folder).name), "says"),
    "index without a map": (lambda folder: edit_json(index_of(folder), weight_map=[]), "weight_map"),
    "index that is no JSON": (lambda folder: index_of(folder).write_text("{"), "not valid JSON"),
    "shard that is a link out of the folder": (replace_by_link, "leads out"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    "config that is no JSON": (lambda folder: (folder / "config.json").write_text("[1]"), "JSON object"),
    "config that names a key twice": (
        lambda folder: (folder / "config.json").write_text('{"vocab_size": 1, "vocab_size": 2}'),
        "twice",
    ),
    "config with other layers": (
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=10**9),
        "num_hidden_layers",
    ),
    "config of another size": (
        lambda folder: edit_json(folder / "config.json", vocab_size=10**15),
        "config.json needs",
    ),
    "config of a wrong type": (lambda folder: edit_json(folder / "config.json", hidden_size="large"), "config.json"),
    "config of another gate": (
        lambda folder: edit_json(folder / "config.json", plt_gate_use_hidden_states=False),
        "plt_gate",
    ),
    "config of another dtype": (lambda folder: edit_json(folder / "config.json", dtype="float16"), "the weights are"),
    "one file and an index": (
        lambda folder: save_file({"model.norm.weight": torch.ones(32)}, folder / "model.safetensors"),
        "Remove the one",
    ),
    "hundreds of thousands of keys": (
        lambda folder: (folder / "config.json").write_text(
            "{" + ", ".join(f'"{i}": 0' for i in range(300_000)) + ', "7": 1}'
        ),
        "twice",
    ),
    "shape of a million dimensions": (
        lambda folder: edit_header(
            first_shard(folder), lambda header: header["model.embed_tokens.weight"].update(shape=[9] * 10**6)
        ),
        "damaged",
    ),
    "config with millions of labels": (
        lambda folder: edit_json(folder / "config.json", num_labels=10**9, vocab_size=98),
        "config.json needs",
    ),
    "config with what is no number": (
        lambda folder: edit_json(folder / "config.json", rms_norm_eps=float("nan")),
        "infinite or NaN",
    ),
    "rotary factor of zero": (
        lambda folder: edit_json(folder / "config.json", rope_scaling={"type": "linear", "factor": 0}),
        "config.json",
    ),
    "tokenizer that is a pipe": (lambda folder: os.mkfifo(folder / "tokenizer.model"), "missing"),
    "tokenizer that is a device": (
        lambda folder: (folder / "special_tokens_map.json").symlink_to("/dev/zero"),
        "missing",
    ),
    "only pickles": (
        lambda folder: [
            [shard.unlink() for shard in folder.glob("*.safetensors*")],
            (folder / "pytorch_model.bin").write_bytes(b"pickle"),
        ],
        "save them as safetensors",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints_are_rejected(damage, tmp_path):
    source = write_vendor(tmp_path / "source", tiny_model(), shards=3)
    spoil, match = DAMAGE[damage]
    spoil(source)
    refused(source, tmp_path / "target", match)


def test_a_tensor_in_two_files_or_under_two_names_is_rejected(tmp_path):
    source = write_vendor(tmp_path / "source", tiny_model())
    shutil.copy(source / "model.safetensors", source / "more.safetensors")
    (source / "model.safetensors").rename(source / "weights.safetensors")
    refused(source, tmp_path / "target", r"is in both more.safetensors and weights.safetensors")
    (source / "more.safetensors").unlink()
    name = "model.layers.0.self_attn.plt_gate.bias"
    change_tensors(source, lambda t: t.update({name.replace("plt_gate", "loop_gate_proj"): t[name] + 1}))
    refused(source, tmp_path / "target", "two names")


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    repository = tmp_path / "models--someone--model"
    source = write_vendor(repository / "snapshots" / "0123abc", tiny_model(), shards=2)
    (repository / "blobs").mkdir()
    for path in list(source.iterdir()):
        path.rename(repository / "blobs" / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    convert(str(source), tmp_path / "target")
    assert not verify(tmp_path / "target")["problems"]
    assert not any(path.is_symlink() for path in (tmp_path / "target").rglob("*"))


# -- the target --------------------------------------------------------------------------------------------------------


def test_a_taken_target_is_rejected_and_left_alone(tmp_path):
    source = write_vendor(tmp_path / "source", tiny_model())
    (tmp_path / "target").mkdir()
    convert(str(source), tmp_path / "target")  # an empty folder may be used
    before = contents(tmp_path / "target")
    with pytest.raises(ValueError, match="already exists"):
        convert(str(source), tmp_path / "target")
    assert contents(tmp_path / "target") == before
    with pytest.raises(ValueError, match="is inside the source"):
        convert(str(source), source / "target")
    with pytest.raises(ValueError, match="does not exist"):
        convert(str(source), tmp_path / "no" / "target")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source = write_vendor(tmp_path / "source", tiny_model())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(source, tmp_path / "target", "are needed")
    monkeypatch.undo()
    # A real error from the kernel in the middle of a file, which may have at most 20,000 bytes.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="was not written: File too large"):
            convert(str(source), tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "target").exists() and not list(tmp_path.glob(".target*"))


def test_nothing_behind_a_link_is_removed(tmp_path):
    """A conversion may empty its hidden folder, but not the target of a link with that name."""
    source = write_vendor(tmp_path / "source", tiny_model())
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    (tmp_path / ".target.iquest-plt-partial").symlink_to(victim)
    with pytest.raises(ValueError, match="Cannot write to"):
        convert(str(source), tmp_path / "target")
    assert (victim / "file").read_text() == "kept" and not (tmp_path / "target").exists()
    unfinished = source.rename(tmp_path / ".other.iquest-plt-partial")
    before = contents(unfinished)
    with pytest.raises(ValueError, match="unfinished conversion"):
        convert(str(unfinished), tmp_path / "other")
    assert contents(unfinished) == before


def test_a_source_that_changes_during_conversion_is_rejected(tmp_path):
    source = write_vendor(tmp_path / "source", tiny_model(), shards=2)
    second = sorted(source.glob("*.safetensors"))[1]

    def cut(done, total):
        if second.stat().st_size > 5000:
            os.truncate(second, 5000)

    with pytest.raises(ValueError, match="damaged"):
        convert(str(source), tmp_path / "target", progress=cut)
    assert not (tmp_path / "target").exists()


def test_linked_files_need_no_space(tmp_path, monkeypatch):
    source = write_vendor(tmp_path / "source", tiny_model(vocab_size=20_000, hidden_size=512))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=60_000_000))
    with pytest.raises(ValueError, match="are needed"):
        convert(str(source), tmp_path / "target")
    convert(str(source), tmp_path / "target", hard_link=True)


def test_two_conversions_to_one_target(tmp_path):
    source = write_vendor(tmp_path / "source", tiny_model())
    errors = []

    def second(done, total):
        if not errors:
            with pytest.raises(ValueError, match="Another process is writing") as error:
                convert(str(source), tmp_path / "target")
            errors.append(error)

    convert(str(source), tmp_path / "target", progress=second)
    assert errors and not verify(tmp_path / "target")["problems"]


KILL = """
import os, signal, sys, time
from pathlib import Path
from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify

source, target, times = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
convert(source, target.with_name("warm-up"), dtype="bfloat16")
start = time.perf_counter()
convert(source, target.with_name("timed"), dtype="bfloat16")
duration = time.perf_counter() - start
finished = 0
for i in range(times):
    child = os.fork()
    if child == 0:
        convert(source, target, dtype="bfloat16")
        os._exit(0)
    if i + 1 < times:  # the first is killed at once, and the last one ends by itself
        time.sleep(1.2 * duration * i / times)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if target.exists():
        report = verify(target)
        assert not report["problems"], report
        finished += 1
        target.rename(target.with_name(f"finished-{i}"))
convert(source, target, dtype="bfloat16")  # the leftovers of the last run do not matter
assert not verify(target)["problems"]
print(finished)
"""


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_conversion_leaves_all_or_nothing(times, tmp_path):
    model = tiny_model(vocab_size=20_000, hidden_size=128)
    source = write_vendor(tmp_path / "source", model, "loop_gate_proj", shards=3)
    command = [sys.executable, "-c", KILL, source, tmp_path / "target", str(times)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # one thread, so that the process can be forked
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
    assert 0 < int(output) < times  # some were killed before the end, some after
    assert not list(tmp_path.glob(".*"))


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """Converts 500 MB with a largest tensor of 31 MB."""
    sizes = {"vocab_size": 30_000, "hidden_size": 256, "intermediate_size": 30_000, "num_hidden_layers": 4}
    write_vendor(tmp_path / "source", tiny_model(**sizes, initializer_range=0.02), shards=2)
    assert sum(path.stat().st_size for path in (tmp_path / "source").iterdir()) > 400e6
    code = """if True:
        import resource, sys
        from iquest_plt.conversion.convert import convert
        from iquest_plt.conversion.verify import verify
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        convert(sys.argv[1], sys.argv[2])
        convert(sys.argv[1], sys.argv[2] + "-bf16", dtype="bfloat16", max_shard_size=10**8)
        assert not verify(sys.argv[2] + "-bf16")["problems"]
        print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
    """
    command = [sys.executable, "-c", code, tmp_path / "source", tmp_path / "target"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert int(output) < 150e6
