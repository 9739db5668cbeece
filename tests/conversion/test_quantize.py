# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of 4 and 8 bits: the format, the conversion, and the model that runs them on a CPU."""

import copy
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from command_line import run
from paths import SMALL
from tiny import tiny_model, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from iquest_plt import IQuestPLTCoderForCausalLM, packed_kernels_plt
from iquest_plt.conversion.convert import convert
from iquest_plt.conversion.quantize import quantize, read_rows
from iquest_plt.conversion.verify import verify
from iquest_plt.conversion.writer import CastTensor
from iquest_plt.packed_kernels_plt import (
    MANY_ROWS,
    PRODUCTS,
    VARIABLE,
    PackedWeight,
    installed_kernels,
    pack,
    packed_kernels,
    unpack,
)
from iquest_plt.quantization_plt import PackedLinear
from iquest_plt.training import evaluate


SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
SCHEMES = {"int8": (8, None), "int4": (4, 32)}


def dequantized(rows: torch.Tensor, bits: int, group_size: int | None) -> torch.Tensor:
    values, scale, zero = quantize(rows, bits, group_size)
    groups = (values.float().unflatten(1, (-1, group_size or rows.shape[1])) - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
    return groups.flatten(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A float32 model with three loops, and the same quantized: folders by name."""
    folder = tmp_path_factory.mktemp("quantized")
    tiny_model(plt_num_loops=3, **SIZE).save_pretrained(folder / "source")
    for scheme in SCHEMES:
        convert(str(folder / "source"), folder / scheme, quantize=scheme)
    return folder


@pytest.fixture(scope="module", params=installed_kernels())
def kernels(request):
    """Whose kernels the models are loaded for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, request.param)
        yield request.param


@pytest.fixture(scope="module", params=SCHEMES)
def models(request, folders, kernels):
    """The quantized model, whose inputs are not rounded, and the original one with the same rounded weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_kernels_plt, "INPUT_GROUP", 0)
        model = AutoModelForCausalLM.from_pretrained(folders / request.param)
    expected = AutoModelForCausalLM.from_pretrained(folders / "source")
    with torch.no_grad():
        for module in expected.modules():
            if isinstance(module, torch.nn.Linear) and module is not expected.lm_head:
                module.weight.copy_(dequantized(module.weight, *SCHEMES[request.param]))
    return model, expected


# -- the format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_that_of_compressed_tensors(bits):
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (16, 64), dtype=torch.int8)
    assert torch.equal(unpack(pack(values, bits), bits), values)
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    assert torch.equal(pack(values, bits), helpers.pack_to_int32(values, bits))
    assert torch.equal(pack(values.T, bits).T, helpers.pack_to_int32(values, bits, packed_dim=0))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_to_the_nearest_step(scheme, dtype):
    bits, group_size = SCHEMES[scheme]
    rows = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[0], rows[1], rows[2, :32] = 0.0, 0.5, rows[2, :32].abs() + 3  # nothing, a constant, only positive numbers
    found = dequantized(rows, bits, group_size)
    _, scale, _ = quantize(rows, bits, group_size)
    steps = scale.float().repeat_interleave(group_size or 64, 1)
    assert torch.equal(found[0], torch.zeros(64))
    if bits == 8:
        assert ((found - rows).abs() <= 0.51 * steps).all()
    else:  # the scale that covers all weights is the first of several; the others clip and must be better
        groups = rows.float().unflatten(1, (-1, 32))
        step = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / 15
        error = (found - rows).unflatten(1, (-1, 32)).square().sum(-1)
        assert (error <= 32 * step.square() * 1.02).all()
        assert error.sum() < 32 * (step.square() / 12).sum()  # what rounding costs without clipping


def test_pieces_of_a_weight_are_whole_rows(folders):
    from iquest_plt.conversion.checkpoint import open_checkpoint

    stored = open_checkpoint(folders / "source").tensors["model.layers.0.mlp.down_proj.weight"]
    cast = CastTensor(stored, torch.bfloat16)
    assert torch.equal(torch.cat(list(read_rows(stored))).bfloat16(), torch.cat(list(read_rows(cast))))


# -- the kernels ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=SCHEMES)
def weight(request):
    """A packed weight (48, 96), and the same in float32."""
    bits, group_size = SCHEMES[request.param]
    rows = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    values, scale, zero = quantize(rows, bits, group_size)
    zero_point = pack(zero.T, bits).T if bits == 4 else None
    return PackedWeight(bits, pack(values, bits), scale, zero_point), dequantized(rows, bits, group_size)


@pytest.mark.parametrize("count", [1, 2, 5, MANY_ROWS])
def test_products(weight, kernels, count):
    """The inputs are integers whose largest is 127 in each group, so rounding them to 8 bits changes nothing."""
    packed, full = weight
    rows = torch.randint(-127, 128, (count, 96), generator=torch.Generator().manual_seed(count)).float()
    rows[:, ::32] = 127
    product = PRODUCTS[kernels](packed)
    expected = rows @ full.T
    torch.testing.assert_close(product(rows), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    assert torch.equal(copy.deepcopy(product)(rows), product(rows))
    half = product(rows.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=1e-2 * expected.abs().max().item(), rtol=0)


def test_results_are_kept_and_threads_do_not_disturb_each_other(weight, kernels):
    product = PRODUCTS[kernels](weight[0])
    inputs = [torch.randn(1 + i % 3, 96, generator=torch.Generator().manual_seed(i)) for i in range(60)]
    expected = [product(rows) for rows in inputs]
    copies = [rows.clone() for rows in expected]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(product, inputs))
    assert all(map(torch.equal, found, expected)) and all(map(torch.equal, copies, expected))


def test_the_kernels_may_be_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "torch")
    assert packed_kernels() == "torch"
    monkeypatch.setenv(VARIABLE, "mkl")
    with pytest.raises(ValueError, match="mkl is not one of: torch, openvino"):
        packed_kernels()
    monkeypatch.setenv(VARIABLE, "openvino")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install openvino"):
        packed_kernels()
    monkeypatch.delenv(VARIABLE)
    assert packed_kernels() == "torch"


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@torch.no_grad()
def test_logits_are_those_of_the_rounded_weights(models, num_loops):
    model, expected = models
    for ids in (tokens(2, 12), tokens(1, MANY_ROWS + 10)):  # the second takes the way for many rows
        found = model(ids, num_loops=num_loops).logits
        torch.testing.assert_close(found, expected(ids, num_loops=num_loops).logits, atol=2e-4, rtol=1e-3)


def test_generation_together_in_sequence_and_in_batches(models):
    model, expected = models
    ids = tokens(3, 9)
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(ids, **options)
    assert torch.equal(found, expected.generate(ids, **options))
    assert torch.equal(found, model.generate(ids, loop_schedule="sequence", **options))
    assert torch.equal(found[:1], model.generate(ids[:1], **options))


def test_only_linear_layers_are_quantized(models):
    model, _ = models
    kinds = {name: type(module) for name, module in model.named_modules()}
    packed = {name for name, kind in kinds.items() if kind is PackedLinear}
    assert len(packed) == 7 * model.config.num_hidden_layers
    assert kinds["lm_head"] is torch.nn.Linear and not any("plt_gate" in name for name in packed)


@torch.no_grad()
def test_bfloat16(models, folders, request):
    """Rounding to bf16 moves the logits no further than those of the same model with unpacked weights."""
    _, expected = models
    scheme, ids = request.node.callspec.params["models"], tokens(1, 20)
    logits = expected(ids).logits

    def error(other):
        found = other(ids).logits
        return (found - logits).norm() / logits.norm()

    limit = 1.5 * error(copy.deepcopy(expected).bfloat16())
    half = AutoModelForCausalLM.from_pretrained(folders / scheme, dtype=torch.bfloat16)
    assert half.dtype == half(ids).logits.dtype == torch.bfloat16
    assert error(half) < limit


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_librarys_quantizer_loads_the_same_weights(folders, scheme):
    pytest.importorskip("compressed_tensors")
    from transformers import CompressedTensorsConfig

    config = CompressedTensorsConfig(dequantize=True)
    library = AutoModelForCausalLM.from_pretrained(folders / scheme, quantization_config=config)
    assert isinstance(library.model.layers[0].mlp.down_proj, torch.nn.Linear)
    model, ids = AutoModelForCausalLM.from_pretrained(folders / scheme), tokens(2, 12)
    torch.testing.assert_close(model(ids).logits, library(ids).logits, atol=2e-4, rtol=1e-3)


def test_remote_code(folders, tmp_path):
    """In a process without this package."""
    ids = tokens(1, 12)
    torch.save(ids, tmp_path / "ids.pt")
    code = f"""if True:
        import torch
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained({str(folders / "int4")!r}, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        torch.save(model(torch.load("ids.pt")).logits, "logits.pt")
    """
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=300)
    assert torch.equal(
        torch.load(tmp_path / "logits.pt"), AutoModelForCausalLM.from_pretrained(folders / "int4")(ids).logits
    )


@torch.no_grad()
def test_the_class_itself_takes_what_the_auto_class_takes(folders):
    expected, ids = AutoModelForCausalLM.from_pretrained(folders / "int8", num_loops=2)(tokens(1, 12)), tokens(1, 12)
    options = {"dtype": "auto", "num_loops": 2, "attn_implementation": "sdpa", "local_files_only": True}
    model, found = IQuestPLTCoderForCausalLM.from_pretrained(folders / "int8", output_loading_info=True, **options)
    assert model.dtype == torch.float32 and model.config.plt_num_loops == 2 and not found["missing_keys"]
    assert isinstance(model.model.layers[0].mlp.down_proj, PackedLinear)
    assert torch.equal(model(ids).logits, expected.logits)
    half = IQuestPLTCoderForCausalLM.from_pretrained(folders / "int8", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_what_is_refused(models, folders, tmp_path):
    model, _ = models
    with pytest.raises(ValueError, match='device_map="cuda"'):
        model.to("meta")
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="Quantised weights cannot be converted"):
        convert(str(folders / "int8"), tmp_path / "again")
    with pytest.raises(ValueError, match="for a dense"):
        convert(str(folders / "source"), tmp_path / "dense", to="dense", quantize="int8")
    with pytest.raises(ValueError, match="int2"):
        convert(str(folders / "source"), tmp_path / "two", quantize="int2")
    assert list(tmp_path.iterdir()) == []


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_verify(folders, scheme, tmp_path):
    assert verify(folders / scheme)["problems"] == []
    config = json.loads((folders / scheme / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 3
    for file in (folders / scheme).iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert any("quantization_config" in problem for problem in verify(tmp_path)["problems"])


def test_a_weight_of_another_shape_stays_as_it_is(tmp_path):
    size = SIZE | {"intermediate_size": 72}  # no multiple of 16 rows, or of 32 columns
    tiny_model(**size).save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "int4", quantize="int4")
    assert verify(tmp_path / "int4")["problems"] == []
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "int4")
    source, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "source"), tokens(1, 12)
    layer = model.model.layers[0]
    assert isinstance(layer.self_attn.q_proj, PackedLinear)
    assert torch.equal(layer.mlp.down_proj.weight, source.model.layers[0].mlp.down_proj.weight)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, PackedLinear):
                weight = source.get_submodule(name).weight
                weight.copy_(dequantized(weight, 4, 32))
        torch.testing.assert_close(model(ids).logits, source(ids).logits, atol=2e-4, rtol=1e-3)


def test_command_line(folders, tmp_path):
    code, _, errors = run("convert", folders / "source", tmp_path / "out", "--dtype", "bfloat16", "--quantize", "int8")
    assert code == 0, errors
    code, text, errors = run("info", tmp_path / "out", "--length", "64", "--json")
    assert code == 0, errors
    weights = json.loads(text)["bytes"]["weights"]
    stored = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert stored * 0.8 < weights <= stored


@torch.no_grad()
def test_generation_with_rounded_inputs(folders, kernels):
    """Loops together, in sequence and in a batch give the same tokens where the kernels round the inputs."""
    model, ids = AutoModelForCausalLM.from_pretrained(folders / "int8"), tokens(3, 9)
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(ids, **options)
    assert torch.equal(found, model.generate(ids, loop_schedule="sequence", **options))
    assert torch.equal(found[:1], model.generate(ids[:1], **options))


@torch.no_grad()
def test_loss_of_the_small_model(tmp_path, monkeypatch):
    """On short files of this package, which the model has not seen."""
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    texts = [(SMALL.parents[1] / name).read_text() for name in ("costs_plt.py", "utils/timing.py")]

    def bits(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        return evaluate.bits_per_byte(model, tokenizer, texts, 2)

    expected = bits(SMALL)
    for scheme, limit in (("int8", 0.005), ("int4", 0.04)):
        convert(str(SMALL), tmp_path / scheme, quantize=scheme)
        for kernels in installed_kernels():
            monkeypatch.setenv(VARIABLE, kernels)
            assert abs(bits(tmp_path / scheme) / expected - 1) < limit
