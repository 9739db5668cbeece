# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Two texts that a model is made to write, to time decoding with drafts.

"edit" repeats 60 lines of code with two variables renamed, so most drafts of prompt lookup hold. "no draft holds" has
tokens of the prompt in random order, so lookup finds drafts but nearly all are wrong. It is half as long.
"""

import re

import torch
from transformers import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from ..conversion.layout import ROOT
from ..modeling_plt import IQuestPLTCoderForCausalLM


LINES = slice(34, 94)  # of `grid_plt.py`
TOKENIZER = ROOT / "checkpoints" / "small"


class Writes(LogitsProcessor):
    """Makes the model write `text` (T,) after the prompt."""

    def __init__(self, text: torch.Tensor, prompt: int):
        self.text, self.prompt = text, prompt

    def __call__(self, input_ids, scores):
        position = input_ids.shape[1] - self.prompt
        if position < len(self.text):  # drafts may reach beyond the end
            scores[:, self.text[position]] += 1e4
        return scores


def write(model, prompt: torch.Tensor, text: torch.Tensor, criterion: StoppingCriteria, **arguments) -> torch.Tensor:
    """Makes `model` write `text` (T,) after `prompt` (1, P). Returns all tokens, (1, P + T)."""
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=len(text),
        do_sample=False,
        pad_token_id=0,
        eos_token_id=-1,
        logits_processor=LogitsProcessorList([Writes(text, prompt.shape[1])]),
        stopping_criteria=StoppingCriteriaList([criterion]),
        **arguments,
    )


class DraftsAsTheLibrary(IQuestPLTCoderForCausalLM):
    """Runs drafts without the staircase."""

    _assisted_decoding = GenerationMixin._assisted_decoding


def ways_to_decode(model, num_loops: int, drafts: int) -> dict[str, tuple]:
    """Returns, for each way, a model with the same weights and arguments of `generate()`."""
    model, library = model.with_num_loops(num_loops), model.with_num_loops(num_loops)
    library.__class__ = DraftsAsTheLibrary
    lookup = {"prompt_lookup_num_tokens": drafts}
    return {"plain": (model, {}), "library": (library, lookup), "staircase": (model, lookup)}


def share_held(prompt: torch.Tensor, text: torch.Tensor, size: int) -> float:
    """Returns how many of the tokens drafted by lookup are the next token of the text."""
    whole = torch.cat([prompt[0], text])
    drafter = PromptLookupCandidateGenerator(num_output_tokens=1, max_length=len(whole) + size)
    held = []
    for end in range(prompt.shape[1] + 1, len(whole)):
        candidates, _ = drafter.get_candidates(whole[None, :end])
        held += (candidates[0, end:] == whole[end]).tolist()
    return sum(held) / max(len(held), 1)


def edit_task(tokenizer, vocab_size: int, tokens: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns, for each text, the prompt (1, P) and the text (T,)."""
    old = "\n".join((ROOT / "grid_plt.py").read_text().splitlines()[LINES])
    new = re.sub(r"\bblock\b", "group", re.sub(r"\brun\b", "span", old))

    def ids(text: str) -> torch.Tensor:
        return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids % vocab_size

    prompt = ids(f"{old}\n\n# The same with `run` renamed to `span`, and `block` to `group`:\n\n")
    text = ids(new)[0][:tokens]
    shuffled = prompt[0][torch.randperm(prompt.shape[1])][: len(text) // 2]
    return {"edit": (prompt, text), "no draft holds": (prompt, shuffled)}
