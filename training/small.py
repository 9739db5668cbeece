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
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from ..utils.scripts import NO_CHECKPOINT, RESUME_CHECKPOINT, one_line_errors
from . import data
from .divergence import DivergedError, Guard
from .export import export
from .interrupts import saving_on_interrupt
from .kernels import chunked_cross_entropy
from .optimizer import make_optimizer
from .progress import Progress
from .recipe import MAX_GRAD_NORM, Recipe, build_model, prepare
from .run_files import last_checkpoint, write_json


def decode_in_bf16(model: PreTrainedModel, input_ids: torch.Tensor, **kwargs) -> Any:
    """Runs the decoder on ids (B, T) in bf16, with gradients for its float32 weights."""
    weights = {name: param.bfloat16() for name, param in model.model.named_parameters()}
    return functional_call(model.model, weights, (input_ids,), {"use_cache": False, **kwargs})


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
        outputs = decode_in_bf16(model, input_ids, **inputs)
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
            max_grad_norm=MAX_GRAD_NORM,
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
    from .compiled import train_small

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

    with one_line_errors(DivergedError, advice=NO_CHECKPOINT if args.gpu else RESUME_CHECKPOINT):
        if args.gpu:
            train_on_gpu(args)
            return
        if args.export is None:
            train(args.out, Recipe.continued(args.init, args.tokens) if args.init else Recipe(tokens=args.tokens))
        folder = args.export or args.out / "export"
        export(args.out, folder)
        print(f"The model is in {folder}.", flush=True)


if __name__ == "__main__":
    main()
