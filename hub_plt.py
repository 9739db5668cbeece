# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""How a PLT model is loaded, saved, pushed to the Hub and distributed, where that differs from any other model."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .pickling_plt import PicklesRemoteCode


logger = logging.get_logger(__name__)


class PLTHubModel(PicklesRemoteCode, PreTrainedModel):
    """The library's model with both names of the gate, a card that is filled in, and refusals that say the way out."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *args, key_mapping: dict | None = None, **kwargs
    ) -> Any:
        """As the library's. Training exports name the gate `loop_gate_proj`: both names load."""
        key_mapping = {"self_attn.loop_gate_proj": "self_attn.plt_gate"} | (key_mapping or {})
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, key_mapping=key_mapping, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:  # a folder's name may mean another one, or none, by and by
            folder = Path(pretrained_model_name_or_path)
            model._source = folder.absolute() if folder.is_dir() else str(pretrained_model_name_or_path)
        return loaded

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs) -> None:
        """As the library's, but always with the released tensor names: Trainer reads them back as they are."""
        return super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """
        As the library's, whose card of a pushed model leaves open what is filled in here: the task, and licence and
        base model as the card has them of what the model was loaded from. From the Hub, that itself is the base.
        """
        path, source = Path(working_dir, "README.md"), getattr(self, "_source", None)
        known = {"pipeline_tag": "text-generation"}
        if source is not None:
            is_folder = isinstance(source, Path)
            try:
                card = ModelCard.load(source / "README.md" if is_folder else source, ignore_metadata_errors=True)
                names = ("license", "license_name", "license_link", "base_model")
                known |= {name: card.data.get(name) for name in names}
            except Exception as error:  # whatever is wrong with that card, this push does not depend on it
                logger.warning(f"The card of {source} cannot be read, so its licence is left open: {error}")
            if not is_folder and source != repo_id:
                known["base_model"] = source
        card = ModelCard.load(path)
        for name, value in known.items():
            if card.data.get(name) is None:
                card.data[name] = value
        card.save(path)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @classmethod
    def prepare_distribute_model(cls, distributed_config: Any, *args, **kwargs) -> Any:
        """As the library's. Raises ValueError for pipeline parallelism."""
        is_dict = isinstance(distributed_config, dict)
        pp_size = distributed_config.get("pp_size") if is_dict else getattr(distributed_config, "pp_size", None)
        if (pp_size or 1) > 1:
            raise ValueError(
                "Pipeline parallelism is not available for PLT models: it sends a token once through the devices, and "
                'the loops come round again. Use tensor parallelism (`tp_plan="auto"`) or `device_map="auto"`.'
            )
        return super().prepare_distribute_model(distributed_config, *args, **kwargs)

    @classmethod
    def maybe_distribute_model(cls, model: PreTrainedModel, distributed_config: Any, *args, **kwargs) -> Any:
        """As the library's. Raises ValueError for tensor parallelism that would split a key/value head."""
        heads, processes = model.config.num_key_value_heads, getattr(distributed_config, "tp_size", None) or 1
        if heads % processes and not isinstance(distributed_config.tp_plan, dict):
            raise ValueError(
                f"Tensor parallelism gives each process whole heads, and {processes} processes cannot share "
                f'{heads} key/value heads evenly: use a number that divides {heads}, or `device_map="auto"`.'
            )
        return super().maybe_distribute_model(model, distributed_config, *args, **kwargs)


__all__ = ["PLTHubModel"]
