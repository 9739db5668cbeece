# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by the training scripts: model, data, and training that resumes. `options.py` has the options."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from datasets import Dataset, load_dataset
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from ..conversion.layout import check_json, read_plt_config
from ..conversion.tokenizer import load_tokenizer
from ..utils.files import visible_files
from ..utils.scripts import one_line_errors
from ..utils.terminal import printable
from .divergence import DivergedError, Guard
from .interrupts import saving_on_interrupt
from .progress import Progress
from .run_files import last_checkpoint, read_json, write_json


def training_arguments(args: argparse.Namespace) -> dict:
    """Returns the options as arguments of `TrainingArguments`."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(args.out / "logs")
    return {
        "output_dir": str(args.out),
        "num_train_epochs": args.epochs,
        "max_steps": args.steps or -1,
        "per_device_train_batch_size": args.batch,
        "per_device_eval_batch_size": args.batch,
        "gradient_accumulation_steps": args.accumulate,
        "learning_rate": args.lr,
        "warmup_steps": 0.05,  # as a share of the run
        "bf16": args.bf16,
        "use_cpu": not torch.accelerator.is_available(),  # otherwise Transformers refuses bf16
        "gradient_checkpointing": args.checkpointing,
        "ddp_find_unused_parameters": False,  # see `freeze_unused_gates`
        "eval_strategy": "steps" if args.heldout is not None or args.heldout_share else "no",
        "eval_steps": args.save_steps,
        "prediction_loss_only": True,
        "save_steps": args.save_steps,
        "save_total_limit": 2,
        "logging_steps": args.log_steps,
        "logging_nan_inf_filter": False,  # so that Guard sees NaN
        "report_to": "tensorboard",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "seed": args.seed,
    }


def load_model(args: argparse.Namespace, **kwargs) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads model and tokenizer. Raises ValueError if the folder has no PLT or tokenizer, or --length does not fit."""
    config = read_plt_config(args.model)
    if not 2 <= args.length <= config.max_position_embeddings:
        raise ValueError(f"--length must be 2 to {config.max_position_embeddings} for this model, got {args.length}.")
    check_json(args.model)
    tokenizer = load_tokenizer(args.model, AutoTokenizer)
    if tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer.json. `iquest-plt convert` makes one from tokenizer.model.")
    # Set in the configuration, so that it is saved with the trained weights.
    kwargs["plt_num_loops"] = config.check_num_loops(args.num_loops)
    model = AutoModelForCausalLM.from_pretrained(args.model, **{"dtype": torch.float32, **kwargs})
    return model, tokenizer


def load_data(path: Path, field: str, cache: Path) -> Dataset:
    """
    Loads the `field` of JSON Lines, or text files as one document each. Folders are searched, without hidden files.
    Raises ValueError if the files cannot be read or lack the field.
    """
    files = visible_files(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} cannot be read: it contains no files.")
    kind = {"path": "text", "sample_by": "document"}
    if all(file.suffix == ".jsonl" for file in files):
        kind = {"path": "json"}
        files = [file for file in files if not _is_blank(file)]
        if not files:
            raise ValueError(f"{path} cannot be read: it is empty.")
    try:
        data = load_dataset(**kind, data_files=[str(file) for file in files], split="train", cache_dir=str(cache))
    except Exception as error:  # the reason is in the cause
        reason = str(error.__cause__ or error)
        reason = "its lines have no fields." if "corresponds to no data" in reason else reason
        raise ValueError(f"{path} cannot be read: {reason}") from error
    if field not in data.column_names:
        raise ValueError(f"{path} has no field {field!r}, only {', '.join(data.column_names)}.")
    return data


def _is_blank(file: Path) -> bool:
    """Returns True if all lines of a file are blank; False if the file does not exist."""
    if not file.is_file():
        return False
    with file.open("rb") as lines:
        return not any(line.strip() for line in lines)


def split_data(args: argparse.Namespace, field: str) -> tuple[Dataset, Dataset | None]:
    """Loads the training data, and the held-out data or None. Raises ValueError if the data cannot be split."""
    data = load_data(args.data, field, args.out / "cache")
    if args.heldout is not None:
        return data, load_data(args.heldout, field, args.out / "cache")
    if args.heldout_share == 0:
        return data, None
    if not 0 < args.heldout_share < 1 or len(data) < 2:
        raise ValueError(
            "Holding out a share needs at least two documents and a share between 0 and 1. "
            "Set --heldout or --heldout-share."
        )
    parts = data.train_test_split(args.heldout_share, seed=args.seed)
    return parts["train"], parts["test"]


def freeze_unused_gates(model: PreTrainedModel) -> bool:
    """
    Freezes the gates if they are unused: with one loop, or without gated attention. With one loop, it also freezes a
    learned shift. DDP would otherwise wait for their gradients. Returns True if the gates were frozen.
    """
    has_one_loop = model.config.plt_num_loops == 1
    if not has_one_loop and model.config.plt_loop_attention == "gated":
        return False
    for name, parameter in model.named_parameters():
        if ".plt_gate." in name or (has_one_loop and ".shift_mix." in name):
            parameter.requires_grad_(False)
    return True


def train(trainer: Trainer, args: argparse.Namespace) -> dict[str, torch.Tensor] | None:
    """
    Trains to the end, from the last checkpoint if there is one, and returns the weights as `gather` does. Raises
    ValueError if the checkpoint has other settings, or if accelerate would ignore the configured sharding.
    """
    for name, is_on in (("FSDP", trainer.is_fsdp_enabled), ("DEEPSPEED", trainer.is_deepspeed_enabled)):
        if os.environ.get(f"ACCELERATE_USE_{name}") == "true" and not is_on:
            raise ValueError(f"Without an accelerator, accelerate runs DDP instead of {name}. Use ddp.yaml.")
    is_first, processes = trainer.is_world_process_zero(), trainer.args.world_size
    settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
    settings["num_processes"] = str(processes)
    with trainer.args.main_process_first(desc="settings"):
        file, checkpoint = args.out / "settings.json", last_checkpoint(args.out)
        if checkpoint is not None:
            before = {"num_processes": "1", **read_json(file)}
            changed = [f"--{name.replace('_', '-')}" for name in settings if settings[name] != before.get(name)]
            if changed:
                problem = f"{args.out} has a run with a different {', '.join(changed)}. Choose a new folder."
                if "--steps" in changed or "--epochs" in changed:
                    problem += (
                        " A run cannot get longer, because its learning rate falls to 0 at the planned last step. To "
                        "train on, make the result the --model of a new run."
                    )
                raise ValueError(problem)
            results = [args.out / name for name in ("model", "adapter") if (args.out / name).is_dir()]
            if args.steps and results and int(checkpoint.name.split("-")[1]) >= args.steps:
                raise ValueError(f"This run is complete, and {results[0]} is its result. Choose a new folder.")
        if is_first:
            write_json(file, settings)
    frozen = freeze_unused_gates(trainer.model)
    if is_first:
        if checkpoint is not None:
            print(f"Resuming from {checkpoint.name}", flush=True)
        if frozen:
            print("This configuration does not use the gates, so they are not trained.", flush=True)
        rows = trainer.train_dataset["input_ids"]
        tokens_per_step = sum(map(len, rows)) / len(rows) * args.batch * args.accumulate * processes
        bytes_per_token = _bytes_per_token(trainer.eval_dataset or trainer.train_dataset, trainer.processing_class)
        if bytes_per_token is None:
            raise ValueError(f"{args.heldout or args.data} has no tokens that count in the loss.")
        trainer.add_callback(Progress(tokens_per_step, bytes_per_token))
    trainer.add_callback(Guard())
    trainer.pop_callback(PrinterCallback)  # replaced by Progress
    with saving_on_interrupt(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return gather(trainer)


def _bytes_per_token(data: Dataset, tokenizer) -> float | None:
    """Returns the mean UTF-8 bytes of the tokens that count in the loss; None if there are none."""
    field = "labels" if "labels" in data.column_names else "input_ids"
    rows = [[token for token in row if token != -100] for row in data[field]]
    tokens = sum(map(len, rows))
    return sum(len(text.encode()) for text in tokenizer.batch_decode(rows)) / tokens if tokens else None


def gather(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """Returns the complete trained weights on the first process and None on the others. All processes must call it."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights if trainer.is_world_process_zero() else None


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes the folder OUT/model, in the dtype of --model, with `weights` if given."""
    config = read_plt_config(args.model)
    for name in ("use_cache", "bos_token_id", "eos_token_id", "pad_token_id"):  # the trainer changes these
        setattr(model.config, name, getattr(config, name))
    model.to(config.dtype or torch.float32)
    # FSDP2 replaces the model's class by its own; PyTorch's source would be saved as the model's code.
    model.__class__ = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    if weights is not None:
        tied = model.all_tied_weights_keys  # saved under the name of the weight they share
        weights = {name: weight.to(model.dtype) for name, weight in weights.items() if name not in tied}
    model.save_pretrained(args.out / "model", state_dict=weights)
    tokenizer.save_pretrained(args.out / "model")
    print_result(args.out / "model")


def print_result(folder: Path) -> None:
    print(f"The result is in {printable(folder)}", flush=True)


def run(script: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Runs a script. Expected errors, a diverged loss and Ctrl-C end the program with a one-line message."""

    def advice() -> str:
        if any(args.out.glob("checkpoint-*")):
            return f"Run the same command again to resume from the last checkpoint in {printable(args.out)}."
        return "There is no checkpoint yet: the same command starts from the beginning."

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        logging.disable_progress_bar()
    with one_line_errors(DivergedError, advice=advice):
        joined = TrainingArguments(**training_arguments(args))  # noqa: F841 (joins the process group)
        script(args)
    PartialState().destroy_process_group()
