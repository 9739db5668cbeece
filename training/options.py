# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The options of `finetune`, `lora`, `sft` and `humaneval`. Imports no large library, so that their help is fast.

Each `parse_…` function takes the arguments and the name of the program that its help shows.
"""

import argparse
import math
from pathlib import Path

from ..utils.dtypes import FLOAT_NAMES


MODULE = "python -m iquest_plt.training."


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and shows the default values that are not None or False."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        hidden = action.required or any(action.default is value for value in (None, False, argparse.SUPPRESS))
        return text if hidden or "default" in text else f"{text} (default: %(default)s)"


def count(text: str) -> int:
    """Parses an integer of at least 1; argparse reports anything else as an "invalid count"."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def make_parser(description: str, lr: float, prog: str | None = None) -> argparse.ArgumentParser:
    """Makes a parser with the options that all training scripts share."""
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=Formatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--data", type=Path, required=True, help="file or folder to train on")
    parser.add_argument("--heldout", type=Path, help="file or folder to evaluate on (default: a share of --data)")
    parser.add_argument("--heldout-share", type=float, default=0.05, help="share of --data to hold out; 0: none")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--num-loops", type=count, help="loops to train for (default: the model's)")
    parser.add_argument("--length", type=count, default=1024, help="maximum number of tokens in a piece")
    parser.add_argument("--batch", type=count, default=4, help="rows or pieces per pass")
    parser.add_argument("--accumulate", type=count, default=1, help="passes per step")
    parser.add_argument("--epochs", type=count, default=1, help="passes over the data")
    parser.add_argument("--steps", type=count, help="total number of steps, instead of --epochs")
    parser.add_argument("--lr", type=float, default=lr, help="learning rate after the warm-up")
    parser.add_argument("--bf16", action="store_true", help="bf16 arithmetic; trained weights stay in float32")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations to save memory")
    parser.add_argument("--log-steps", type=count, default=10, help="steps between printed lines")
    parser.add_argument(
        "--save-steps", type=count, default=100, help="steps between checkpoints and held-out evaluations"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the order of the data, and of adapters")
    return parser


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for text data."""
    parser.add_argument("--padded", action="store_true", help="one row per piece, padded to the longest")


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for adapters."""
    parser.add_argument("--rank", type=count, default=16, help="rank of the adapters; their scale is 2")
    parser.add_argument(
        "--targets", choices=("attention", "mlp", "all"), default="all", help="layers that get adapters"
    )
    parser.add_argument("--gates", action=argparse.BooleanOptionalAction, default=True, help="also train the gates")


FINETUNE = """
Trains all weights of a PLT on text, with Transformers' Trainer. Run the same command again to resume:

    iquest-plt finetune --model my-model --data sources --out runs/tuned

The data are a text file, a folder of text files, or JSON Lines with a field `text`. Documents are cut into pieces of at
most LENGTH tokens. The pieces of a batch share one row, separated by `position_ids` that restart: attention, windows
and the shift between the loops do not cross from one piece to the next. With --padded, each piece has its own row; the
losses are the same. The result is OUT/model. To see the losses: `tensorboard --logdir OUT/logs`. To use several
processes: `accelerate launch -m iquest_plt.training.finetune` with the same options.
"""


def parse_finetune(argv: list[str] | None = None, prog: str = MODULE + "finetune") -> argparse.Namespace:
    parser = make_parser(FINETUNE, 2e-5, prog)
    add_text_options(parser)
    return parser.parse_args(argv)


LORA = """
Trains low-rank adapters of a PLT on text (LoRA, with PEFT), optionally on frozen 4-bit weights (as in QLoRA):

    iquest-plt lora --model my-model --data sources --out runs/adapted --bits 4 --merge

Data and options are as in `iquest-plt finetune`. Adapters are added to the Linear layers of attention, of the MLP, or
of both, and are shared by all loops. Gates are small and not Linear layers: they are trained in full, unless --no-gates
is set. The result is OUT/adapter, for `PeftModel.from_pretrained(model, "OUT/adapter")`; `model` may be remote code.
With --merge there is also OUT/model, an ordinary model. An adapter does not store its number of loops: after
--num-loops R, load its model with `plt_num_loops=R`.
"""


def parse_lora(argv: list[str] | None = None, prog: str = MODULE + "lora") -> argparse.Namespace:
    parser = make_parser(LORA, 2e-4, prog)
    add_text_options(parser)
    add_adapter_options(parser)
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantise the frozen weights (bitsandbytes)")
    parser.add_argument("--merge", action="store_true", help="also write OUT/model")
    return parser.parse_args(argv)


SFT = """
Trains a PLT on conversations, with TRL's SFTTrainer. Run the same command again to resume:

    iquest-plt sft --model my-model --data chats.jsonl --out runs/chat

The data are JSON Lines with a field `messages`, in the format of chat templates, and optionally `tools`. The loss
counts the assistant's tokens, including `<|im_end|>`, or all tokens with --all-text. Conversations share rows of up to
LENGTH tokens (packed), share one row per batch (flat), or have one row each (padded). Attention, windows and the shift
between the loops do not cross from one conversation to the next. Conversations longer than LENGTH are cut; with `flat`
they are an error. The result is OUT/model, or OUT/adapter with --lora.
"""


def parse_sft(argv: list[str] | None = None, prog: str = MODULE + "sft") -> argparse.Namespace:
    parser = make_parser(SFT, 2e-5, prog)
    parser.add_argument(
        "--rows", choices=("packed", "flat", "padded"), default="packed", help="how conversations share rows; see above"
    )
    parser.add_argument("--all-text", action="store_true", help="count every token in the loss")
    parser.add_argument(
        "--lora", action="store_true", help="train adapters, as `iquest-plt lora` does; use a higher --lr"
    )
    add_adapter_options(parser)
    return parser.parse_args(argv)


HUMANEVAL = """
HumanEval: completes functions with a model, runs them against their tests, and computes pass@k.

    iquest-plt humaneval --model PATH --out runs/humaneval --allow-code-execution

The problems come with `pip install '.[evaluation]'` in a checkout of iquest-plt, or from `--problems FILE`: a JSONL
file, gzipped or not, with `task_id`, `prompt`, `entry_point`, `test` and, for `--self-check`, `canonical_solution`.

OUT/completions.jsonl has the completions, OUT/results.jsonl their verdicts, and OUT/summary.json the last printed line.
Run the same command again to resume; use another folder if the model has changed. Without `--allow-code-execution`,
completions are generated but not run. The docstring of `iquest_plt.training.sandbox` says what a running program can
and cannot do.

`--self-check` needs no model. It runs the reference solutions, which must pass, and empty ones, which must fail.
"""


def parse_humaneval(argv: list[str] | None = None, prog: str = MODULE + "humaneval") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=HUMANEVAL, formatter_class=Formatter)
    parser.add_argument("--model", help="model folder or Hub repository id")
    parser.add_argument("--out", type=Path, default=Path("runs/humaneval"), help="folder of the run")
    parser.add_argument("--problems", type=Path, metavar="FILE", help="use these problems instead of HumanEval's")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N problems")
    parser.add_argument("--samples", type=count, default=1, help="completions per problem")
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0: likeliest token")
    parser.add_argument("--top-p", type=float, default=0.95, help="top-p of sampling")
    parser.add_argument("--seed", type=int, default=0, help="random seed of sampling")
    parser.add_argument("--max-new-tokens", type=count, default=512, help="maximum number of tokens per completion")
    parser.add_argument("--num-loops", type=count, help="loops per token (default: the model's)")
    parser.add_argument("--chat", action="store_true", help="ask for the function in a chat")
    parser.add_argument("--batch-size", type=count, default=8, help="prompts per batch")
    parser.add_argument("--dtype", choices=FLOAT_NAMES, help="type of the weights (default: as stored)")
    parser.add_argument("--device", help="device that runs the model (default: cuda if available, else cpu)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds per program")
    parser.add_argument("--allow-code-execution", action="store_true", help="run the model's code; see above")
    parser.add_argument("--self-check", action="store_true", help="check the problems, without a model")
    args = parser.parse_args(argv)
    if args.model is None and not args.self_check:
        parser.error("--model is required")
    if not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1:
        parser.error("--temperature must be at least 0, --top-p above 0 and at most 1")
    return args
