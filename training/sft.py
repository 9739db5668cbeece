# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains a PLT on conversations, with TRL's SFTTrainer. `iquest-plt sft --help` describes it.
"""

import argparse

from jinja2 import TemplateError
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from ..conversion.tokenizer import check_template
from ..tokenization.chat import training_chat_template
from .common import load_model, print_result, run, save, split_data, train, training_arguments
from .lora import lora_config
from .options import parse_sft


def make_trainer(
    args: argparse.Namespace, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> SFTTrainer:
    """Makes the trainer of `model` on the conversations. Raises ValueError if the data are not usable."""
    template = tokenizer.chat_template
    if template is None:
        raise ValueError(f"{args.model} has no chat template. `iquest-plt convert {args.model} NEW` adds one.")
    check_template(tokenizer)
    arguments = SFTConfig(
        **training_arguments(args),
        max_length=None if args.rows == "flat" else args.length,
        packing=args.rows == "packed",
        padding_free=args.rows != "padded",
        assistant_only_loss=not args.all_text,
    )
    with arguments.main_process_first(desc="data"):  # the other processes use its cache
        data, heldout = split_data(args, "messages")
        for path, rows in ((args.data, data), (args.heldout or args.data, heldout)):
            if rows is not None and [] in rows["messages"]:
                raise ValueError(f"{path} has a conversation without messages. Remove it.")
    tokenizer.chat_template = training_chat_template(template)
    try:
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            eval_dataset=heldout,
            processing_class=tokenizer,
            peft_config=lora_config(args) if args.lora else None,
        )
    except (TemplateError, RuntimeError, ValueError) as error:  # for example a wrong role, or no assistant turn
        raise ValueError(f"{args.data}: {error}") from error
    finally:
        tokenizer.chat_template = template  # other libraries cannot read the training template's tags
    if len(trainer.train_dataset) == 0:
        raise ValueError(f"{args.data} has no conversations.")
    longest = max(len(ids) for ids in trainer.train_dataset["input_ids"])
    if longest > args.length:
        raise ValueError(f"A conversation has {longest} tokens, more than --length {args.length}. Raise --length.")
    return trainer


def tune(args: argparse.Namespace) -> SFTTrainer:
    """Trains and saves the model or the adapter."""
    model, tokenizer = load_model(args)
    trainer = make_trainer(args, model, tokenizer)
    weights = train(trainer, args)
    if weights is not None and args.lora:
        trainer.model.save_pretrained(args.out / "adapter", state_dict=weights)
        print_result(args.out / "adapter")
    elif weights is not None:
        save(model, tokenizer, args, weights)
    return trainer


def main(argv: list[str] | None = None) -> None:
    run(tune, parse_sft(argv))


if __name__ == "__main__":
    main()
