# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The last stage of the small model: teaches it not to repeat itself, with sequence-level unlikelihood training (Welleck
et al., arXiv 1908.04319, section 5.2).

    python -m iquest_plt.training.unlikelihood --init checkpoints/small --out runs/unlikelihood

A small model that always takes its most likely token soon repeats a few lines for ever. Here it continues pieces of the
training text that way, and every word that lies in a repeated n-gram is made less likely. Indentation and punctuation
are left alone, since a program needs them wherever they stand. Each step also has the usual loss on training text, so
that the model forgets little.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..utils.scripts import RESUME_CHECKPOINT, one_line_errors
from .data import PackedRows
from .divergence import DivergedError
from .export import export
from .recipe import Recipe
from .small import SmallTrainer, decode_in_bf16, train


N = 6  # tokens in an n-gram; text repeats shorter ones for good reasons
PREFIX, NEW_TOKENS = 32, 128  # tokens given, and tokens that the model adds
CONTINUATIONS = 32  # per step


def repeated_tokens(tokens: Sequence[int], n: int = N) -> list[bool]:
    """Returns, for each token, whether it lies in an n-gram that occurred before in `tokens`."""
    seen, repeated = set(), [False] * len(tokens)
    for start in range(len(tokens) - n + 1):
        gram = tuple(tokens[start : start + n])
        if gram in seen:
            repeated[start : start + n] = [True] * n
        seen.add(gram)
    return repeated


def word_tokens(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Returns, for each id of the vocabulary, whether its text has a letter or digit, (V,)."""
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    return torch.tensor([any(character.isalnum() for character in text) for text in texts])


def unlikelihood(logits: torch.Tensor, tokens: torch.Tensor, unwanted: torch.Tensor) -> torch.Tensor:
    """
    Returns the sum of -log(1 - p(token)) over the unwanted tokens, in nats.

    Args:
        logits: (B, T, V), predictions of `tokens`.
        tokens: (B, T).
        unwanted: (B, T), bool.
    """
    log_probs = F.log_softmax(logits[unwanted].float(), dim=-1).gather(-1, tokens[unwanted][:, None])
    return -torch.log(-torch.expm1(log_probs.clamp(max=-1e-6))).sum()  # the clamp keeps it finite at p = 1


class UnlikelihoodTrainer(SmallTrainer):
    """Adds the unlikelihood loss of the model's own continuations to the loss of the training rows."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.recent: list[dict[str, float]] = []  # numbers of the steps since the last log entry
        stream, steps = self.train_dataset.stream, self.recipe.steps
        self.prefixes = PackedRows(stream, PREFIX, CONTINUATIONS * steps, self.recipe.seed + 1)
        self.is_word = word_tokens(AutoTokenizer.from_pretrained(self.recipe.initial))

    def compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any], *args, **kwargs) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not model.training:
            return loss
        first = self.state.global_step * CONTINUATIONS
        prefixes = [self.prefixes[first + index]["input_ids"] for index in range(CONTINUATIONS)]
        penalty, numbers = self.continuation_loss(model, torch.tensor(prefixes, device=model.device))
        self.recent.append({"loss": loss.item(), "unlikelihood": penalty.item(), **numbers})
        return loss + self.recipe.unlikelihood_weight * penalty

    def continuation_loss(
        self, model: PreTrainedModel, prefixes: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """
        Continues `prefixes` (B, PREFIX). Returns the unlikelihood loss in nats per new token, the share of the new
        tokens that lie in repeated n-grams, and their mean number.
        """
        texts = continue_greedily(model, prefixes)
        new = texts[:, PREFIX:]
        lengths = (new != model.config.pad_token_id).sum(1).tolist()
        unwanted = torch.zeros_like(new, dtype=torch.bool)
        for row, (tokens, length) in enumerate(zip(new.tolist(), lengths, strict=True)):
            unwanted[row, :length] = torch.tensor(repeated_tokens(tokens[:length]), dtype=torch.bool)
        states = decode_in_bf16(model, texts[:, :-1]).last_hidden_state
        logits = states[:, PREFIX - 1 :] @ model.lm_head.weight.bfloat16().T
        total = max(1, sum(lengths))
        numbers = {"repeated": unwanted.sum().item() / total, "length": total / len(lengths)}
        unwanted &= self.is_word.to(new.device)[new]
        return unlikelihood(logits, new, unwanted) / total, numbers

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Logs the two losses apart."""
        if "loss" in logs and self.recent:
            means = {name: sum(step[name] for step in self.recent) / len(self.recent) for name in self.recent[0]}
            logs = logs | {name: round(value, 4) for name, value in means.items()}
            self.recent.clear()
        super().log(logs, *args, **kwargs)


@torch.no_grad()
def continue_greedily(model: PreTrainedModel, prefixes: torch.Tensor) -> torch.Tensor:
    """Returns prefixes (B, T) with continuations of at most NEW_TOKENS tokens, padded after their end."""
    writer = copy.deepcopy(model).eval()
    writer.set_attn_implementation("sdpa")  # the training kernel knows no cache
    mask = torch.ones_like(prefixes)
    return writer.generate(prefixes, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, metavar="FOLDER", required=True, help="the model to train")
    parser.add_argument("--out", type=Path, default=Path("runs/unlikelihood"), help="folder of the run")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of an earlier run, to use its data again")
    parser.add_argument("--tokens", type=int, default=737_280, help="tokens of training text")
    args = parser.parse_args(argv)

    with one_line_errors(DivergedError, advice=RESUME_CHECKPOINT):
        recipe = Recipe.without_repetition(args.init, args.tokens)
        train(args.out, recipe, prepared=args.data, trainer_class=UnlikelihoodTrainer)
        export(args.out, args.out / "export", prepared=args.data)


if __name__ == "__main__":
    main()
