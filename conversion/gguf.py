# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a `.gguf` file of Llama's architecture, as Transformers does, into a folder that can be converted."""

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from .layout import refusals


@contextlib.contextmanager
def as_folder(path: Path) -> Iterator[Path]:
    """
    A temporary folder with the model, its weights dequantized to float32, and its tokenizer and chat template.

    Raises:
        ValueError: if the file is not there, not GGUF, or not a Llama, and if the package `gguf` is missing.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("Reading a .gguf file needs the package gguf: pip install gguf")
    architecture = _architecture(path)
    if architecture != "llama":
        raise ValueError(f"{path.name} holds a model of the architecture {architecture!r}: a PLT is made from a Llama.")
    with tempfile.TemporaryDirectory(prefix="iquest-plt-gguf-") as name:
        with refusals(path.name):
            model = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # The weights are plain numbers now. Otherwise the library refuses to save them.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
        del model
        yield Path(name)


def _architecture(path: Path) -> str:
    """What the file's metadata calls its architecture."""
    from gguf import GGUFReader

    with refusals(f"{path.name} is not a GGUF file"):
        field = GGUFReader(path).fields["general.architecture"]
        return bytes(field.parts[field.data[0]]).decode()
