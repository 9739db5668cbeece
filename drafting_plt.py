# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Decoding with drafts on a staircase (`staircase_plt.py`): `generate()` with prompt lookup or a draft model.

The library's candidate generators draft. Each token is chosen as in plain decoding, one at a time: the same logits
processors, stopping criteria, streamer calls and random draws. A draft only decides what a pass computes ahead.

Shapes are suffixes: V vocab_size.
"""

import inspect
import itertools
import math
import statistics
import time
import weakref
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import DynamicLayer
from transformers.generation import (
    AssistedCandidateGenerator,
    CandidateGenerator,
    GenerateDecoderOnlyOutput,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from .cache_staircase_plt import Staircase
from .compat_plt import CACHE_NAME
from .kernels_plt import get_kernel


# The arguments of `forward()` that a pass on the staircase knows how to continue.
KNOWN_ARGUMENTS = {CACHE_NAME, "attention_mask", "position_ids", "inputs_embeds", "use_cache", "logits_to_keep"}
KNOWN_ARGUMENTS |= {"num_loops", "loop_schedule", "tokenizer"}
OTHER_DRAFTING = ("assistant_early_exit", "assistant_ensemble_weight", "use_mtp", "speculation_type")
DEFAULT_ROW_COST = 0.03  # measured with bf16 weights on two CPU cores; on a GPU a row costs less
PROBE_EVERY = 16  # tokens; how often to ask a draft model whose drafts do not pay


def can_climb(model, input_ids: torch.Tensor, generation_config: GenerationConfig, model_kwargs: dict) -> bool:
    """
    Returns whether drafts can run on the staircase. The library's assisted decoding handles all else: batches, padding,
    recorded outputs, caches that cannot roll back, other attention kernels, rotary scaling by length, research
    controls, other ways to draft, and models that prepare their inputs in another way.
    """
    mask, layers, config = model_kwargs.get("attention_mask"), model_kwargs[CACHE_NAME].layers, model.model.config
    return (
        input_ids.shape[0] == 1
        and model_kwargs.get("loop_schedule", "together") == "together"
        and model_kwargs.keys() <= KNOWN_ARGUMENTS
        and (mask is None or (mask.ndim == 2 and bool(mask.all())))
        and not (generation_config.output_attentions or generation_config.output_hidden_states)
        and not model.model._records({})
        and all(getattr(layer, "can_take_back", False) for layer in layers)
        and not layers[0].record_past
        and get_kernel(config._attn_implementation).groups_as_rows is not None
        and not any(kind in model.model.rotary_emb.rope_type for kind in ("dynamic", "longrope"))
        and config.plt_cross_loop_shift is True
        and config.plt_loop_attention == "gated"
        and not any(getattr(generation_config, name, None) for name in OTHER_DRAFTING)
        and _takes_staircase(model)
    )


def _takes_staircase(model) -> bool:
    """
    Returns whether a pass on the staircase may call the model directly. Not if a subclass prepares the inputs itself,
    or if its `forward` takes no further arguments.
    """
    prepare = getattr(model.prepare_inputs_for_generation, "__func__", None)
    parameters = inspect.signature(model.forward).parameters.values()
    takes_more = any(each.kind is each.VAR_KEYWORD or each.name == "staircase" for each in parameters)
    return prepare is GenerationMixin.prepare_inputs_for_generation and takes_more


# -- drafts -----------------------------------------------------------------------------------------------------------

_row_costs: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # of a model's layers, for each number of loops


def row_cost(model, num_loops: int, extra: int = 8, tries: int = 4) -> float:
    """
    Returns what one more row adds to the time of a pass, as a share of a plain pass. The first call measures it with
    the MLPs of up to 8 layers, which takes as long as a few passes. A constant is used by several processes, and if
    every one of these MLPs has hooks (which would see made-up states) or is offloaded.

    The median of many short measurements is robust against other jobs on the machine.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return DEFAULT_ROW_COST  # all processes must run the same passes
    layers = model.model.layers
    costs = _row_costs.setdefault(layers, {})
    if num_loops not in costs:
        mlps = [layer.mlp for layer in layers[:8] if _can_measure(layer.mlp)]
        if not mlps:
            return DEFAULT_ROW_COST
        embeddings = model.get_input_embeddings().weight

        def seconds(mlp, rows: int) -> float:
            device = next(itertools.chain(mlp.parameters(), mlp.buffers())).device
            states = torch.ones(1, rows, embeddings.shape[-1], dtype=embeddings.dtype, device=device)
            start = time.perf_counter()
            mlp(states).sum().item()  # `item` waits for the device
            return time.perf_counter() - start

        ratios, started = [], time.perf_counter()
        for _ in range(tries):
            few, many = ([seconds(mlp, rows) for mlp in mlps] for rows in (num_loops, num_loops + extra))
            ratios += [b / a for a, b in zip(few, many, strict=True)]
            if time.perf_counter() - started > 0.5:  # large layers: each measurement is long enough
                break
        costs[num_loops] = min(max(statistics.median(ratios) - 1, 0.0) / extra, 1 / num_loops)
    return costs[num_loops]


def _can_measure(mlp) -> bool:
    """Returns whether an MLP can be called by itself: it has no hooks, and its weights are not offloaded."""
    names = ("_forward_pre_hooks", "_forward_hooks", "_hf_hook")  # the last is accelerate's
    return not any(getattr(module, name, None) for module in mlp.modules() for name in names)


class Drafts:
    """
    Drafted tokens that are not judged yet.

    Attributes:
        tokens: the drafts after the last known token.
        scores: the draft model's scores (V) for each of them; empty with prompt lookup.
        hold_rate: a running mean of how often a judged draft held.
    """

    def __init__(self, generator: CandidateGenerator, cost: float):
        self.generator = generator
        self.cost = min(max(cost, 1e-3), 1.0)
        self.tokens: list[int] = []
        self.scores: list[torch.Tensor] = []
        self.hold_rate = 0.8
        self._unused: int | None = None  # a draft that is compared but not run
        self._drafted = self._held = self._calls = 0
        self._longest = getattr(generator, "num_output_tokens", None)  # None: a draft model

    def worth(self) -> int:
        """
        Returns how many drafts are worth running. The j-th holds with a chance of `hold_rate ** j`. It then saves a
        pass. `cost` is that of its cells in all loops, in passes.
        """
        return int(math.log(self.cost) / math.log(min(max(self.hold_rate, 0.01), 0.99)))

    def extend(self, input_ids: torch.Tensor, room: int) -> None:
        """Drafts more tokens after the known `input_ids` and the present drafts, at most `room` in all."""
        worth = self.worth()
        limit = min(worth or 1, room) - len(self.tokens)
        if limit <= 0 or not self._may_ask(worth):
            return
        if not self.tokens:
            self._report(input_ids)
        if self._longest is not None:
            self.generator.num_output_tokens = min(limit, self._longest)
        text = torch.cat([input_ids, input_ids.new_tensor([self.tokens])], dim=1) if self.tokens else input_ids
        candidates, scores = self.generator.get_candidates(text)
        tokens = candidates[0, text.shape[1] :].tolist()[:limit]
        if worth == 0 and self._longest is not None:
            self._unused = tokens[0] if tokens else None
            return
        self.tokens += tokens
        self._drafted += len(tokens)
        if scores is not None:
            self.scores += list(scores[0, : len(tokens)].to(input_ids.device))

    def _may_ask(self, worth: int) -> bool:
        if self._longest is not None:
            return True
        self._calls += 1
        if worth == 0 and self._calls % PROBE_EVERY:
            return False
        return not self.tokens or _can_roll_back(self.generator)

    def judge(self, token: int) -> bool:
        """Returns whether the first draft is `token`. Removes it, and drops all others if it is not."""
        draft, self._unused = self.tokens[0] if self.tokens else self._unused, None
        if draft is None:
            return False
        held = draft == token
        self.hold_rate += (held - self.hold_rate) / 8
        if not self.tokens:
            return False
        self._held += held
        first = 1 if held else len(self.tokens)
        self.tokens, self.scores = self.tokens[first:], self.scores[first:]
        return held

    def _report(self, input_ids: torch.Tensor) -> None:
        """Tells the generator how many of its drafts held, so that it adapts their length."""
        if self._drafted:
            scores = torch.empty(1, self._drafted + 1, 0)  # only their number is read
            self.generator.update_candidate_strategy(input_ids, scores, self._held)
        self._drafted = self._held = 0

    def finish(self) -> None:
        """Like the library, keeps the adapted length for the draft model's next use."""
        if isinstance(self.generator, AssistedCandidateGenerator):
            config = self.generator.assistant_model.generation_config
            if config.num_assistant_tokens_schedule == "heuristic":
                config.num_assistant_tokens = self.generator.num_assistant_tokens


def _can_roll_back(generator: AssistedCandidateGenerator) -> bool:
    """Returns whether a draft model's cache can drop more than its latest drafts. Windows keep no older states."""
    cache = generator.assistant_kwargs.get(CACHE_NAME)
    return cache is not None and all(
        type(layer) is DynamicLayer or getattr(layer, "num_loops", None) == 1 for layer in cache.layers
    )


# -- text -------------------------------------------------------------------------------------------------------------


class Text:
    """The text so far. Chooses each next token as plain decoding does."""

    def __init__(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer,
    ):
        self.input_ids = input_ids
        self.logits_processor = logits_processor
        self.stopping_criteria = stopping_criteria
        self.generation_config = generation_config
        self.streamer = streamer
        self.is_finished = False
        returns = generation_config.return_dict_in_generate
        self.scores: tuple | None = () if returns and generation_config.output_scores else None
        self.logits: tuple | None = () if returns and generation_config.output_logits else None

    def write(self, logits_1V: torch.Tensor, draft: int | None = None, draft_scores_V=None) -> int:
        """
        Chooses and appends the next token. `draft` matters only with `draft_scores` (V), from which it was drawn.
        """
        logits_1V = logits_1V.to(copy=True, dtype=torch.float32, device=self.input_ids.device)
        scores_1V = self.logits_processor(self.input_ids, logits_1V)
        if self.scores is not None:
            self.scores += (scores_1V,)
        if self.logits is not None:
            self.logits += (logits_1V,)
        if not self.generation_config.do_sample:
            token = scores_1V.argmax(dim=-1)
        elif draft_scores_V is None:
            token = torch.multinomial(scores_1V.softmax(dim=-1), num_samples=1)[0]
        else:
            token = speculative_sample(scores_1V[0], draft, draft_scores_V)  # type: ignore[arg-type]
        self.input_ids = torch.cat([self.input_ids, token[:, None]], dim=1)
        if self.streamer is not None:
            self.streamer.put(token.cpu())
        self.is_finished = bool(self.stopping_criteria(self.input_ids, self.scores).all())
        return int(token)

    def output(self, cache) -> Any:
        """Returns what `generate()` returns."""
        if self.streamer is not None:
            self.streamer.end()
        if not self.generation_config.return_dict_in_generate:
            return self.input_ids
        return GenerateDecoderOnlyOutput(
            sequences=self.input_ids, scores=self.scores, logits=self.logits, **{CACHE_NAME: cache}
        )


def speculative_sample(scores_V: torch.Tensor, draft: int, draft_scores_V: torch.Tensor) -> torch.Tensor:
    """
    Returns a token (1,) that is distributed as `softmax(scores)`, and equals `draft` as often as possible. `draft` was
    drawn from `softmax(draft_scores)`. Source: speculative decoding, arXiv 2211.17192, algorithm 1.
    """
    wanted, drafted = scores_V.softmax(dim=-1), draft_scores_V.float().softmax(dim=-1)
    if torch.rand_like(wanted[0]) <= wanted[draft] / drafted[draft]:
        return torch.tensor([draft], device=scores_V.device)
    missing = (wanted - drafted).clamp(min=0)
    return torch.multinomial(missing if bool(missing.any()) else wanted, num_samples=1)


# -- decoding ---------------------------------------------------------------------------------------------------------


def decode_with_drafts(model, text: Text, model_kwargs: dict, inputs_tensor, assistant_model) -> Any:
    """
    Runs the prompt and writes `text` until it is finished. Returns what `generate()` returns.

    Args:
        model_kwargs: the arguments of `forward()`, with the cache.
        inputs_tensor, assistant_model: for the library's candidate generator.
    """
    config, cache = text.generation_config, model_kwargs[CACHE_NAME]
    num_loops = model.config.check_num_loops(model_kwargs.get("num_loops"))
    is_compiled = model._valid_auto_compile_criteria(model_kwargs, config)
    plain_call = model.get_compiled_call(config.compile_config) if is_compiled else model
    outputs = model._prefill(text.input_ids, config, model_kwargs)
    text.write(outputs.logits[:, -1])
    model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
    generator = model._get_candidate_generator(
        generation_config=config,
        input_ids=text.input_ids,
        inputs_tensor=inputs_tensor,
        logits_processor=None,  # one with a state, as for guidance, must see only the text
        model_kwargs=model_kwargs,
        assistant_model=assistant_model,
    )
    drafts = Drafts(generator, num_loops * row_cost(model, num_loops))
    staircase = Staircase(cache, num_loops)
    longest = _longest(text, cache)
    try:
        while not text.is_finished:
            drafts.extend(text.input_ids, room=longest - text.input_ids.shape[1])
            if staircase.is_level and not drafts.tokens:
                inputs = model.prepare_inputs_for_generation(text.input_ids, next_sequence_length=1, **model_kwargs)
                outputs = plain_call(**inputs, return_dict=True)
                settled, _ = _judge(outputs.logits[0], text, drafts)
            else:
                outputs = _run_staircase(model, staircase, text, drafts, model_kwargs)
                settled, held = _judge(outputs.logits[0], text, drafts)
                staircase.settle(settled, keep_ahead=held)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, num_new_tokens=settled)
    finally:
        staircase.drop()
    drafts.finish()
    return text.output(cache)


def _longest(text: Text, cache) -> int:
    """
    Returns the length to which the text may be drafted. The last token needs no draft, because no pass runs it. A
    static cache may end earlier. So far, it has all tokens but the last, and perhaps a prompt given as embeddings.
    """
    spare = getattr(cache.layers[0], "max_cache_len", math.inf) - int(cache.get_seq_length())
    return min(text.generation_config.max_length - 1, text.input_ids.shape[1] + spare - 1)


def _judge(rows_NV: torch.Tensor, text: Text, drafts: Drafts) -> tuple[int, bool]:
    """
    Writes the token after each row, until one differs from its draft. Returns the number of tokens written, and whether
    the last one was drafted.
    """
    for settled, row_V in enumerate(rows_NV, start=1):
        draft = drafts.tokens[0] if drafts.tokens else None
        token = text.write(row_V[None], draft, drafts.scores[0] if drafts.scores else None)
        held = drafts.judge(token)
        if text.is_finished or not held:
            return settled, held
    return len(rows_NV), True


def _run_staircase(model, staircase: Staircase, text: Text, drafts: Drafts, model_kwargs: dict):
    """Runs a pass over the last known token and the drafts."""
    cache, positions = model_kwargs[CACHE_NAME], model_kwargs.get("position_ids")
    tokens = torch.cat([text.input_ids[:, -1:], text.input_ids.new_tensor([drafts.tokens])], dim=1)
    first = int(cache.get_seq_length()) - staircase.leads[0] if positions is None else positions[:, -1:]
    return model(
        input_ids=tokens,
        position_ids=torch.arange(tokens.shape[1], device=tokens.device)[None] + first,
        num_loops=model_kwargs.get("num_loops"),
        staircase=staircase,
        use_cache=True,
        return_dict=True,
        **{CACHE_NAME: cache},
    )


__all__ = ["Text", "can_climb", "decode_with_drafts"]
