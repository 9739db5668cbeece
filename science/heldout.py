# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""A trained model and the rows of its held-out files, for experiments that need no training."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..tokenization import bpe
from ..training.data import token_stream
from ..training.evaluate import heldout_documents
from ..training.run_files import read_json
from .cells import ROW
from .measure import bits_per_byte_of_nats, heldout_rows


@dataclass
class Heldout:
    """
    Attributes:
        rows (N, T): token ids. The first of each row is only context.
        bytes_per_token: of the whole held-out text.
    """

    rows: torch.Tensor
    bytes_per_token: float

    def units(self, num_rows: int) -> float:
        """Returns the factor from nats summed over `num_rows` rows to bits per byte."""
        return bits_per_byte_of_nats(num_rows * (self.rows.shape[1] - 1), self.bytes_per_token)


def load_model(folder: Path, min_loops: int = 2) -> IQuestPLTCoderForCausalLM:
    """
    Loads a model in float32.

    Raises:
        ValueError: if it was trained for fewer than `min_loops` loops. With one, no loops can be compared.
    """
    model = IQuestPLTCoderForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
    if model.config.plt_num_loops < min_loops:
        raise ValueError(f"{folder} was trained for one loop. Choose a model with two or more.")
    return model


def load_heldout(folder: Path, model: IQuestPLTCoderForCausalLM, count: int | None = None) -> Heldout:
    """
    Cuts the held-out files of a model into rows of 1,024 tokens, or fewer if the model takes only fewer. The files are
    those of `data_manifest.json` in the model's folder or the one above.

    Args:
        count: choose this many rows, spread evenly; by default all.

    Raises:
        ValueError: if there is no manifest.
        FileNotFoundError: if the files are not installed in the versions of the manifest.
    """
    manifests = [path / "data_manifest.json" for path in (folder, folder.resolve().parent)]
    manifest = next((path for path in manifests if path.exists()), manifests[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [document.text for document in heldout_documents(read_json(manifest))]
    stream = token_stream(bpe.encode_documents(tokenizer, texts), tokenizer.eos_token_id)
    rows = heldout_rows(stream, min(ROW, model.config.max_position_embeddings), model.device)
    if count is not None and count < len(rows):
        rows = rows[torch.linspace(0, len(rows) - 1, count).long()]
    return Heldout(rows, sum(len(text.encode()) for text in texts) / len(stream))
