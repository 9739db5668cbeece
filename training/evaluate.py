# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Measures held-out bits per byte of a model, and of `xz -9` on the same files."""

import lzma
import math
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..tokenization import bpe
from . import data


WINDOW = 2048  # tokens the model sees at a time
STRIDE = 1024  # after a file's first window, each token has at least WINDOW - STRIDE tokens of context


@torch.no_grad()
def document_bits(
    model: PreTrainedModel,
    ids: list[int],
    end_token_id: int,
    num_loops: int | None = None,
    window: int = WINDOW,
    stride: int = STRIDE,
) -> float:
    """Returns the bits needed to encode one document and its end token.

    The context starts with an end token, as in training. Long documents are scored in windows that overlap by
    `window - stride` tokens. Every token is scored once, in the first window that contains it.
    """
    tokens = torch.tensor([end_token_id, *ids, end_token_id], device=model.device)
    nats, scored = 0.0, 1  # tokens[:scored] are done
    for start in range(0, len(tokens), stride):
        seen = tokens[start : start + window]
        fresh = start + len(seen) - scored
        logits = model(seen[None], use_cache=False, logits_to_keep=fresh + 1, num_loops=num_loops).logits[0, :-1]
        nats += F.cross_entropy(logits.float(), seen[-fresh:], reduction="sum").item()
        scored += fresh
        if scored == len(tokens):
            break
    return nats / math.log(2)


def bits_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], num_loops: int | None = None
) -> float:
    """Returns the bits of all `texts`, including end tokens, divided by their UTF-8 bytes."""
    encoded = bpe.encode_documents(tokenizer, texts)
    bits = sum(document_bits(model, ids, tokenizer.eos_token_id, num_loops) for ids in encoded)
    return bits / sum(len(text.encode()) for text in texts)


def xz_bits_per_byte(texts: list[str]) -> dict[str, float]:
    """Measures `xz -9` on all files together ("together", the harder baseline) and on each file ("per_file")."""
    contents = [text.encode() for text in texts]
    size = sum(map(len, contents))
    together = len(lzma.compress(b"".join(contents), preset=9))
    per_file = sum(len(lzma.compress(content, preset=9)) for content in contents)
    return {"together": 8 * together / size, "per_file": 8 * per_file / size}


def heldout_documents(manifest: dict, stdlib: str | Path | None = None) -> list[data.Document]:
    """Reads the held-out files of a manifest.

    Raises FileNotFoundError if this Python's library or packages do not contain exactly these files.
    """
    packages = [package["name"] for package in manifest.get("packages", [])]
    found = {document.path: document for document in data.collect(stdlib, packages)}
    documents = []
    for entry in manifest["files"]:
        if entry["split"] == "heldout":
            document = found.get(entry["path"])
            if document is None or document.sha256 != entry["sha256"]:
                versions = [f"{package['name']} {package['version']}" for package in manifest.get("packages", [])]
                raise FileNotFoundError(
                    f"{entry['path']} differs from the file that was held out. Evaluate with "
                    + ", ".join([f"Python {manifest['python_version']}", *versions])
                )
            documents.append(document)
    return documents
