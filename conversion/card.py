# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the model card of a converted checkpoint: the Hub's metadata, and information for readers."""

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModelForCausalLM, LlamaConfig

from .. import __version__
from ..configuration_plt import IQuestPLTCoderConfig
from ..hub_plt import card_fields
from .checkpoint import dtype_name, inside
from .layout import config_from


MLX_TAGS = ["plt", "looped-transformer", "mlx"]
PLT_TAGS = ["plt", "looped-transformer", "custom_code"]
LICENSE_FIELDS = ("license", "license_name", "license_link")

PLT = """
# {title}

A Parallel Loop Transformer (PLT, [arXiv 2510.24824](https://arxiv.org/abs/2510.24824)). Its layers run several times
per token, here {loops} (the number of loops). During generation, all loops of a token run in one pass over the weights
and share one cache. `num_loops=` in `forward()` and `generate()` sets another number.

With the package `iquest-plt` installed, no code from this folder runs:

```python
import iquest_plt  # registers the model type with Transformers
{load}
```

Without it, Transformers 5.16.1 or later runs the code files in this folder:

```python
{load_remote}
```
"""

MLX = """
# {title}

A Parallel Loop Transformer (PLT, [arXiv 2510.24824](https://arxiv.org/abs/2510.24824)) for mlx-lm. Its layers run
several times per token, here {loops}. During generation, all loops of a token run in one pass over the weights and
share one cache.{quantized}

With the package iquest-plt and its extra `mlx` installed, no code from this folder runs:

```text
iquest-plt mlx generate --model PATH --prompt "Write a function that reads a file."
```

Without it, mlx-lm 0.32 runs the file `plt_mlx.py` in this folder:

```text
mlx_lm.generate --model PATH --trust-remote-code --prompt "Write a function that reads a file."
```
"""

DENSE = """
# {title}

A dense Llama model, equal to a Parallel Loop Transformer ([arXiv 2510.24824](https://arxiv.org/abs/2510.24824)) that
runs one loop.

```python
{load}
```
"""

LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

path = "PATH"  # this folder, or its id on the Hub
tokenizer = AutoTokenizer.from_pretrained(path{argument})
model = AutoModelForCausalLM.from_pretrained(path{argument})
inputs = tokenizer("def main():\\n", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"""

REST = """
## Shape

| | |
|---|---|
{table}

## Origin

Converted from {origin} by iquest-plt {version}. {rounding}{notes}
`manifest.json` lists every file with its SHA-256, and every tensor with its dtype and shape.

## What has not been verified

The conversion checks that the tensors match `config.json` and that the files are complete, but it does not run the
model. Nobody has checked that these weights give the same output as with the authors' own code, and nothing was
measured.

## Licence

{license} {code}
"""

ROUNDED = "Values were rounded only where the source had another dtype."
QUANTIZED = "mlx-lm rounded the weights to {bits} bits."
NO_LICENSE = "The source's card names no licence for the weights. Ask their publisher."


def model_card(
    config: IQuestPLTCoderConfig | dict,
    parameters: int,
    *,
    source: str,
    revision: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    notes: Sequence[str] = (),
    bits: int | None = None,
) -> str:
    """
    Returns the README.md of a converted checkpoint: a block of YAML, then Markdown.

    Args:
        config: the configuration of the result (a PLT or a Llama) with its dtype, or the content of its `config.json`.
        parameters: the number of parameters.
        source: an id on the Hub, or the name of a folder.
        revision: the commit, if `source` is an id on the Hub. None means that it is a folder.
        base_model: the Hub id of the model that the weights come from; `source` by default, if it is an id.
        license, license_name, license_link: the Hub's licence fields, see [`license_of`].
        notes: further sentences about the checkpoint's origin.
        bits: of the quantized weights in a folder for mlx-lm.
    """
    is_mlx = isinstance(config, dict) and "model_file" in config
    if isinstance(config, dict):
        config_class = IQuestPLTCoderConfig if config["model_type"] == IQuestPLTCoderConfig.model_type else LlamaConfig
        config = config_from(config_class, config)
    is_plt = isinstance(config, IQuestPLTCoderConfig)
    source = " ".join(source.split())
    data = ModelCardData(
        license=license,
        license_name=license_name,
        license_link=license_link,
        library_name="mlx" if is_mlx else "transformers",
        pipeline_tag="text-generation",
        tags=MLX_TAGS if is_mlx else PLT_TAGS if is_plt else None,
        base_model=base_model or (source if revision else None),
    )
    name = source.split("/")[-1]
    text = (MLX if is_mlx else PLT if is_plt else DENSE) + REST
    text = text.format(
        title=f"{name} for {'MLX' if is_mlx else 'Transformers'}" if is_plt else f"{name}, dense",
        quantized=f" The weights are quantized to {bits} bits; gates and norms are not." if bits else "",
        rounding=QUANTIZED.format(bits=bits) if bits else ROUNDED,
        loops=config.plt_num_loops if is_plt else 1,  # type: ignore[union-attr]
        load=LOAD.format(argument=""),
        load_remote=LOAD.format(argument=", trust_remote_code=True"),
        table="\n".join(f"| {what} | {value} |" for what, value in _shape(config, parameters).items()),
        origin=f"[{source}](https://huggingface.co/{source}), commit `{revision}`," if revision else f"`{source}`",
        version=__version__,
        notes="".join(f" {note}" for note in notes),
        license=f"Weights: {license_name or license}, as stated by their source." if license else NO_LICENSE,
        code="Code: Apache-2.0." if is_plt else "",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text.rstrip()}\n").content


def license_of(folder: Path) -> dict[str, str]:
    """Returns the LICENSE_FIELDS that the card in `folder` contains."""
    try:
        found = card_fields(inside(folder, "README.md"), LICENSE_FIELDS)
    except (OSError, ValueError, yaml.YAMLError):  # no card, or an unreadable one
        return {}
    return {field: text for field, text in found.items() if isinstance(text, str)}


def _shape(config: IQuestPLTCoderConfig | LlamaConfig, parameters: int) -> dict[str, str]:
    rows = {
        "parameters": f"{parameters:,}",
        "dtype": dtype_name(config.dtype),
        "layers × width": f"{config.num_hidden_layers} × {config.hidden_size:,}",
        "query heads, key/value heads": f"{config.num_attention_heads}, {config.num_key_value_heads}",
        "head size": f"{config.head_dim}",
        "MLP width": f"{config.intermediate_size:,}",
        "vocabulary": f"{config.vocab_size:,}",
        "positions": f"{config.max_position_embeddings:,}",
    }
    if isinstance(config, IQuestPLTCoderConfig):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
        window = config.plt_window_size[0]
        further = model.kv_bytes_per_sequence(window, num_loops=2) - model.kv_bytes_per_sequence(window, num_loops=1)
        rows |= {
            "loops": f"{config.plt_num_loops}, with a window of {window} tokens",
            "cache per token": f"{model.kv_bytes_per_token():,} bytes"
            + (", for any number of loops" if model.config.plt_loop_attention != "own" else ""),
            "cache per additional loop and sequence": f"{further:,} bytes",
        }
    return rows
