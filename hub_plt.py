# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""What differs from other models when a PLT model is loaded, saved, pushed to the Hub or distributed."""

import copy
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, hf_hub_download
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .pickling_plt import PicklesRemoteCode
from .quantization_plt import packed_scheme


logger = logging.get_logger(__name__)

CARD_FIELDS = ("license", "license_name", "license_link", "base_model")
HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")
NOT_FIELDS = ("dtype", "torch_dtype")  # arguments of `from_pretrained` that must not become fields of the configuration
MAX_CARD_BYTES = 1_000_000
MAX_DEPTH, MAX_PARTS = 50, 150_000  # limits for the card's YAML; large cards have a few thousand parts
MAX_VALUE = 500  # characters
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def card_fields(path: Path, names: tuple[str, ...]) -> dict[str, str | list[str]]:
    """
    Reads the fields `names` from the YAML block at the start of a model card. Skips values that are not a one-line
    string or a list of those.

    Takes time and memory proportional to the card's length. Aliases are not expanded, since a few hundred bytes of them
    can expand to gigabytes.

    Raises:
        yaml.YAMLError: if the block is not YAML.
        ValueError: if the card exceeds MAX_CARD_BYTES, MAX_DEPTH or MAX_PARTS.
    """
    way_out = "Load the model from a folder with a simpler README.md or without one"
    if path.stat().st_size > MAX_CARD_BYTES:
        raise ValueError(f"The model card {str(path)!r} has more than {MAX_CARD_BYTES:,} bytes. {way_out}.")
    block, depth = _front_matter(path.read_bytes().decode(errors="replace")), 0
    for parts, event in enumerate(yaml.parse(block, Loader=_LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or parts > MAX_PARTS:
            bounds = f"{MAX_DEPTH} levels, or {MAX_PARTS:,} parts"
            raise ValueError(f"The YAML of the model card {str(path)!r} has more than {bounds}. {way_out}.")
    root = yaml.compose(block, Loader=_LOADER)  # an alias becomes a reference to its node, not a copy
    pairs = root.value if isinstance(root, yaml.MappingNode) else ()
    nodes = {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
    found = {name: _texts(nodes[name]) for name in names if name in nodes}
    return {name: value for name, value in found.items() if value}


def _front_matter(card: str) -> str:
    """Returns the text between the first line, if that is `---`, and the next such line."""
    first, *lines = card.lstrip("\ufeff \t\r\n").split("\n")
    lines = [line.rstrip() for line in lines]
    if first.rstrip() != "---" or "---" not in lines:
        return ""
    return "\n".join(lines[: lines.index("---")])


def _texts(node: yaml.Node) -> str | list[str] | None:
    """Returns a string scalar or a list of them; None for anything else, or if one is too long or not printable."""
    if isinstance(node, yaml.SequenceNode):
        texts = [_texts(item) if isinstance(item, yaml.ScalarNode) else None for item in node.value]
        strings = [text for text in texts if isinstance(text, str)]
        return strings if len(strings) == len(texts) else None
    is_text = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"
    return node.value if is_text and len(node.value) <= MAX_VALUE and node.value.isprintable() else None


def _source_fields(source: Path | str | None) -> dict[str, str | list[str]]:
    """Reads the CARD_FIELDS from the card of a folder or Hub id. Raises ValueError like `card_fields`."""
    if source is None:
        return {}
    try:
        path = source / "README.md" if isinstance(source, Path) else Path(hf_hub_download(source, "README.md"))
        if not path.is_file():
            raise FileNotFoundError("there is no README.md")
    except Exception as error:  # whatever the reason, a push must not fail because of that card
        return _left_open(source, error)
    try:
        return card_fields(path, CARD_FIELDS)
    except (OSError, yaml.YAMLError) as error:
        return _left_open(source, error)


def _left_open(source: Path | str, error: Exception) -> dict:
    """Returns no fields, and warns why."""
    reason = repr(" ".join(str(error).split()))[1:-1]
    logger.warning(f"Could not read the card of {str(source)!r}, so no licence is filled in: {reason[:400]}")
    return {}


class PLTHubModel(PicklesRemoteCode, PreTrainedModel):
    """A model that loads the gate under both names, fills in its card, and rejects unsupported parallelism."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *args, key_mapping: dict | None = None, **kwargs
    ) -> Any:
        """
        Like the library's. Also loads training exports, which name the gate `loop_gate_proj`, and runs weights of 4
        and 8 bits on a CPU (`quantization_plt.py`).
        """
        key_mapping = {"self_attn.loop_gate_proj": "self_attn.plt_gate"} | (key_mapping or {})
        if pretrained_model_name_or_path is not None and kwargs.get("device_map") in (None, "cpu"):
            kwargs = cls._with_cpu_kernels(pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, key_mapping=key_mapping, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:  # absolute, since the working directory may change
            folder = Path(pretrained_model_name_or_path)
            model._source = folder.absolute() if folder.is_dir() else str(pretrained_model_name_or_path)
        return loaded

    @classmethod
    def _with_cpu_kernels(cls, path: str | Path, kwargs: dict) -> dict:
        """Returns the arguments of `from_pretrained`, changed if the model has weights that a CPU kernel can run."""
        kwargs, config = dict(kwargs), kwargs.get("config")
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if config is None:
            stored = cls.config_class.get_config_dict(path, **hub)[0].get("quantization_config")
        else:
            stored = getattr(config, "quantization_config", None)
        scheme = packed_scheme(stored)
        if scheme is None or kwargs.get("quantization_config") is not None:
            return kwargs
        if config is None:
            kept = {name: kwargs.pop(name) for name in NOT_FIELDS if name in kwargs}
            config, kwargs = cls.config_class.from_pretrained(path, return_unused_kwargs=True, **kwargs)
            kwargs |= kept | hub
        config = copy.deepcopy(config)
        del config.quantization_config  # otherwise the library would use its own quantizer
        return kwargs | {"config": config, "quantization_config": scheme}

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs) -> None:
        """Like the library's, but always writes the released tensor names, because Trainer reads them unconverted."""
        return super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """
        Like the library's, but fills in the card of a pushed model: the task, and the licence and base model from the
        card of the model it was loaded from. A model loaded from the Hub is itself the base model.
        Raises ValueError like `card_fields`.
        """
        path, source = Path(working_dir, "README.md"), getattr(self, "_source", None)
        known = {"pipeline_tag": "text-generation"} | _source_fields(source)
        if isinstance(source, str) and source != repo_id:
            known["base_model"] = source
        card = ModelCard.load(path)  # written by the library
        for name, value in known.items():
            if card.data.get(name) is None:
                card.data[name] = value
        card.save(path)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @classmethod
    def prepare_distribute_model(cls, distributed_config: Any, *args, **kwargs) -> Any:
        """Like the library's. Raises ValueError for pipeline parallelism."""
        is_dict = isinstance(distributed_config, dict)
        pp_size = distributed_config.get("pp_size") if is_dict else getattr(distributed_config, "pp_size", None)
        if (pp_size or 1) > 1:
            raise ValueError(
                "PLT models do not support pipeline parallelism: it sends a token through the devices once, but each "
                'loop passes through them again. Use tensor parallelism (`tp_plan="auto"`) or `device_map="auto"`.'
            )
        return super().prepare_distribute_model(distributed_config, *args, **kwargs)

    @classmethod
    def maybe_distribute_model(cls, model: PreTrainedModel, distributed_config: Any, *args, **kwargs) -> Any:
        """Like the library's. Raises ValueError for tensor parallelism that would split a key/value head."""
        heads, processes = model.config.num_key_value_heads, getattr(distributed_config, "tp_size", None) or 1
        if heads % processes and not isinstance(distributed_config.tp_plan, dict):
            raise ValueError(
                f"Tensor parallelism gives each process whole heads, but {processes} processes cannot evenly share "
                f'{heads} key/value heads. Use a number that divides {heads}, or `device_map="auto"`.'
            )
        return super().maybe_distribute_model(model, distributed_config, *args, **kwargs)


__all__ = ["PLTHubModel"]
