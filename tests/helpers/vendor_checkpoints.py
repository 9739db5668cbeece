# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic checkpoints in all known layouts: the vendor's release, its training exports, dense models."""

import json
import re
from pathlib import Path

from safetensors.torch import save_file


# Fields of the released config.json besides the model's own, and names of classes that do not exist here.
STALE = {
    "architectures": ["IQuestLoopCoderForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_iquestpltcoder.IQuestPLTCoderConfig"},
    "transformers_version": "4.57.1",
}
NOT_STORED = {"architectures", "layer_types", "rope_parameters", "transformers_version"}


def vendor_name(name: str, gate: str) -> str:
    """Returns the name of a model's tensor in a checkpoint with gates named `gate`."""
    replacement = {
        "plt_gate": r"\g<0>",
        "loop_gate_proj": r"model.layers.\1.self_attn.loop_gate_proj.",
        "gate_projections": r"model.gate_projections.\1.",
    }
    return re.sub(r"^model\.layers\.(\d+)\.self_attn\.plt_gate\.", replacement[gate], name)


def write_shards(folder: Path, tensors: dict, shards: int) -> None:
    """Writes one `model.safetensors`, or `shards` files of consecutive tensors with an index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = list(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_vendor(folder: Path, model, gate: str = "plt_gate", shards: int = 1, omit=(), **fields) -> Path:
    """Writes `model` in the vendor's layout: tensors, and a config.json of version 4.57 without the keys `omit`."""
    folder.mkdir(parents=True)
    config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_STORED}
    config |= {"rope_theta": model.config.rope_parameters["rope_theta"], "rope_scaling": None}
    config |= {"model_type": "iquestpltcoder", "dtype": str(model.dtype).removeprefix("torch."), **STALE, **fields}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in omit}, indent=1))
    tensors = {vendor_name(name, gate): tensor.clone() for name, tensor in model.state_dict().items()}
    write_shards(folder, tensors, shards)
    # This file must never be executed.
    (folder / "configuration_iquestpltcoder.py").write_text("raise SystemExit('a file of the checkpoint was run')\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file under a folder, to check that nothing has changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
