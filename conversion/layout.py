# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What a model folder of this package holds beside its weights: configuration, code, and what its tensors must be."""

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
# All that remote code needs: this file and, as the library reads it, what that imports.
CODE_FILES = sorted({Path(path).name for path in (CONFIGURATION, *get_relative_import_files(CONFIGURATION))})
MANIFEST = "manifest.json"
# Which fields of a source are read, beside those of the configuration class.
OLD_FIELDS = {"dtype", "torch_dtype", "rope_theta", "rope_scaling", "original_max_position_embeddings"}
UNUSED_FIELDS = {"architectures", "id2label", "label2id", "num_labels", "transformers_version", "layer_types"}
GATE = ".self_attn.plt_gate."


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is an error of the file that is read: a ValueError that begins with `what`."""
    try:
        yield
    except BaseException as error:
        # A panic of the tokenizers library is none of the usual exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{what}: {reason[:400]}") from error


def config_from(config_class: type[PreTrainedConfig], fields: dict) -> PreTrainedConfig:
    """
    The configuration of a `config.json`, of the fields that decide what a model computes. Raises ValueError if they
    describe none.
    """
    if not _is_finite(fields):
        raise ValueError("config.json holds numbers that are infinite or none.")
    layers = fields.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MAX_LAYERS:  # the library makes lists of that length
        raise ValueError(f"config.json: `num_hidden_layers` is {layers}, more than {MAX_LAYERS}.")
    known = (config_class().to_dict().keys() | OLD_FIELDS) - UNUSED_FIELDS
    fields = {name: value for name, value in fields.items() if name in known}
    if fields.get("pad_token_id") == -1:  # how some say that there is none
        fields["pad_token_id"] = None
    with refusals("config.json"):
        return config_class.from_dict(fields)


def _is_finite(value) -> bool:
    """Whether no number in a JSON value is infinite or NaN."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def check_rotary(config: PreTrainedConfig, source: PreTrainedConfig) -> None:
    """Raises ValueError unless the rotary embeddings are those of `source`, and numbers."""
    if config.head_dim > MAX_HEAD_DIM:
        raise ValueError(f"config.json: `head_dim` is {config.head_dim}, more than {MAX_HEAD_DIM}.")
    with refusals("config.json"):
        found, expected = (LlamaRotaryEmbedding(config=copy.deepcopy(one)) for one in (config, source))
    if not (found.inv_freq.isfinite().all() and math.isfinite(found.attention_scaling)):
        raise ValueError("config.json: its rotary embeddings are infinite or not numbers, see `rope_parameters`.")
    is_same = torch.equal(found.inv_freq, expected.inv_freq) and found.attention_scaling == expected.attention_scaling
    if not is_same or found.rope_type != expected.rope_type:
        raise ValueError("The rotary embeddings of the source cannot be expressed, see its `rope_scaling`.")


def read_config(folder: Path) -> IQuestPLTCoderConfig | LlamaConfig:
    """The configuration in a folder. Raises ValueError if it is not that of a PLT or a Llama."""
    fields = read_json(inside(folder, "config.json"))
    classes = {config_class.model_type: config_class for config_class in (IQuestPLTCoderConfig, LlamaConfig)}
    if fields.get("model_type") not in classes:
        raise ValueError(f"config.json: the model type is {fields.get('model_type')!r}, not {' or '.join(classes)}.")
    return config_from(classes[fields["model_type"]], fields)


def read_plt_config(folder: Path) -> IQuestPLTCoderConfig:
    """The configuration in a folder. Raises ValueError if it is not that of a PLT."""
    config = read_config(folder)
    if not isinstance(config, IQuestPLTCoderConfig):
        raise ValueError(f"{folder} holds a {config.model_type}, no PLT: `iquest-plt convert` makes one of it.")
    return config


def check_json(folder: Path) -> None:
    """Raises ValueError, which names the file, if JSON that the library reads to load a model is not within limits."""
    for name in ("generation_config.json", "adapter_config.json", INDEX):
        if (folder / name).exists():
            read_json(folder / name)


def shared_fields(config: PreTrainedConfig, other: type[PreTrainedConfig]) -> dict:
    """The fields of `config` that the class `other` has as well, without those that say what kind of model it is."""
    names = other().to_dict().keys() - {"architectures", "model_type", "transformers_version", "layer_types"}
    fields = {name: value for name, value in config.to_dict().items() if name in names}
    original = getattr(config, "original_max_position_embeddings", None)
    if original is not None:  # where older configurations of long contexts have it
        fields["rope_parameters"] = {**fields["rope_parameters"], "original_max_position_embeddings": original}
    return fields


def config_json(config: PreTrainedConfig, dtype: torch.dtype) -> dict:
    """The fields of `config.json` for weights of `dtype`; of a PLT with the names of its code."""
    is_plt = isinstance(config, IQuestPLTCoderConfig)
    fields = json.loads(config.to_json_string())
    fields["architectures"] = ["IQuestPLTCoderForCausalLM" if is_plt else "LlamaForCausalLM"]
    fields["dtype"] = dtype_name(dtype)
    return fields | ({"auto_map": AUTO_MAP} if is_plt else {})


def expected_shapes(config: PreTrainedConfig, names: Set[str]) -> dict[str, tuple[int, ...]]:
    """
    Name and shape of every tensor of the model. `names` are those that are there: they decide whether an output layer
    tied to the embedding is stored. Raises ValueError if the configuration has another number of layers than they.
    """
    layers = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
    if layers != {str(layer) for layer in range(len(layers))} or len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"config.json has {config.num_hidden_layers} layers (`num_hidden_layers`), the weights have {len(layers)}."
        )
    with refusals("config.json"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))  # which writes to it
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings and "lm_head.weight" not in names:
        del shapes["lm_head.weight"]
    return shapes


def check_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """What does not agree, a sentence each."""
    problems = [f"{name} is missing." for name in expected if name not in found]
    problems += [f"{name} does not belong to this model." for name in found if name not in expected]
    for name, shape in found.items():
        if shape != expected.get(name, shape):
            hint = " (see `plt_gate_use_hidden_states`)" if GATE in name else ""
            problems.append(f"{name} has shape {list(shape)}, config.json asks for {list(expected[name])}{hint}.")
    return problems
