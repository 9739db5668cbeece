# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains a PLT on conversations, with TRL's SFTTrainer. The same command again goes on where it was stopped:

    python -m iquest_plt.training.sft --model my-model --data chats.jsonl --out runs/chat

The data are JSON lines with a field `messages` as chat templates take them, and `tools` if there are any. The loss
counts what the assistant wrote, its `<|im_end|>` included, unless --all-text. Conversations stand one after the other
in rows of up to LENGTH tokens (packed), in one row for each batch (flat), or each in a row of its own (padded).
Attention, windows and the shift between the loops end with the conversation. A longer one loses its end; with `flat` it
is refused. The result is OUT/model, or OUT/adapter with --lora.
"""

import argparse

from jinja2 import TemplateError
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from ..conversion.tokenizer import check_template
from ..tokenization.chat import training_chat_template
from .common import load_model, make_parser, run, save, split_data, train, training_arguments
from .lora import add_options, lora_config


def make_trainer(
    args: argparse.Namespace, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> SFTTrainer:
    """The trainer of `model` on the conversations. Raises ValueError if these do not serve."""
    template = tokenizer.chat_template
    if template is None:
        raise ValueError(f"{args.model} has no chat template: `iquest-plt convert {args.model} NEW` adds one.")
    check_template(tokenizer)
    arguments = SFTConfig(
        **training_arguments(args),
        max_length=None if args.rows == "flat" else args.length,
        packing=args.rows == "packed",
        padding_free=args.rows != "padded",
        assistant_only_loss=not args.all_text,
    )
    with arguments.main_process_first(desc="data"):  # the other processes read its cache
        data, heldout = split_data(args, "messages")
        for path, rows in ((args.data, data), (args.heldout or args.data, heldout)):
            if rows is not None and [] in rows["messages"]:
                raise ValueError(f"{path} holds a conversation without messages: leave it out.")
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
    except (TemplateError, RuntimeError, ValueError) as error:  # a wrong role; nothing from the assistant
        raise ValueError(f"{args.data}: {error}") from error
    finally:
        tokenizer.chat_template = template  # only Transformers knows the tags of the other
    if len(trainer.train_dataset) == 0:
        raise ValueError(f"{args.data} holds no conversation.")
    longest = max(len(ids) for ids in trainer.train_dataset["input_ids"])
    if longest > args.length:
        raise ValueError(f"A conversation has {longest} tokens, more than --length {args.length}.")
    return trainer


def tune(args: argparse.Namespace) -> SFTTrainer:
    """Trains and saves."""
    model, tokenizer = load_model(args)
    trainer = make_trainer(args, model, tokenizer)
    weights = train(trainer, args)
    if weights is not None and args.lora:
        trainer.model.save_pretrained(args.out / "adapter", state_dict=weights)
    elif weights is not None:
        save(model, tokenizer, args, weights)
    return trainer


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, lr=2e-5)
    parser.add_argument("--rows", choices=("packed", "flat", "padded"), default="packed")
    parser.add_argument("--all-text", action="store_true", help="count every token in the loss")
    parser.add_argument("--lora", action="store_true", help="train adapters, as lora.py does; give it a higher --lr")
    add_options(parser)
    run(tune, parser.parse_args(argv))


if __name__ == "__main__":
    main()
