# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains all weights of a PLT on text, with Transformers' Trainer. `iquest-plt finetune --help` describes it.
"""

import argparse
import copy
from pathlib import Path

from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from ..tokenization import bpe
from .common import load_model, run, save, split_data, train, training_arguments
from .options import parse_finetune


def cut(documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """
    Cuts documents into pieces of at most `length` tokens (`input_ids`). Each document ends with the end token. Raises
    ValueError if there is no text.
    """

    def encode(batch):
        if not all(isinstance(text, str) for text in batch["text"]):
            raise ValueError("The field 'text' must be a string on every line.")
        rows = [[*ids, tokenizer.eos_token_id] for ids in bpe.encode_documents(tokenizer, batch["text"])]
        pieces = [row[start : start + length] for row in rows for start in range(0, len(row), length)]
        return {"input_ids": [piece for piece in pieces if len(piece) > 1]}  # a single token predicts nothing

    pieces = documents.map(encode, batched=True, remove_columns=documents.column_names)
    if len(pieces) == 0:
        raise ValueError("There is no text in the data.")
    return pieces


def _cut_file(path: Path, documents: Dataset, tokenizer, length: int) -> Dataset:
    """Calls `cut`, and adds the file's name to its error."""
    try:
        return cut(documents, tokenizer, length)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def make_trainer(args: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Trainer:
    """Makes the trainer of `model` on the data. Raises ValueError if the data are not usable."""
    if args.padded and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise ValueError("--padded needs a padding token other than the end token, which this tokenizer lacks.")
    arguments = TrainingArguments(**training_arguments(args))
    with arguments.main_process_first(desc="data"):  # the other processes use its cache
        data, heldout = split_data(args, "text")
        data = _cut_file(args.data, data, tokenizer, args.length)
        heldout = heldout and _cut_file(args.heldout or args.data, heldout, tokenizer, args.length)
    collator = DataCollatorWithFlattening()
    if args.padded:  # on the right: padding before the first token would have to predict it
        right = copy.deepcopy(tokenizer)
        right.padding_side = "right"
        collator = DataCollatorForLanguageModeling(right, mlm=False)
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=heldout,
        data_collator=collator,
        processing_class=tokenizer,
    )


def finetune(args: argparse.Namespace) -> Trainer:
    """Trains and saves the model."""
    model, tokenizer = load_model(args)
    trainer = make_trainer(args, model, tokenizer)
    weights = train(trainer, args)
    if weights is not None:
        save(model, tokenizer, args, weights)
    return trainer


def main(argv: list[str] | None = None) -> None:
    run(finetune, parse_finetune(argv))


if __name__ == "__main__":
    main()
