# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The contents of a model folder besides its weights: configuration, code, and the expected tensors."""

import contextlib
import copy
import json
import math
from collections.abc import Iterator, Set
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..configuration_plt import AUTO_MAP, MAX_HEAD_DIM, MAX_LAYERS, IQuestPLTCoderConfig
from .checkpoint import INDEX, dtype_name, inside, read_json


ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "configuration_plt.py"
# The files that remote code needs: this file and everything that it imports, as determined by the library.
CODE_FILES = sorted({Path(path).name for path in (CONFIGURATION, *get_relative_import_files(CONFIGURATION))})
MANIFEST = "manifest.json"
# Fields of a source that are read in addition to those of the configuration class.
OLD_FIELDS = {"dtype", "torch_dtype", "rope_theta", "rope_scaling", "original_max_position_embeddings"}
OLD_FIELDS |= {"quantization_config"}
UNUSED_FIELDS = {"architectures", "id2label", "label2id", "num_labels", "transformers_version", "layer_types"}
GATE = ".self_attn.plt_gate."
SHIFT = "model.shift_mix."  # only for two research controls


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turns any error in the block into a ValueError that begins with `what`, the file being read."""
    try:
        yield
    except BaseException as error:
        # A panic of the tokenizers library does not derive from Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{what}: {reason[:400]}") from error


def config_from(config_class: type[PreTrainedConfig], fields: dict) -> PreTrainedConfig:
    """
    Builds a configuration from the fields of a `config.json` that affect what a model computes. Raises ValueError if
    they are invalid.
    """
    if not _is_finite(fields):
        raise ValueError("config.json contains infinite or NaN numbers.")
    layers = fields.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MAX_LAYERS:  # the library builds lists of that length
        raise ValueError(f"config.json: `num_hidden_layers` is {layers}, more than {MAX_LAYERS}.")
    known = (config_class().to_dict().keys() | OLD_FIELDS) - UNUSED_FIELDS
    fields = {name: value for name, value in fields.items() if name in known}
    if fields.get("pad_token_id") == -1:  # some configurations write -1 for "none"
        fields["pad_token_id"] = None
    with refusals("config.json"):
        return config_class.from_dict(fields)


def _is_finite(value) -> bool:
    """Returns whether all numbers in a JSON value are finite."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def check_rotary(config: PreTrainedConfig, source: PreTrainedConfig) -> None:
    """Raises ValueError if the rotary embeddings are not finite or differ from those of `source`."""
    if config.head_dim > MAX_HEAD_DIM:
        raise ValueError(f"config.json: `head_dim` is {config.head_dim}, more than {MAX_HEAD_DIM}.")
    with refusals("config.json"):
        found, expected = (LlamaRotaryEmbedding(config=copy.deepcopy(one)) for one in (config, source))
    if not (found.inv_freq.isfinite().all() and math.isfinite(found.attention_scaling)):
        raise ValueError("config.json: its rotary embeddings are infinite or NaN. Check `rope_parameters`.")
    is_same = torch.equal(found.inv_freq, expected.inv_freq) and found.attention_scaling == expected.attention_scaling
    if not is_same or found.rope_type != expected.rope_type:
        raise ValueError("The rotary embeddings of the source are not supported. Check its `rope_scaling`.")


def read_config(folder: Path) -> IQuestPLTCoderConfig | LlamaConfig:
    """Reads the configuration in a folder. Raises ValueError if it is not that of a PLT or a Llama."""
    fields = read_json(inside(folder, "config.json"))
    classes = {config_class.model_type: config_class for config_class in (IQuestPLTCoderConfig, LlamaConfig)}
    if fields.get("model_type") not in classes:
        raise ValueError(f"config.json: the model type is {fields.get('model_type')!r}, not {' or '.join(classes)}.")
    return config_from(classes[fields["model_type"]], fields)


def read_plt_config(folder: Path) -> IQuestPLTCoderConfig:
    """Reads the configuration in a folder. Raises ValueError if it is not that of a PLT."""
    config = read_config(folder)
    if not isinstance(config, IQuestPLTCoderConfig):
        raise ValueError(
            f"{folder} holds a {config.model_type}, not a PLT. Use `iquest-plt convert` to make a PLT from it."
        )
    return config


def check_json(folder: Path) -> None:
    """Raises ValueError if a JSON file that the library reads to load a model is invalid or exceeds the limits."""
    for name in ("generation_config.json", "adapter_config.json", INDEX):
        if (folder / name).exists():
            read_json(folder / name)


def is_for_later_loops(name: str) -> bool:
    """Returns whether only loops >= 1 of a PLT read the tensor `name`. A dense model has none of these."""
    return GATE in name or name.startswith(SHIFT)


def shared_fields(config: PreTrainedConfig, other: type[PreTrainedConfig]) -> dict:
    """Returns the fields that `config` and the class `other` share, except those that state the kind of model."""
    names = other().to_dict().keys() - {"architectures", "model_type", "transformers_version", "layer_types"}
    fields = {name: value for name, value in config.to_dict().items() if name in names}
    original = getattr(config, "original_max_position_embeddings", None)
    if original is not None:  # older long-context configurations store it at the top level
        fields["rope_parameters"] = {**fields["rope_parameters"], "original_max_position_embeddings": original}
    return fields


def config_json(config: PreTrainedConfig, dtype: torch.dtype) -> dict:
    """Returns the fields of `config.json` for weights of `dtype`. A PLT also gets its `auto_map`."""
    is_plt = isinstance(config, IQuestPLTCoderConfig)
    fields = json.loads(config.to_json_string())
    fields["architectures"] = ["IQuestPLTCoderForCausalLM" if is_plt else "LlamaForCausalLM"]
    fields["dtype"] = dtype_name(dtype)
    return fields | ({"auto_map": AUTO_MAP} if is_plt else {})


def expected_shapes(config: PreTrainedConfig, names: Set[str]) -> dict[str, tuple[int, ...]]:
    """
    Returns the name and shape of every tensor of the model. `names` are the tensors found in the files. They decide
    whether an output layer tied to the embedding is stored. Raises ValueError if `config` has another number of layers.
    """
    layers = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
    if layers != {str(layer) for layer in range(len(layers))} or len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"config.json has {config.num_hidden_layers} layers (`num_hidden_layers`), but the weights have "
            f"{len(layers)}."
        )
    with refusals("config.json"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))  # a copy, because this modifies it
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings and "lm_head.weight" not in names:
        del shapes["lm_head.weight"]
    return shapes


def check_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Returns one sentence for each mismatch."""
    problems = [f"{name} is missing." for name in expected if name not in found]
    problems += [f"{name} does not belong to this model." for name in found if name not in expected]
    for name, shape in found.items():
        if shape != expected.get(name, shape):
            hint = " (see `plt_gate_use_hidden_states`)" if GATE in name else ""
            problems.append(f"{name} has shape {list(shape)}, but config.json needs {list(expected[name])}{hint}.")
    return problems
