# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains low-rank adapters of a PLT on text (LoRA, with PEFT), on frozen weights of 4 bits if asked (as in QLoRA):

    python -m iquest_plt.training.lora --model my-model --data sources --out runs/adapted --bits 4 --merge

Data and options are those of `finetune.py`. Adapters stand beside the Linear layers of attention, of the MLP, or of
both, in all loops the same. A gate is no Linear and small: it is trained as a whole, unless --no-gates. The result is
OUT/adapter, for `PeftModel.from_pretrained(model, "OUT/adapter")`, where `model` may be remote code; with --merge also
OUT/model, a model like any other. An adapter does not know the number of loops that it was trained for: after
--num-loops R, load its model with `plt_num_loops=R`.
"""

import argparse

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from .common import count, load_model, make_parser, run, save, train
from .finetune import add_options as add_data_options
from .finetune import make_trainer


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]  # the first is SwiGLU's, not PLT's gate
TARGETS = {"attention": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What adapters are like."""
    parser.add_argument("--rank", type=count, default=16, help="rank of an adapter; its scale is 2")
    parser.add_argument("--targets", choices=TARGETS, default="all", help="the layers that have adapters")
    parser.add_argument("--gates", action=argparse.BooleanOptionalAction, default=True, help="train the gates as well")


def lora_config(args: argparse.Namespace) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules=TARGETS[args.targets],
        modules_to_save=["plt_gate"] if args.gates else None,
    )


def load_adapted(args: argparse.Namespace) -> tuple[PeftModel, object]:
    """The model with new adapters, and its tokenizer. What is trained is float32, the rest as small as asked for."""
    weights = {"dtype": torch.bfloat16 if args.bf16 else torch.float32}
    if args.bits is not None:
        weights["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=args.bits == 4,
            load_in_8bit=args.bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=weights["dtype"],
        )
    model, tokenizer = load_model(args, **weights)
    if args.bits is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # Trainer turns that on
    torch.manual_seed(args.seed)
    model = get_peft_model(model, lora_config(args))
    for parameter in model.parameters():
        if parameter.requires_grad:  # PEFT leaves the gates as they were loaded
            parameter.data = parameter.data.float()
    return model, tokenizer


def merge(args: argparse.Namespace) -> None:
    """Writes OUT/model: the weights of --model in float32, not those of few bits, with OUT/adapter merged into them."""
    unset_hf_deepspeed_config()  # one process alone loads them
    model, tokenizer = load_model(args)
    model = PeftModel.from_pretrained(model, args.out / "adapter").merge_and_unload()
    save(model, tokenizer, args)


def adapt(args: argparse.Namespace) -> Trainer:
    """Trains and saves."""
    model, tokenizer = load_adapted(args)
    trainer = make_trainer(args, model, tokenizer)
    weights = train(trainer, args)
    if weights is not None:
        model.save_pretrained(args.out / "adapter", state_dict=weights)
        if args.merge:
            merge(args)
    return trainer


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, lr=2e-4)
    add_data_options(parser)
    add_options(parser)
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantise the frozen weights (bitsandbytes)")
    parser.add_argument("--merge", action="store_true", help="write OUT/model, too")
    run(adapt, parser.parse_args(argv))


if __name__ == "__main__":
    main()
