# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0

"""The repository as a model repository and as an installed package: both run the same files."""

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
import torch
from packaging.requirements import Requirement
from paths import ROOT
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

import iquest_plt
from iquest_plt import IQuestPLTCoderConfig, IQuestPLTCoderForCausalLM


REMOTE_CODE = sorted(path.name for path in ROOT.glob("*_plt.py"))
RELEASED = {  # config.json of Multilingual-Multimodal-NLP/LoopCoder-V2, without its `auto_map`
    "architectures": ["IQuestPLTCoderForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 27648,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "iquestpltcoder",
    "num_attention_heads": 40,
    "num_hidden_layers": 14,
    "num_key_value_heads": 8,
    "plt_emb_scale": 0.707,
    "plt_gate_use_hidden_states": True,
    "plt_hidden_scale": 0.053,
    "plt_normalize_per_loop": True,
    "plt_num_loops": 2,
    "plt_window_size": [64, 0],
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 76800,
}


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def run_python(code, *args, cwd):
    """Runs `code` in a new interpreter, independent of this process's imports."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=cwd, check=True, stdout=subprocess.PIPE
    ).stdout


# -- the released configuration --------------------------------------------------------------------------------------


def test_root_config_equals_the_released_one():
    on_disk = json.loads((ROOT / "config.json").read_text())
    auto_map = on_disk.pop("auto_map")
    assert on_disk.pop("transformers_version") == "4.57.1"
    assert on_disk == RELEASED | {"rope_theta": 500000, "rope_scaling": None}
    assert auto_map == {
        "AutoConfig": "configuration_plt.IQuestPLTCoderConfig",
        "AutoModel": "modeling_plt.IQuestPLTCoderModel",
        "AutoModelForCausalLM": "modeling_plt.IQuestPLTCoderForCausalLM",
        "AutoModelForQuestionAnswering": "heads_plt.IQuestPLTCoderForQuestionAnswering",
        "AutoModelForSequenceClassification": "heads_plt.IQuestPLTCoderForSequenceClassification",
        "AutoModelForTokenClassification": "heads_plt.IQuestPLTCoderForTokenClassification",
    }


def test_root_config_loads():
    config = AutoConfig.from_pretrained(ROOT)
    assert type(config) is IQuestPLTCoderConfig
    loaded = {name: getattr(config, name) for name in RELEASED if name != "dtype"}
    assert loaded == {name: value for name, value in RELEASED.items() if name != "dtype"}
    assert config.dtype == torch.bfloat16
    assert config.pad_token_id is None
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500000}


def test_the_root_config_gives_the_released_size():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ROOT), dtype=torch.bfloat16)
    tensors = model.state_dict()
    assert len(tensors) == 171
    assert sum(t.numel() for t in tensors.values()) == 7_615_749_680
    assert sum(t.nbytes for t in tensors.values()) == 15_231_499_360


def test_generation_stops_at_the_end_of_a_chat_turn():
    generation = GenerationConfig.from_pretrained(ROOT)
    assert generation.eos_token_id == [2, 75864, 75869]
    assert (generation.bos_token_id, generation.pad_token_id) == (1, 75862)
    assert (generation.do_sample, generation.temperature, generation.top_p, generation.top_k) == (True, 0.6, 0.95, 20)


# -- loading with and without remote code ----------------------------------------------------------------------------


@pytest.mark.parametrize("file", [*REMOTE_CODE, "tokenization/tokenization_plt.py"])
def test_remote_code_needs_only_torch_and_transformers(file):
    """Transformers copies what `from .name import ...` needs; all else must come with torch or Transformers."""
    allowed = {"torch", "transformers", "huggingface_hub", "yaml"} | sys.stdlib_module_names
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and f"{node.module}.py" in REMOTE_CODE, ast.unparse(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {name.split(".")[0] for name in names} <= allowed, ast.unparse(node)


def test_public_names():
    assert iquest_plt.__version__
    assert all(hasattr(iquest_plt, name) for name in iquest_plt.__all__)
    config = IQuestPLTCoderConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    with torch.device("meta"):
        assert type(AutoModel.from_config(config)) is iquest_plt.IQuestPLTCoderModel
        assert type(AutoModelForCausalLM.from_config(config)) is IQuestPLTCoderForCausalLM


def test_the_package_is_loaded_once():
    """Holds under pytest too, where conftest.py prevents a second import of the root's `__init__.py`."""
    copies = {name for name, module in sys.modules.items() if getattr(module, "__file__", None) == iquest_plt.__file__}
    assert copies == {"iquest_plt"}


@pytest.mark.parametrize("where", ["elsewhere", "repository root"])
def test_import_registers_the_model_type(where, tmp_path):
    code = """if True:
        import iquest_plt
        from transformers import AutoConfig, AutoModelForCausalLM
        config = AutoConfig.for_model("iquestpltcoder")
        print(type(config).__module__, AutoModelForCausalLM._model_mapping[type(config)].__module__)
    """
    output = run_python(code, cwd=ROOT if where == "repository root" else tmp_path)
    assert output.split() == [b"iquest_plt.configuration_plt", b"iquest_plt.modeling_plt"]


@pytest.fixture(params=["as saved", "as shipped"])
def checkpoint(request, tmp_path):
    """A tiny sharded checkpoint, with copies of the code as after saving, or with links to it as in the repository."""
    config = IQuestPLTCoderConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        plt_window_size=[3, 0],
        plt_gate_use_hidden_states=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    path = tmp_path / "checkpoint"
    IQuestPLTCoderForCausalLM(config).save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("model-*.safetensors"))) > 1
    if request.param == "as saved":
        return path
    for name in REMOTE_CODE:
        (path / name).unlink()
        (path / name).symlink_to(os.path.relpath(ROOT / name, path.resolve()))
    on_disk = json.loads((path / "config.json").read_text())
    on_disk["auto_map"] = json.loads((ROOT / "config.json").read_text())["auto_map"]
    (path / "config.json").write_text(json.dumps(on_disk))
    return path


def test_both_ways_to_load_give_the_same_logits(checkpoint, tmp_path):
    code = """if True:
        import sys, torch
        from transformers import AutoModelForCausalLM
        path, out = sys.argv[1:]
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        assert "iquest_plt" not in sys.modules
        with torch.no_grad():
            torch.save(model(torch.arange(3, 23)[None]).logits, out)
        model.save_pretrained(sys.argv[1] + "-again")
    """
    run_python(code, checkpoint, tmp_path / "logits.pt", cwd=tmp_path)
    again = checkpoint.with_name("checkpoint-again")  # saved and run without the package
    run_python(code, again, tmp_path / "logits-again.pt", cwd=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    assert type(model) is IQuestPLTCoderForCausalLM
    with torch.no_grad():
        logits = model(torch.arange(3, 23)[None]).logits
    assert logits.shape == (1, 20, 64) and logits.isfinite().all()
    for name in ("logits.pt", "logits-again.pt"):
        torch.testing.assert_close(torch.load(tmp_path / name), logits, rtol=0, atol=0)


# -- the wheel and the pinned versions -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this package, built from a copy of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skipped = shutil.ignore_patterns(
        ".*", "build", "dist", "site", "runs", "*.egg-info", "__pycache__", "*.safetensors"
    )
    shutil.copytree(ROOT, source, symlinks=True, ignore=skipped)
    code = "from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])"
    run_python(code, folder, cwd=source)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_contains_exactly_the_package(setup_cfg, wheel):
    contents = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    expected = set()
    for package, patterns in setup_cfg["options.package_data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns.split():
            files = sorted(folder.glob(pattern))
            assert files, pattern
            expected |= {"/".join(["iquest_plt", *file.relative_to(ROOT).parts]) for file in files}
    for package in setup_cfg["options"]["packages"].split():
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert (folder / "__init__.py").is_file(), package
        expected |= {f"{package.replace('.', '/')}/{file.name}" for file in folder.glob("*.py")}
    for module in setup_cfg["options"]["py_modules"].split():
        expected.add(f"{module}.py")
        assert (ROOT / "cli" / "launcher" / f"{module}.py").is_file()
    assert "iquest-plt = iquest_plt_launcher:main" in setup_cfg["options.entry_points"]["console_scripts"]
    others = ("chat_template.jinja", "config.json", "diagnostics/report.html.jinja", "training/configs/ddp.yaml")
    assert expected >= {f"iquest_plt/{name}" for name in ("__init__.py", *REMOTE_CODE, *others)}
    assert contents == expected


def test_the_installed_wheel_works(wheel, tmp_path):
    """Installs the wheel into a new environment, which shares only the libraries with this one."""
    venv.create(tmp_path / "venv", with_pip=False)
    bin_folder = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = bin_folder / "python"
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *install], check=True)
    (package,) = (tmp_path / "venv").rglob("site-packages/iquest_plt")
    libraries = [path for path in sys.path if path.endswith("-packages")]
    # A .pth file only adds folders: an editable install of this package in them has no effect.
    (package.parent / "libraries.pth").write_text("\n".join(libraries) + "\n")

    assert {path.name for path in package.glob("*_plt.py")} == set(REMOTE_CODE)
    for name in ("chat_template.jinja", "config.json", "diagnostics/report.html.jinja", "training/configs/ddp.yaml"):
        assert (package / name).read_text() == (ROOT / name).read_text()

    def output(*command):
        return subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True).stdout

    code = "import iquest_plt; from transformers import AutoConfig; print(iquest_plt.__file__)"
    code += "; print(AutoConfig.for_model('iquestpltcoder').plt_num_loops)"
    assert output(python, "-c", code).split() == [str(package / "__init__.py"), "2"]
    assert output(bin_folder / "iquest-plt", "--version").split()[-1] == iquest_plt.__version__
    assert "convert" in output(bin_folder / "iquest-plt", "--help")


def test_constraints_pin_every_direct_requirement(setup_cfg):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    groups = [setup_cfg["options"]["install_requires"], *setup_cfg["options.extras_require"].values()]
    for requirement in (Requirement(line) for group in groups for line in group.splitlines() if line):
        assert requirement.name in pins, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[requirement.name]), f"{requirement} against {pins[requirement.name]}"
