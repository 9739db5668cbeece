# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Times several generations that take turns, token by token."""

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from .timing import timed


try:
    import greenlet
except ImportError as error:
    raise ImportError("greenlet is not installed: pip install '.[benchmarks]' in a checkout of iquest-plt") from error


class _YieldTurn(StoppingCriteria):
    """Switches back to the parent greenlet after every token; never stops the generation."""

    def __call__(self, input_ids, scores, **kwargs):
        greenlet.getcurrent().parent.switch()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def decode_step_times(runs: dict, input_ids: torch.Tensor, new_tokens: int, warm_up: int = 3) -> dict[object, list]:
    """
    Times every decode step of several greedy `generate()` calls, in seconds.

    The calls take turns token by token, so that a temporary slowdown of the machine affects all of them. `runs` maps
    names to (model, arguments of `generate()`). Prompts and the first `warm_up` steps are not timed.
    """

    def generation(model, arguments):
        return greenlet.greenlet(
            lambda: model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=warm_up + 1 + new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([_YieldTurn()]),
                **arguments,
            )
        )

    generations = {name: generation(*run) for name, run in runs.items()}
    times = {name: [] for name in runs}
    with torch.no_grad():  # the generations enter and leave their own no_grad in turns; this keeps it on throughout
        try:
            for step in range(1 + warm_up + new_tokens):
                for name, turn in generations.items():
                    seconds = timed(turn.switch, input_ids.device)
                    if step > warm_up:
                        times[name].append(seconds)
        finally:
            for turn in generations.values():
                turn.throw()
    return times
