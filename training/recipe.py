# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The recipe of the small PLT, its data and its new model. `small.py` and `compiled.py` train it."""

import lzma
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..configuration_plt import IQuestPLTCoderConfig
from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..tokenization import bpe
from . import data
from .export import tokens_of
from .kernels import register_attention
from .run_files import read_json, write_json


MAX_GRAD_NORM = 1.0  # in all runs


@dataclass
class Recipe:
    """All settings that determine the result. Lengths are in tokens."""

    model: dict = field(
        default_factory=lambda: {
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
        }
    )
    packages: tuple[str, ...] = ()  # names in `data.PACKAGES`, in addition to the standard library
    wheels: tuple[str, ...] = ()  # keys of `data.WHEELS`; nothing of them is held out
    initial: str | None = None  # folder of an earlier model, whose weights and tokenizer this run starts from
    vocab_size: int = bpe.VOCAB_SIZE
    heldout_share: float = data.HELDOUT_SHARE
    tokens: int = 11_200_000
    tokens_per_step: int = 4096
    row: int = 2048
    early_row: int = 1024  # length of rows before the last part of the run: cheaper, and long rows need less training
    long_row_share: float = 0.25  # last part of the run, with rows of full length
    warmup_steps: int = 50
    decay_share: float = 0.75  # last part of the run, where the learning rate falls linearly to 0
    muon_lr: float = 0.02
    adamw_lr: float = 0.005
    embedding_lr: float = 0.01
    embedding_std: float = 0.5
    weight_decay: float = 0.1
    unlikelihood_weight: float = 0.0  # of the loss of `unlikelihood.py`, which only that script uses
    save_steps: int = 100
    eval_steps: int = 200
    eval_rows: int = 16
    log_steps: int = 10
    seed: int = 0

    @classmethod
    def continued(cls, initial: str | Path, tokens: int = 7_600_000) -> "Recipe":
        """
        Returns the recipe of a further stage: more data, and half the learning rates of a new model. Each stage sees
        the rows in another order.
        """
        return cls(
            wheels=tuple(data.WHEELS),
            initial=str(initial),
            tokens=tokens,
            tokens_per_step=8192,
            decay_share=0.9,
            muon_lr=cls.muon_lr / 2,
            adamw_lr=cls.adamw_lr / 2,
            embedding_lr=cls.embedding_lr / 2,
            seed=tokens_of(Path(initial)),
        )

    @classmethod
    def on_gpu(cls, initial: str | Path, tokens: int) -> "Recipe":
        """Returns the recipe of a further stage on a GPU: large steps and the learning rates of a new model."""
        continued = cls.continued(initial, tokens)
        return replace(
            continued,
            tokens_per_step=65536,
            early_row=cls.row,
            muon_lr=cls.muon_lr,
            adamw_lr=cls.adamw_lr,
            embedding_lr=cls.embedding_lr,
        )

    @classmethod
    def without_repetition(cls, initial: str | Path, tokens: int) -> "Recipe":
        """Returns the recipe of the last stage (`unlikelihood.py`), with low learning rates."""
        return replace(
            cls.continued(initial, tokens),
            tokens_per_step=4096,
            muon_lr=cls.muon_lr / 60,
            adamw_lr=cls.adamw_lr / 60,
            embedding_lr=cls.embedding_lr / 60,
            warmup_steps=10,
            unlikelihood_weight=1.0,
            save_steps=50,
        )

    @property
    def steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def decay_start(self) -> int:
        return round(self.steps * (1 - self.decay_share))

    def lr_factor(self, step: int) -> float:
        """Returns the factor of the groups' learning rates: warm-up, constant, linear decay."""
        decay = (self.steps - step) / max(1, self.steps - self.decay_start)
        return max(0.0, min(1.0, (step + 1) / self.warmup_steps, decay))


def prepare(
    out: Path, recipe: Recipe, stdlib: Path | None = None
) -> tuple[PreTrainedTokenizerBase, np.ndarray, np.ndarray, dict]:
    """Makes the data if they do not exist, and loads them: see `load_data`."""
    make_data(out, recipe, stdlib)
    return load_data(out)


def make_data(out: Path, recipe: Recipe, stdlib: Path | None = None) -> None:
    """Makes the data if they do not exist."""
    done = out / "data_manifest.json"
    if not done.exists():
        out.mkdir(parents=True, exist_ok=True)
        print("Collecting and splitting the sources ...", flush=True)
        documents = data.split(data.collect(stdlib, recipe.packages), recipe.heldout_share)
        if recipe.wheels:
            documents += data.without_overlap(data.collect_wheels(recipe.wheels, out / "wheels"), documents)
        texts = {name: [d.text for d in documents if d.split == name] for name in ("train", "heldout")}
        if not all(texts.values()):
            raise ValueError("The split leaves no files to train on, or none to hold out. Use more files.")
        if recipe.initial is not None:
            tokenizer = AutoTokenizer.from_pretrained(recipe.initial)
        else:
            print(f"Training the tokenizer on {len(texts['train'])} files ...", flush=True)
            tokenizer = bpe.train(texts["train"], recipe.vocab_size)
        bpe.save(tokenizer, out / "tokenizer")
        manifest = data.manifest(documents, recipe.packages, recipe.wheels)
        for name in texts:
            stream = data.token_stream(bpe.encode_documents(tokenizer, texts[name]), tokenizer.eos_token_id)
            np.save(out / f"{name}.npy", stream)
            manifest["totals"][name]["tokens"] = len(stream)
        write_json(done, manifest)  # written last: marks the other files as complete


def load_data(folder: Path) -> tuple[PreTrainedTokenizerBase, np.ndarray, np.ndarray, dict]:
    """Returns the tokenizer, the training and held-out streams, and the data manifest."""
    manifest = read_json(folder / "data_manifest.json")
    streams = [load_stream(folder, name) for name in ("train", "heldout")]
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), *streams, manifest


def load_stream(folder: Path, name: str) -> np.ndarray:
    """
    Loads the token stream NAME.npy, or NAME.npy.xz if only that exists. Raises ValueError, naming the file, if it is
    missing or damaged.
    """
    file = folder / f"{name}.npy"
    compressed = file.with_suffix(".npy.xz")
    try:
        if compressed.exists() and not file.exists():
            with lzma.open(compressed) as content:
                return np.load(content)
        return np.load(file)
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        advice = "Remove data_manifest.json beside it to make the data again."
        raise ValueError(f"{file} cannot be read ({error}). {advice}") from error


def build_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, attention: str | None = None
) -> IQuestPLTCoderForCausalLM:
    """
    Makes a float32 model, newly initialised or with the weights of `initial`. `attention` is its attention kernel; by
    default it uses the training kernels for a CPU.
    """
    options: dict[str, Any] = {"attn_implementation": attention or register_attention(), "dtype": torch.float32}
    if recipe.initial is not None:
        return IQuestPLTCoderForCausalLM.from_pretrained(recipe.initial, **options)
    fields = {
        "vocab_size": recipe.vocab_size,
        "plt_num_loops": 2,
        "plt_window_size": [64, 0],
        "plt_emb_scale": 0.707,
        "plt_hidden_scale": 0.053,
        "plt_gate_use_hidden_states": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(bpe.STOP_TOKENS),
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = IQuestPLTCoderConfig(**fields | recipe.model)
    torch.manual_seed(recipe.seed)
    model = IQuestPLTCoderForCausalLM._from_config(config, **options)
    with torch.no_grad():
        # Layers start as the identity, and embeddings are large compared with the layers' first outputs: the loss then
        # falls much faster at the start.
        model.model.embed_tokens.weight.normal_(std=recipe.embedding_std)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


__all__ = ["MAX_GRAD_NORM", "Recipe", "build_model", "load_data", "load_stream", "make_data", "prepare"]
