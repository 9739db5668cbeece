# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains low-rank adapters of a PLT on text (LoRA, with PEFT). `iquest-plt lora --help` describes it.
"""

import argparse

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from .common import load_model, print_result, run, save, train
from .finetune import make_trainer
from .options import parse_lora


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]  # the first is SwiGLU's, not PLT's gate
TARGETS = {"attention": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}


def lora_config(args: argparse.Namespace) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules=TARGETS[args.targets],
        modules_to_save=["plt_gate"] if args.gates else None,
    )


def load_adapted(args: argparse.Namespace) -> tuple[PeftModel, object]:
    """Loads the model with new adapters, and its tokenizer. Trained weights are float32; others follow the options."""
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
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # Trainer enables it
    torch.manual_seed(args.seed)
    model = get_peft_model(model, lora_config(args))
    for parameter in model.parameters():
        if parameter.requires_grad:  # PEFT does not convert the gates
            parameter.data = parameter.data.float()
    return model, tokenizer


def merge(args: argparse.Namespace) -> None:
    """Writes OUT/model: OUT/adapter merged into the float32 weights of --model, not into the quantised ones."""
    unset_hf_deepspeed_config()  # only one process loads them
    model, tokenizer = load_model(args)
    model = PeftModel.from_pretrained(model, args.out / "adapter").merge_and_unload()
    save(model, tokenizer, args)


def adapt(args: argparse.Namespace) -> Trainer:
    """Trains and saves the adapters."""
    model, tokenizer = load_adapted(args)
    trainer = make_trainer(args, model, tokenizer)
    weights = train(trainer, args)
    if weights is not None:
        model.save_pretrained(args.out / "adapter", state_dict=weights)
        print_result(args.out / "adapter")
        if args.merge:
            merge(args)
    return trainer


def main(argv: list[str] | None = None) -> None:
    run(adapt, parse_lora(argv))


if __name__ == "__main__":
    main()
