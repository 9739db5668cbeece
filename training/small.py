# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the small PLT on the Python standard library. Run the same command again to resume:

    python -m iquest_plt.training.small --out runs/small

Collects and splits the sources, trains the tokenizer and then the model with Transformers' Trainer, evaluates on the
held-out files, and exports a model folder to OUT/export. A resumed run has the same losses as an uninterrupted one.
`--tokens N` sets the length; it may be changed on resuming until the learning rate starts to decay. `--init FOLDER`
trains on from an earlier model, with its tokenizer and more data: wheels with permissive licences, downloaded by pip.
The held-out files are the same. `--export FOLDER` only exports the last checkpoint, finished or not.

To see the logs: `tensorboard --logdir OUT/logs`.
"""

import argparse
import lzma
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.utils.data import SequentialSampler
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from ..configuration_plt import IQuestPLTCoderConfig
from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..tokenization import bpe
from . import data
from .divergence import DivergedError, Guard
from .export import export, tokens_of
from .interrupts import saving_on_interrupt
from .kernels import chunked_cross_entropy, register_attention
from .optimizer import make_optimizer
from .progress import Progress
from .run_files import last_checkpoint, read_json, write_json


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


class SmallTrainer(Trainer):
    """Trainer with float32 weights, bf16 arithmetic, and the recipe's optimizer, schedule and row order."""

    def __init__(self, recipe: Recipe, **kwargs):
        super().__init__(**kwargs)
        self.recipe = recipe
        self.guard = Guard(memory=0.95)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer = make_optimizer(
            self.model,
            self.recipe.muon_lr,
            self.recipe.adamw_lr,
            self.recipe.embedding_lr,
            self.recipe.weight_decay,
        )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.recipe.lr_factor)
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)  # PackedRows shuffles each pass

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Returns the mean cross-entropy in nats per token. Weights are cast once per step; autocast would cast them in
        every call. `inputs` may contain further arguments of the decoder.
        """
        input_ids = inputs.pop("input_ids")
        if model.training and self.state.global_step < self.recipe.steps * (1 - self.recipe.long_row_share):
            input_ids = input_ids.view(-1, min(self.recipe.early_row, self.recipe.row))
        weights = {name: param.bfloat16() for name, param in model.model.named_parameters()}
        outputs = functional_call(model.model, weights, (input_ids,), {"use_cache": False, **inputs})
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, input_ids)
        else:
            loss = self.token_loss(model, outputs.last_hidden_state, input_ids)
        if model.training:
            self.guard.check(loss.item(), self.state.global_step)
        return (loss, {}) if return_outputs else loss

    def token_loss(self, model: PreTrainedModel, states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss of the next tokens, from states (batch, time, hidden)."""
        states, labels = states[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()
        return chunked_cross_entropy(states, model.lm_head.weight.bfloat16(), labels) / len(labels)


def prepare(
    out: Path, recipe: Recipe, stdlib: Path | None = None
) -> tuple[PreTrainedTokenizerBase, np.ndarray, np.ndarray, dict]:
    """Makes or loads the data. Returns the tokenizer, the training and held-out streams, and the data manifest."""
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
    manifest = read_json(done)
    streams = [load_stream(out, name) for name in ("train", "heldout")]
    return AutoTokenizer.from_pretrained(out / "tokenizer"), *streams, manifest


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
    options = {"attn_implementation": attention or register_attention(), "dtype": torch.float32}
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


def train(
    out: str | Path,
    recipe: Recipe,
    stdlib: Path | None = None,
    callbacks: tuple = (),
    prepared: str | Path | None = None,
    trainer_class: Callable[..., SmallTrainer] = SmallTrainer,
) -> SmallTrainer:
    """
    Trains to the end of the recipe, from the last checkpoint in `out` if there is one, and returns the trainer. The
    data come from the folder `prepared`, which several runs may share; default: `out`.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, train_stream, heldout_stream, manifest = prepare(Path(prepared or out), recipe, stdlib)
    write_json(out / "recipe.json", asdict(recipe))
    rows_per_step = recipe.tokens_per_step // recipe.row
    rows = data.PackedRows(train_stream, recipe.row, recipe.steps * rows_per_step, recipe.seed)
    stride = max(1, (len(heldout_stream) - recipe.row) // recipe.eval_rows)
    sample = [
        {"input_ids": heldout_stream[start : start + recipe.row].astype(np.int64).tolist()}
        for start in range(0, len(heldout_stream) - recipe.row, stride)
    ]
    model = build_model(recipe, tokenizer)
    heldout = manifest["totals"]["heldout"]
    print(f"{model.num_parameters():,} parameters, {recipe.steps} steps, {len(train_stream):,} tokens", flush=True)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "logs")
    trainer = trainer_class(
        recipe,
        model=model,
        train_dataset=rows,
        eval_dataset=sample,
        callbacks=[Progress(recipe.tokens_per_step, heldout["bytes"] / heldout["tokens"]), *callbacks],
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=recipe.steps,
            per_device_train_batch_size=rows_per_step,
            per_device_eval_batch_size=rows_per_step,
            prediction_loss_only=True,
            label_names=["input_ids"],
            max_grad_norm=1.0,
            logging_steps=recipe.log_steps,
            eval_strategy="steps",
            eval_steps=recipe.eval_steps,
            save_steps=recipe.save_steps,
            save_total_limit=2,
            report_to="tensorboard",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            seed=recipe.seed,
        ),
    )
    trainer.pop_callback(PrinterCallback)  # replaced by Progress
    checkpoint = last_checkpoint(out)
    if checkpoint is not None:
        print(f"Resuming from {checkpoint.name}", flush=True)
    with saving_on_interrupt(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def train_on_gpu(args: argparse.Namespace) -> None:
    from .compiled import train_small  # it imports this module

    if args.init is None:
        raise ValueError("`--gpu` trains on from an earlier model. Pass `--init FOLDER`.")
    if not torch.cuda.is_available():
        raise ValueError("There is no CUDA device. Leave out `--gpu`.")
    recipe = Recipe.on_gpu(args.init, args.tokens)
    folder = train_small(args.out, recipe, torch.device("cuda"), args.minutes)
    print(f"The weights are in {folder}. `--export FOLDER` evaluates them and makes a model folder.", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/small"), help="folder of the run")
    parser.add_argument("--tokens", type=int, default=Recipe.tokens, help="total number of training tokens")
    parser.add_argument("--init", type=Path, metavar="FOLDER", help="train on from this model, with more data")
    parser.add_argument("--gpu", action="store_true", help="train on from --init on a GPU, compiled and in large steps")
    parser.add_argument("--minutes", type=float, help="with --gpu: train on fewer tokens if that takes longer")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="only evaluate and export the last checkpoint")
    args = parser.parse_args(argv)
    try:
        if args.gpu:
            train_on_gpu(args)
            return
        if args.export is None:
            train(args.out, Recipe.continued(args.init, args.tokens) if args.init else Recipe(tokens=args.tokens))
        folder = args.export or args.out / "export"
        export(args.out, folder)
        print(f"The model is in {folder}.", flush=True)
    except (ValueError, OSError, DivergedError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from error
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to resume from the last checkpoint.", file=sys.stderr)
        raise SystemExit(130) from None  # as shells report Ctrl-C


if __name__ == "__main__":
    main()
