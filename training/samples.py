# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Completes the prompts in `prompts.txt` without sampling, and reports how good the completions look:

    python -m iquest_plt.training.samples checkpoints/small --repetition-penalty 1.1

The list is fixed, so that no sample is picked by hand: the model's card shows the first three. Two numbers summarise
the rest: how many completions parse as Python, and how much they repeat themselves.
"""

import argparse
import codeop
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..conversion.loading import load_model
from ..conversion.tokenizer import as_list
from ..utils.scripts import one_line_errors
from ..utils.terminal import printable


PROMPTS = Path(__file__).with_name("prompts.txt")
SEPARATOR = "# %%\n"
NEW_TOKENS = 128
PENALTY = 1.1  # of 1.0, 1.1, 1.2 and 1.3, the one with which most completions of the small model parse


@dataclass
class Sample:
    """
    A prompt and its completion.

    Attributes:
        tokens: ids of the completion.
        is_cut: the completion reached the maximum length, so its last line may be incomplete.
    """

    prompt: str
    completion: str
    tokens: list[int]
    is_cut: bool

    @property
    def parses(self) -> bool:
        """
        Whether the completion is Python up to its last complete statement. It must complete at least one. The rest may
        be unfinished but must not contain an error; a line that was cut does not count.
        """
        lines = self.completion.splitlines(keepends=True)
        if self.is_cut and lines:
            lines.pop()
        states = [python_state(self.prompt + "".join(lines[:end])) for end in range(1, len(lines) + 1)]
        return "complete" in states and states[-1] != "wrong"


def read_prompts() -> list[str]:
    """Returns the prompts. Each ends with a line end."""
    return PROMPTS.read_text(encoding="utf-8").split(SEPARATOR)


def python_state(text: str) -> str:
    """Returns "complete" if the text compiles, "unfinished" if only its end is missing, and "wrong" otherwise."""
    try:
        return "complete" if codeop.compile_command(text, symbol="exec") else "unfinished"
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return "wrong"


def repetition(sequences: Iterable[Sequence[int]], n: int = 4) -> float:
    """
    Returns the share of n-grams that already occurred in the same sequence, 0 to 1: one minus distinct n-grams over
    all n-grams, with both counts summed over the sequences. It is 0 if no sequence has n tokens. For a single sequence
    this is seq-rep-n of Welleck et al. (arXiv 1908.04319).
    """
    total = distinct = 0
    for tokens in sequences:
        grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
        total += len(grams)
        distinct += len(set(grams))
    return 1 - distinct / total if total else 0.0


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    new_tokens: int = NEW_TOKENS,
    penalty: float = 1.0,
) -> list[Sample]:
    """
    Completes prompts without sampling, as one batch. Each completion ends at an end token or after `new_tokens` tokens.
    A `penalty` above 1 makes tokens less likely that the text already contains.
    """
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False).to(
        model.device
    )
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, repetition_penalty=penalty)
    ends = as_list(model.generation_config.eos_token_id)
    samples = []
    for prompt, before, after in zip(prompts, inputs.input_ids, output[:, inputs.input_ids.shape[1] :], strict=True):
        tokens = after.tolist()
        length = next((index for index, token in enumerate(tokens) if token in ends), None)
        tokens = tokens[:length]
        start = len(tokenizer.decode(before, skip_special_tokens=True))
        text = tokenizer.decode(before.tolist() + tokens, skip_special_tokens=True)
        samples.append(Sample(prompt, text[start:], tokens, is_cut=length is None))
    return samples


def summary(samples: list[Sample]) -> str:
    """Describes all samples in one line."""
    parsing = sum(sample.parses for sample in samples)
    share = repetition(sample.tokens for sample in samples)
    return f"{parsing} of {len(samples)} parse as Python; {share:.0%} of their 4-grams are repeats"


def load_and_complete(path: str | Path, penalties: Sequence[float], new_tokens: int = NEW_TOKENS) -> list[list[Sample]]:
    """
    Completes all prompts with the model in `path`, once for each repetition penalty. The model runs in float32, so that
    a tie between tokens is unlikely.
    """
    model, tokenizer = load_model(str(path), dtype="float32")
    return [complete(model, tokenizer, read_prompts(), new_tokens, penalty) for penalty in penalties]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a model folder or a Hub repository id")
    parser.add_argument("--lines", type=int, default=8, help="lines of each completion to print (default: 8)")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help="tokens per completion (default: 128)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="as in generate() (default: 1.0, none)")
    args = parser.parse_args(argv)
    if args.lines < 0 or args.new_tokens < 1:
        parser.error("--lines must be at least 0, and --new-tokens at least 1.")
    with one_line_errors():
        (samples,) = load_and_complete(args.model, [args.repetition_penalty], args.new_tokens)
    for number, sample in enumerate(samples, 1):
        verdict = "parses" if sample.parses else "does not parse"
        print(f"--- {number}: {verdict}, {repetition([sample.tokens]):.0%} of 4-grams are repeats")
        print(sample.prompt + "--- completion")
        print(printable("\n".join(sample.completion.splitlines()[: args.lines]), line_ends=True))
    print(f"--- all: {summary(samples)}")


if __name__ == "__main__":
    main()
