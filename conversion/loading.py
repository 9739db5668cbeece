# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Loads a model for inference."""

import torch
from transformers import PreTrainedTokenizerBase

from ..modeling_plt import IQuestPLTCoderForCausalLM
from . import layout, mlx_folder
from .convert import FLOATS
from .download import FILES, fetch
from .tokenizer import load_tokenizer


def load_model(
    path: str, revision: str | None = None, dtype: str | None = None, device: str | None = None
) -> tuple[IQuestPLTCoderForCausalLM, PreTrainedTokenizerBase]:
    """
    Loads a model from a folder or the Hub, in evaluation mode, and its tokenizer. `dtype` is a key of `FLOATS`; by
    default the weights keep their dtype. `device` defaults to CUDA if available. Raises ValueError if the model or the
    tokenizer is missing.
    """
    small = [name for name in FILES if "safetensors" not in name]
    folder, _ = fetch(path, revision, files=small, check_hashes=False)  # too slow at every start
    layout.read_plt_config(folder)
    mlx_folder.refuse_quantized(folder)
    layout.check_json(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(
            f"{path} has no tokenizer.json. Use `iquest-plt convert`, which makes one from tokenizer.model."
        )
    folder, _ = fetch(path, revision, check_hashes=False)
    kind = FLOATS[dtype] if dtype else "auto"
    with layout.refusals("The weights cannot be loaded"):
        model, found = IQuestPLTCoderForCausalLM.from_pretrained(folder, dtype=kind, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            raise ValueError(
                f"The weights do not fit the model ({what}: {next(iter(found[what]))}). Run `iquest-plt verify`."
            )
    try:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ValueError(f"The model cannot be moved to {device}: {error}") from error
    return model.eval(), tokenizer
