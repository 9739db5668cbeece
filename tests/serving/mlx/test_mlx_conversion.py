# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`iquest-plt convert --to mlx`: folders that mlx-lm loads, quantized or not."""

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import run
from mlx_models import TOLERANCE, array, expected_logits, largest_difference, launcher, mx, nn, utils
from paths import ROOT, SMALL
from safetensors.torch import load_file, save_file
from tiny import ROPES, llama_of, tiny_model, tokens

from iquest_plt import IQuestPLTCoderConfig, IQuestPLTCoderForCausalLM
from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.verify import verify


tree_flatten = pytest.importorskip("mlx.utils").tree_flatten
MODEL_FILE = ROOT / "serving" / "mlx" / "plt_mlx.py"


def load(folder):
    """Loads a folder with its own model file, as plain mlx-lm does."""
    return utils.load(str(folder), trust_remote_code=True)


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def logits_of(model, ids) -> np.ndarray:
    return np.array(model(array(ids)).astype(mx.float32))


def test_the_model_file_needs_only_mlx_and_mlx_lm():
    tree = ast.parse(MODEL_FILE.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    sources = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not any(node.level for node in sources)
    names |= {node.module for node in sources}
    assert {name.split(".")[0] for name in names} <= {"mlx", "mlx_lm"} | sys.stdlib_module_names
    assert "__future__" not in names  # mlx-lm does not register the module, which such dataclasses need


def test_the_released_configuration():
    """The names and sizes of the released tensors, from its config.json as it is. MLX makes no weights here."""
    plt_mlx = pytest.importorskip("iquest_plt.serving.mlx.plt_mlx")
    fields = json.loads((ROOT / "config.json").read_text())
    args = plt_mlx.ModelArgs.from_dict(fields)
    assert args.rope["base"] == 500000 and args.rope["scaling_config"] == {"rope_type": "default"}
    found = {name: value.shape for name, value in tree_flatten(plt_mlx.Model(args).parameters())}
    with torch.device("meta"):
        model = IQuestPLTCoderForCausalLM(IQuestPLTCoderConfig(**fields))
    assert found == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(found) == 171
    # A checkpoint may rely on the defaults of its configuration class.
    defaults, expected = plt_mlx.ModelArgs(), IQuestPLTCoderConfig()
    names = vars(defaults).keys() & vars(expected).keys() - {"rope_parameters", "rope_scaling", "rope_theta", "rope"}
    assert {name: getattr(defaults, name) for name in names} == {name: getattr(expected, name) for name in names}
    assert len(names) > 20 and defaults.rope_theta == expected.rope_parameters["rope_theta"]


def test_the_folder(mini_folder, mini_plt):
    names = {path.name for path in mini_folder.iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "plt_mlx.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((mini_folder / "config.json").read_text())
    assert config["model_file"] == "plt_mlx.py" and "auto_map" not in config and "quantization" not in config
    assert json.loads((mini_folder / "generation_config.json").read_text())["eos_token_id"] == [2, 8186, 8191]
    assert "auto_map" not in json.loads((mini_folder / "tokenizer_config.json").read_text())
    assert (mini_folder / "plt_mlx.py").read_bytes() == MODEL_FILE.read_bytes()
    assert (mini_folder / "model.safetensors").read_bytes() == (mini_plt / "model.safetensors").read_bytes()
    card = (mini_folder / "README.md").read_text()
    assert "library_name: mlx" in card and "mlx_lm.generate --model PATH --trust-remote-code" in card
    assert "AutoModelForCausalLM" not in card and "quantized" not in card
    assert verify(mini_folder)["problems"] == []


def test_plain_mlx_lm_loads_the_folder(mini_folder, mini_plt):
    """Without this package and without torch, but with mlx-lm's flag for custom code."""
    code = """if True:
        import sys, json
        import mlx_lm, mlx.core as mx
        if len(sys.argv) > 2:
            mlx_lm.load(sys.argv[1])
        model, tokenizer = mlx_lm.load(sys.argv[1], trust_remote_code=True)
        assert "iquest_plt" not in sys.modules
        ids = tokenizer.encode("def f(x):")
        print(json.dumps([ids, sorted(tokenizer.eos_token_ids), model(mx.array([ids])).tolist()]))
    """
    command = [sys.executable, "-c", code, str(mini_folder)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    ids, stops, logits = json.loads(output.splitlines()[-1])
    model = IQuestPLTCoderForCausalLM.from_pretrained(mini_plt, dtype=torch.float32).eval()
    assert stops == [2, 8186, 8191]
    assert largest_difference(np.array(logits), expected_logits(model, torch.tensor([ids]))) <= TOLERANCE
    untrusted = subprocess.run([*command, "untrusted"], stderr=subprocess.PIPE, text=True)
    assert untrusted.returncode and "Pass trust_remote_code=True" in untrusted.stderr


# -- quantized ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights(bits, mini_plt, tmp_path):
    """The logits equal those of the Transformers model with the same rounded weights. Gates are not rounded."""
    folder = tmp_path / "out"
    code, printed, _ = run("convert", mini_plt, folder, "--to", "mlx", "--bits", bits, "--json")
    assert code == 0 and json.loads(printed)["tensors"]
    assert verify(folder)["problems"] == []
    copy, _ = load(folder)
    for name, module in copy.named_modules():
        is_matrix = name.endswith(("proj", "lm_head", "embed_tokens"))
        assert isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding) == is_matrix, name

    model = IQuestPLTCoderForCausalLM.from_pretrained(mini_plt, dtype=torch.float32).eval()
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = tokens(1, 30)
    found = logits_of(copy, ids)
    rounded = dict(tree_flatten(utils.dequantize_model(copy).parameters()))
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in rounded.items()})
    assert largest_difference(found, expected_logits(model, ids)) <= TOLERANCE
    for name, tensor in model.state_dict().items():
        difference = float((tensor - original[name]).abs().max() / original[name].abs().max())
        assert (difference == 0) == ("plt_gate" in name or "norm" in name), name
        assert difference < {4: 0.15, 8: 0.01}[bits], name

    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": bits, "mode": "affine"}
    assert f"quantized to {bits} bits; gates and norms are not" in (folder / "README.md").read_text()


def test_half_precision_with_quantized_weights(mini_plt, tmp_path):
    folder = tmp_path / "out"
    convert(str(mini_plt), folder, to="mlx", bits=4, dtype="bfloat16")
    model, _ = load(folder)
    gates = {value.dtype for name, value in tree_flatten(model.parameters()) if "plt_gate" in name}
    assert gates == {mx.bfloat16} and verify(folder)["problems"] == []
    assert np.isfinite(logits_of(model, tokens(1, 30))).all()


def test_quantization_equals_mlx_lms_own(mini_folder, mini_plt, tmp_path, monkeypatch):
    """Every tensor, from shards and from a training export with other names of the gate."""
    source = tmp_path / "source"
    source.mkdir()
    for file in mini_plt.iterdir():
        if file.suffix != ".safetensors":
            (source / file.name).write_bytes(file.read_bytes())
    tensors = load_file(mini_plt / "model.safetensors")
    renamed = {name.replace(".plt_gate.", ".loop_gate_proj."): tensor for name, tensor in tensors.items()}
    names = sorted(renamed)
    save_file({name: renamed[name] for name in names[::2]}, source / "model-00001-of-00002.safetensors")
    save_file({name: renamed[name] for name in names[1::2]}, source / "model-00002-of-00002.safetensors")
    manifest = convert(str(source), tmp_path / "ours", to="mlx", bits=4, max_shard_size=300_000)
    assert len([name for name in manifest["files"] if name.endswith(".safetensors")]) > 2
    assert verify(tmp_path / "ours")["problems"] == []

    monkeypatch.setattr(sys, "argv", [])
    launcher.run(["convert", "--hf-path", str(mini_folder), "--mlx-path", str(tmp_path / "theirs"), "-q"])
    ours, theirs = (dict(tree_flatten(load(tmp_path / name)[0].parameters())) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]).item() for name in ours)


def test_damaged_quantized_folders_are_found(mini_plt, tmp_path):
    folder = tmp_path / "out"
    convert(str(mini_plt), folder, to="mlx", bits=8)
    config = json.loads((folder / "config.json").read_text())
    config["quantization"]["bits"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    assert any("q_proj.weight has shape" in problem for problem in verify(folder)["problems"])
    config["quantization"] = {"bits": "4"}
    (folder / "config.json").write_text(json.dumps(config))
    assert any("`quantization` must have integers" in problem for problem in verify(folder)["problems"])


# -- other sources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 8])
def test_a_dense_source_gets_loops(bits, tmp_path):
    """One loop of the result equals the Llama."""
    model = tiny_model(hidden_size=64, intermediate_size=128, initializer_range=0.05)
    llama = llama_of(model)
    llama.save_pretrained(tmp_path / "llama")
    plt = {"plt_num_loops": 1 if bits is None else 2, "plt_gate_use_hidden_states": True}
    convert(str(tmp_path / "llama"), tmp_path / "out", to="mlx", plt=plt, bits=bits)
    ids = tokens(1, 20)
    found = logits_of(load_without_tokenizer(tmp_path / "out"), ids)
    if bits is None:
        assert largest_difference(found, expected_logits(llama, ids)) <= TOLERANCE
    assert np.isfinite(found).all()


def load_without_tokenizer(folder):
    return utils.load_model(folder, trust_remote_code=True)[0]


def test_an_mlx_folder_converts_back(mini_folder, mini_plt, tmp_path):
    convert(str(mini_folder), tmp_path / "plt")
    assert verify(tmp_path / "plt")["problems"] == []
    assert "model_file" not in json.loads((tmp_path / "plt" / "config.json").read_text())
    found, source = (load_file(folder / "model.safetensors") for folder in (tmp_path / "plt", mini_plt))
    assert found.keys() == source.keys() and all(torch.equal(found[name], source[name]) for name in found)


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = {
    "no shift": ({"plt_cross_loop_shift": False}, "without the shift .* Use Transformers"),
    "learned shift": ({"plt_cross_loop_shift": "learned"}, "without the shift .* Use Transformers"),
    "mixed states": (
        {"plt_cross_loop_shift": "mixed", "plt_num_loops": 1},
        "without the shift .* Use Transformers",
    ),
    "one softmax": ({"plt_loop_attention": "joint"}, "only the released kind .* Use Transformers"),
    "shared keys": ({"plt_loop_attention": "shared"}, "only the released kind .* Use Transformers"),
    "own keys": ({"plt_loop_attention": "own"}, "only the released kind .* Use Transformers"),
    "longrope": (
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0, **ROPES["longrope"]}},
        "'longrope' rotary embeddings. Use Transformers",
    ),
    "attention factor": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, **ROPES["yarn"], "attention_factor": 2.0}},
        "MLX ignores attention_factor .* Use Transformers",
    ),
    "activation": ({"hidden_act": "gelu"}, "`hidden_act='gelu'`. Use Transformers"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_models_that_mlx_cannot_compute_are_refused(fields, message, tmp_path):
    fields = {"max_position_embeddings": 64, **fields} if "rope_parameters" in fields else fields
    saved(tiny_model(**fields), tmp_path / "source")
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "source"), tmp_path / "out", to="mlx")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    launcher.register()
    with pytest.raises(ValueError, match=message):
        utils.load_model(tmp_path / "source")


def test_one_loop_needs_no_shift(tmp_path):
    """With one loop, the controls change nothing."""
    model = tiny_model(plt_num_loops=1, plt_cross_loop_shift=False, initializer_range=0.05)
    convert(str(saved(model, tmp_path / "source")), tmp_path / "out", to="mlx")
    ids = tokens(1, 20)
    found = logits_of(load_without_tokenizer(tmp_path / "out"), ids)
    assert largest_difference(found, expected_logits(model, ids)) <= TOLERANCE


def test_quantized_folders_are_only_for_mlx(mini_plt, tmp_path):
    folder = tmp_path / "out"
    convert(str(mini_plt), folder, to="mlx", bits=4)
    for command in (["generate", folder, "--prompt", "x"], ["serve", folder]):
        code, _, error = run(*command)
        assert code == 1 and "quantized for MLX. Run them with `iquest-plt mlx`" in error
    code, _, error = run("convert", folder, tmp_path / "again")
    assert code == 1 and "Quantised weights cannot be converted" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "4"], "--bits is for folders for MLX (--to mlx)"),
        (["--to", "mlx", "--bits", "3"], "`bits` must be 4 or 8, got 3"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path):
    code, _, error = run("convert", SMALL, tmp_path / "out", *options)
    assert code == 1 and message in error and not any(tmp_path.iterdir())


def test_a_model_that_is_too_narrow_to_quantize_is_refused(tmp_path):
    saved(tiny_model(), tmp_path / "source")
    with pytest.raises(ValueError, match=r"the width of no matrix is a multiple of 64\. Leave out --bits"):
        convert(str(tmp_path / "source"), tmp_path / "out", to="mlx", bits=4)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_numbers_too_large_for_the_dtype_are_refused(mini_plt, tmp_path):
    model = IQuestPLTCoderForCausalLM.from_pretrained(mini_plt, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    saved(model, tmp_path / "source")
    with pytest.raises(ValueError, match="numbers that are too large for"):
        convert(str(tmp_path / "source"), tmp_path / "out", to="mlx", bits=4, dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
