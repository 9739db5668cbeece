# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Converts checkpoints: the vendor's layout or a dense Llama to a PLT folder that loads anywhere or to one for mlx-lm, and
a PLT to a Llama.

Weights are never loaded as a whole. A file whose tensors keep their names and dtypes is copied byte for byte. Other
files are rewritten in pieces. The result appears only when it is complete.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, LlamaConfig, PreTrainedConfig

from .. import __version__
from ..configuration_plt import IQuestPLTCoderConfig
from ..utils.dtypes import FLOAT_NAMES
from . import layout, mlx_folder
from .card import license_of, model_card
from .checkpoint import (
    Checkpoint,
    StoredTensor,
    dtype_name,
    first_repeated,
    inside,
    is_unicode,
    manifest_entry,
    open_checkpoint,
    read_json,
)
from .download import fetch
from .gguf import as_folder
from .quantize import SCHEMES, quantization_fields, quantized
from .tokenizer import write_tokenizer
from .upcycling import INITS, gate_value, starting_fields
from .verify import check_parts
from .writer import PARTIAL, CastTensor, Folder, NewTensor, Tensor, name_files, new_folder, split, write_index


FLOATS = {name: getattr(torch, name) for name in FLOAT_NAMES}
DENSE = ("llama", "mistral", "iquestcoder")  # equivalent to LlamaForCausalLM, with the restrictions below
# Defaults for keys that checkpoints of a type may omit, where the library's class has other defaults or is missing.
DEFAULTS = {"iquestcoder": {"rope_theta": 500000.0, "rms_norm_eps": 1e-5}}
# Other names for the gate's three tensors in training exports.
GATE_NAMES = (
    (re.compile(r"^(model\.layers\.\d+)\.self_attn\.loop_gate_proj\."), r"\1.self_attn.plt_gate."),
    (re.compile(r"^model\.gate_projections\.(\d+)\."), r"model.layers.\1.self_attn.plt_gate."),
)
DROPPED = ".rotary_emb.inv_freq"  # computed from the configuration; old checkpoints store it
SPARE_BYTES = 50_000_000  # for everything except the weights


@dataclass(frozen=True)
class Plan:
    """The planned output: the configuration, and the tensors of each file in order."""

    config: PreTrainedConfig
    groups: list[dict[str, Tensor]]
    parameters: int = 0
    quantization: dict | None = None  # the `quantization_config`

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for group in self.groups for name, tensor in group.items()}


def convert(
    source: str,
    target: str | Path,
    *,
    to: str = "plt",
    revision: str | None = None,
    plt: dict | None = None,
    init: str = "keep",
    dtype: str | None = None,
    quantize: str | None = None,
    max_shard_size: int | None = None,
    hard_link: bool = False,
    bits: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """
    Writes the folder `target` from `source` and returns its manifest.

    Args:
        source: a folder, a `.gguf` file, or the id of a repository on the Hub (with `revision`). A PLT in the
            vendor's or this package's layout, or a dense model (Llama, IQuestCoder, or Mistral without a sliding
            window).
        target: a folder that does not exist yet. It appears when it is complete.
        to: `"plt"`; `"mlx"`: a PLT for mlx-lm; or `"dense"`: the Llama that equals the PLT with one loop and needs no
            code of this package.
        plt: for a dense source, fields of [`IQuestPLTCoderConfig`] that begin with `plt_`. One loop always
            equals the dense model.
        init: for a dense source, how loops >= 1 start (see `upcycling.py`): with `"keep"` they compute nearly what the
            dense model does; with `"zero"` their gates are zero.
        dtype: `"bfloat16"`, `"float16"`, `"float32"` or `"float64"`; by default the weights keep theirs.
        quantize: `"int8"` or `"int4"`: the bits of the linear layers (see `quantize.py`).
        max_shard_size: the maximum bytes of tensors per file; by default the files keep their contents.
        hard_link: whether to hard-link unchanged files to the source instead of copying them. Changing one in place
            then changes both.
        bits: for `"mlx"`, 4 or 8 to quantize the weights with mlx-lm. Gates and norms keep their dtype.
        progress: called with the bytes of weights done so far and in total.

    Raises ValueError, with the reason, for anything that cannot be converted exactly. Nothing is written in that case.
    """
    if to not in ("plt", "dense", "mlx"):
        raise ValueError(f'`to` must be "plt", "dense" or "mlx", got {to!r}.')
    if bits is not None and to != "mlx":
        raise ValueError(
            "--bits is for folders for MLX (--to mlx). For Transformers and vLLM, use --quantize int8 or int4."
        )
    if bits is not None and bits not in mlx_folder.BITS:
        raise ValueError(f"`bits` must be {' or '.join(map(str, mlx_folder.BITS))}, got {bits!r}.")
    if to == "mlx":
        mlx_folder.require_mlx()
    if init not in INITS:
        raise ValueError(f"`init` must be one of {', '.join(INITS)}, got {init!r}.")
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"`dtype` must be one of {', '.join(FLOATS)}, got {dtype!r}.")
    if quantize is not None and (quantize not in SCHEMES or to != "plt"):
        raise ValueError(f"`quantize` must be one of {', '.join(SCHEMES)}, for a PLT; got {quantize!r} for a {to}.")
    if max_shard_size is not None and max_shard_size < 1:
        raise ValueError(f"`max_shard_size` must be at least 1 byte, got {max_shard_size}.")
    options: dict = {"to": to, "plt": plt or {}, "init": init, "dtype": dtype, "quantize": quantize, "bits": bits}
    options["max_shard_size"] = max_shard_size
    if source.endswith(".gguf"):
        with as_folder(Path(source)) as folder:
            return _convert_folder(folder, None, source, Path(target), **options, hard_link=False, progress=progress)
    folder, commit = fetch(source, revision)
    return _convert_folder(folder, commit, source, Path(target), **options, hard_link=hard_link, progress=progress)


def _convert_folder(
    folder: Path,
    commit: str | None,
    source: str,
    target: Path,
    *,
    to: str,
    plt: dict,
    init: str,
    dtype: str | None,
    quantize: str | None,
    max_shard_size: int | None,
    hard_link: bool,
    bits: int | None,
    progress: Callable[[int, int], None],
) -> dict:
    """`convert` from a folder on this machine. `source` and `commit` are for its card and manifest."""
    if PARTIAL in folder.resolve().name:
        raise ValueError(f"{source} is an unfinished conversion. Run that conversion again.")
    if target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{target} is inside the source. Choose a folder elsewhere.")
    fields = read_json(inside(folder, "config.json"))
    checkpoint = open_checkpoint(folder)
    plan = make_plan(fields, checkpoint, to, plt, init)
    stored = _stored_dtype(checkpoint, fields, dtype)
    kind = FLOATS[dtype] if dtype else stored
    plan = _rewrite(plan, kind, quantize, max_shard_size)

    total = sum(tensor.nbytes for tensor in plan.tensors.values())
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(min(done, total), total)

    files: dict = name_files(plan.groups)
    originals = {name: _unchanged(group, checkpoint) for name, group in files.items()}
    links = {name for name, original in originals.items() if original is not None} if hard_link else set()
    needed = sum(tensor.nbytes for name in files.keys() - links for tensor in files[name].values())
    with new_folder(target, needed + SPARE_BYTES, advance) as out:
        # First, because it may fail.
        config = _write_rest(out, plan, kind, folder, is_plt_source(fields), source, commit, to == "mlx", bits)
        if to == "mlx":
            mlx_folder.check_loads(out.path, has_weights=False)
        if bits is not None:
            files = mlx_folder.write_quantized(out, plan.tensors, config, bits, max_shard_size)
        else:
            for name, group in files.items():
                original = originals[name]
                if original is None:
                    out.write_tensors(name, group)
                elif name in links:
                    out.link(original, name)
                else:
                    out.copy(original, name)
        write_index(out, files)
        if to == "mlx":
            mlx_folder.check_loads(out.path)
        manifest = _manifest(out, files, source, commit)
        out.write_json(layout.MANIFEST, manifest)
        # The source may have changed since its headers were read, or its parts may not fit together.
        if problems := check_parts(out.path):
            raise ValueError(problems[0])
    return manifest


def make_plan(fields: dict, checkpoint: Checkpoint, to: str, plt: dict, init: str) -> Plan:
    """Plans the files and tensors of the result. Raises ValueError if the source does not fit it."""
    if fields.get("quantization_config"):
        raise ValueError("Quantised weights cannot be converted. Use the checkpoint that they were made from.")
    model_type = fields.get("model_type")
    groups: list[dict[str, Tensor]] = [{**_renamed(checkpoint.of_file(file))} for file in checkpoint.files]
    if is_plt_source(fields):
        if plt:
            raise ValueError(f"{', '.join(plt)}: only for a dense source. This source is a PLT and has its own fields.")
        config = layout.config_from(IQuestPLTCoderConfig, fields)
        layout.check_rotary(config, config)
        _check(config, groups)
        return _without_gates(config, groups) if to == "dense" else Plan(config, groups)
    if to == "dense":
        raise ValueError(f"{model_type!r} is not a PLT, so it cannot be made dense.")
    if model_type not in DENSE:
        raise ValueError(
            f"The model type {model_type!r} cannot be converted. A PLT needs a Llama architecture: "
            f"{', '.join(DENSE)}. {_WHY.get(str(model_type), '')}".rstrip()
        )
    return _with_gates(_dense_config(model_type, fields), groups, plt, init)


_WHY = {
    "qwen2": "Unlike Llama, Qwen2 has biases on queries, keys and values but not on the output.",
    "iquestloopcoder": "It loops without the shift between loops, so it computes another function.",
}


def _dense_config(model_type: str, fields: dict) -> LlamaConfig:
    config_class = LlamaConfig
    if model_type in CONFIG_MAPPING:  # not `get`, which finds only classes that are already loaded
        config_class = CONFIG_MAPPING[model_type]
    config = layout.config_from(config_class, DEFAULTS.get(model_type, {}) | fields)
    uses_window = model_type == "mistral" or fields.get("use_sliding_window")
    if uses_window and fields.get("sliding_window", getattr(config, "sliding_window", None)) is not None:
        raise ValueError("The source attends to a sliding window, but loop 0 of a PLT sees all earlier tokens.")
    if fields.get("clip_qkv") is not None:
        raise ValueError("The source clips queries, keys and values (`clip_qkv`), but a Llama does not.")
    dense = layout.config_from(LlamaConfig, layout.shared_fields(config, LlamaConfig))
    layout.check_rotary(dense, config)
    return dense


def _with_gates(dense: LlamaConfig, groups: list[dict[str, Tensor]], plt: dict, init: str) -> Plan:
    """Adds gates, and a learned shift if the fields ask for one, to the dense model, in a separate file."""
    known = {name for name in IQuestPLTCoderConfig().to_dict() if name.startswith("plt_")}
    if plt.keys() - known:
        raise ValueError(f"Unknown fields: {', '.join(plt.keys() - known)}. Use {', '.join(sorted(known))}.")
    expected = _check(dense, groups)
    plt = starting_fields(init, {name: tensor for group in groups for name, tensor in group.items()}, plt)
    config = layout.config_from(IQuestPLTCoderConfig, layout.shared_fields(dense, IQuestPLTCoderConfig) | plt)
    layout.check_rotary(config, dense)
    expected_plt = layout.expected_shapes(config, {name for group in groups for name in group})
    dtype = next(tensor.dtype for group in groups for tensor in group.values())
    gates: dict[str, Tensor] = {
        name: NewTensor(dtype, shape, gate_value(init, name))
        for name, shape in expected_plt.items()
        if name not in expected and layout.is_for_later_loops(name)
    }
    return Plan(config, [*groups, gates])


def _without_gates(config: IQuestPLTCoderConfig, groups: list[dict[str, Tensor]]) -> Plan:
    dense = [
        {name: tensor for name, tensor in group.items() if not layout.is_for_later_loops(name)} for group in groups
    ]
    llama = layout.config_from(LlamaConfig, layout.shared_fields(config, LlamaConfig))
    layout.check_rotary(llama, config)
    return Plan(llama, [group for group in dense if group])


def _renamed(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors under their released names."""
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in GATE_NAMES:
            new = pattern.sub(replacement, new)
        if new in renamed:
            raise ValueError(f"{name} appears twice, under two names.")
        if not name.endswith(DROPPED):
            renamed[new] = tensor
    return renamed


def _check(config: PreTrainedConfig, groups: list[dict[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    """Returns the tensors that `config` needs. Raises ValueError if any tensor is missing, unexpected or misshapen."""
    found = {name: tensor.shape for group in groups for name, tensor in group.items()}
    if len(found) < sum(map(len, groups)):
        twice = first_repeated(name for group in groups for name in group)
        raise ValueError(f"{twice} appears twice, under two names.")
    expected = layout.expected_shapes(config, found.keys())
    problems = layout.check_shapes(found, expected)
    if problems:
        more = f" ({len(problems) - 1} more such problems.)" if len(problems) > 1 else ""
        raise ValueError(problems[0] + more)
    return expected


def _stored_dtype(checkpoint: Checkpoint, fields: dict, dtype: str | None) -> torch.dtype:
    """Returns the dtype of the weights. Raises ValueError if there are several, or if `config.json` has another."""
    found = {tensor.dtype: name for name, tensor in checkpoint.tensors.items() if not name.endswith(DROPPED)}
    for other, name in found.items():
        if other not in FLOATS.values():
            raise ValueError(f"{name} is stored as {other}, but quantised weights cannot be converted.")
    if dtype is None and len(found) > 1:
        names = ", ".join(f"{name} as {dtype_name(kind)}" for kind, name in found.items())
        raise ValueError(f"The weights have several dtypes ({names}). Choose one with --dtype.")
    stored = next(iter(found))
    said = fields.get("dtype", fields.get("torch_dtype"))
    if dtype is None and said is not None and FLOATS.get(dtype_name(said)) != stored:
        raise ValueError(f"config.json says {said}, but the weights are {dtype_name(stored)}. Choose with --dtype.")
    return stored


def _rewrite(plan: Plan, dtype: torch.dtype, quantize: str | None, max_shard_size: int | None) -> Plan:
    """Returns the plan with every tensor in `dtype` or quantized, in files of at most `max_shard_size` bytes."""

    def cast(tensor: Tensor) -> Tensor:
        if tensor.dtype == dtype:
            return tensor
        if isinstance(tensor, NewTensor):
            return NewTensor(dtype, tensor.shape, tensor.value)
        return CastTensor(tensor, dtype)  # type: ignore[arg-type]

    groups = [{name: cast(tensor) for name, tensor in group.items()} for group in plan.groups if group]
    parameters = sum(torch.Size(tensor.shape).numel() for tensor in plan.tensors.values())
    fields = None
    if quantize is not None:
        fields = quantization_fields({name: tensor.shape for name, tensor in plan.tensors.items()}, quantize)
        groups = [quantized(group, quantize) for group in groups]
    if max_shard_size is not None:
        groups = split({name: tensor for group in groups for name, tensor in group.items()}, max_shard_size)
    return Plan(plan.config, groups, parameters, fields)


def _unchanged(group: dict[str, Tensor], checkpoint: Checkpoint) -> Path | None:
    """Returns the source file that holds exactly these tensors under these names, or None."""
    first = next(iter(group.values()))
    if not isinstance(first, StoredTensor) or checkpoint.of_file(first.path.name) != group:
        return None
    return first.path


def _name(source: str, commit: str | None) -> str:
    """Returns the id on the Hub, or the name of the folder without its path."""
    return source if commit else Path(source).resolve().name


def _write_rest(
    out: Folder,
    plan: Plan,
    dtype: torch.dtype,
    folder: Path,
    from_plt: bool,
    source: str,
    commit: str | None,
    is_mlx: bool,
    bits: int | None,
) -> dict:
    """Writes everything except weights and manifest. Returns the fields of `config.json`."""
    is_plt = isinstance(plan.config, IQuestPLTCoderConfig)
    config = layout.config_json(plan.config, dtype)
    if plan.quantization is not None:
        config["quantization_config"] = plan.quantization
    if is_mlx:
        config = mlx_folder.config_fields(config, bits)
    out.write_json("config.json", config)
    tokenizer = write_tokenizer(out, folder, plan.config, from_plt, with_code=not is_mlx)
    out.write_json("generation_config.json", tokenizer)
    if is_mlx:
        out.copy(layout.ROOT / "serving" / "mlx" / mlx_folder.MODEL_FILE)
    elif is_plt:
        for name in layout.CODE_FILES:
            out.copy(layout.ROOT / name, name)
    for name in sorted(path.name for path in folder.glob("LICENSE*") if path.is_file()):
        if not is_unicode(name):  # the manifest could not contain it
            raise ValueError(f"The file name {name!a} is not UTF-8. Rename the file.")
        out.copy(inside(folder, name))
    notes = ["Loops were added to a dense model. Loops after the first are untrained."]
    card = model_card(
        config,
        plan.parameters,
        source=_name(source, commit),
        revision=commit,
        notes=notes if is_plt and not from_plt else (),
        bits=bits,
        **license_of(folder),
    )
    out.write_text("README.md", card)
    return config


def _manifest(out: Folder, files: dict[str, dict[str, Tensor]], source: str, commit: str | None) -> dict:
    """Returns the manifest: the written files and tensors, and their source."""
    tensors = {name: manifest_entry(tensor, file) for file, group in files.items() for name, tensor in group.items()}
    return {
        "format": 1,
        "tool": f"iquest-plt {__version__}",
        "source": {"name": _name(source, commit), "revision": commit},
        "files": dict(out.files),
        "tensors": tensors,
    }


def is_plt_source(fields: dict) -> bool:
    """Returns whether a `config.json` describes a PLT, whatever classes it names."""
    return fields.get("model_type") == IQuestPLTCoderConfig.model_type or any(
        name.startswith("plt_") for name in fields
    )
