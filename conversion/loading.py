# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Loads a model to run it."""

import torch
from transformers import PreTrainedTokenizerBase

from ..modeling_plt import IQuestPLTCoderForCausalLM
from . import layout
from .convert import FLOATS
from .download import FILES, fetch
from .tokenizer import load_tokenizer


def load_model(
    path: str, revision: str | None = None, dtype: str | None = None, device: str | None = None
) -> tuple[IQuestPLTCoderForCausalLM, PreTrainedTokenizerBase]:
    """
    The model of a folder or of a repository on the Hub, in evaluation mode, and its tokenizer. `dtype` is a key of
    `FLOATS`; by default weights stay as stored. Without `device` it is CUDA where there is CUDA. Raises ValueError if
    there is no model, or no tokenizer.
    """
    small = [name for name in FILES if "safetensors" not in name]
    folder, _ = fetch(path, revision, files=small, check_hashes=False)  # `convert` checks; at every start it takes long
    layout.read_plt_config(folder)
    layout.check_json(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"{path} has no tokenizer.json: see `iquest-plt convert`, which makes one of tokenizer.model.")
    folder, _ = fetch(path, revision, check_hashes=False)
    kind = FLOATS[dtype] if dtype else "auto"
    with layout.refusals("The weights cannot be loaded"):
        model, found = IQuestPLTCoderForCausalLM.from_pretrained(folder, dtype=kind, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            raise ValueError(f"The weights do not fit ({what}: {next(iter(found[what]))}): see `iquest-plt verify`.")
    try:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ValueError(f"The model cannot be moved to {device}: {error}") from error
    return model.eval(), tokenizer
