# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Drafts on a staircase: the schedule by brute force, passes against the oracle, and `generate()` against itself."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from tiny import TOLERANCE, VOCAB, distance, oracle, tiny_model, tokens
from transformers import (
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.streamers import BaseStreamer

from iquest_plt import IQuestPLTCoderForCausalLM, PLTCache, drafting_plt, generation_plt
from iquest_plt.cache_layers_plt import LoopStates
from iquest_plt.cache_staircase_plt import Staircase
from iquest_plt.compat_plt import CACHE_NAME
from iquest_plt.drafting_plt import Drafts, row_cost, speculative_sample
from iquest_plt.staircase_plt import advance, plan_staircase


pytestmark = pytest.mark.core
GREEDY = {"do_sample": False, "pad_token_id": 0}


# -- the schedule -----------------------------------------------------------------------------------------------------

TEXT = "abcdefghijklm"


def decode_symbolically(num_loops: int, sizes: tuple[int, ...], holds: tuple[bool, ...]) -> tuple[str, int]:
    """
    Decodes after the token "a" as many tokens as `holds` has, with drafts that are right where it says so. `sizes` are
    the numbers of new drafts, pass by pass. Returns the text and the number of passes. Checks all dependencies.
    """
    length = len(holds) + 1
    known, drafts, leads, passes = TEXT[0], "", (0,) * num_loops, 0
    done = [""] * num_loops  # the text whose cells each loop has computed
    while len(known) < length:
        first = len(known) + len(drafts)
        size = max(min(sizes[passes % len(sizes)], length - first), 0)
        drafts += "".join(TEXT[i] if holds[i - 1] else "!" for i in range(first, first + size))
        text, past = known + drafts, len(known) - 1
        block, before = plan_staircase(leads, 1 + len(drafts)), list(done)
        for run in block.runs:
            assert done[run.loop] == text[: past + run.start], "its window: computed once, and for this text"
            if run.loop:
                assert past + run.stop - 1 <= len(before[run.loop - 1]), "the loop before, at the token before"
            done[run.loop] = text[: past + run.stop]
            assert len(done[0]) >= past + run.stop, "loop 0's keys"
        passes += 1
        settled = 0
        for seen in range(past + 1, past + block.runs[-1].stop + 1):  # the last loop has seen text[:seen]
            assert text[:seen] == TEXT[:seen]
            known, settled, held = TEXT[: seen + 1], settled + 1, text[seen : seen + 1] == TEXT[seen]
            if not held or len(known) == length:
                break
        leads = advance(block, settled, held)
        drafts = text[len(known) :] if held else ""
        done = [done[loop][: len(known) - 1 + lead] for loop, lead in enumerate(leads)]
    return known, passes


@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
def test_no_sequence_of_drafts_needs_more_passes_than_plain_decoding(num_loops):
    """All outcomes of drafts of up to five tokens per pass, over twelve tokens."""
    for size in range(6):
        for holds in itertools.product([False, True], repeat=12):
            text, passes = decode_symbolically(num_loops, (size,), holds)
            assert text == TEXT and passes <= 12
        assert size == 0 or passes <= math.ceil(12 / size) + num_loops - 1  # the last outcome: all hold


@pytest.mark.parametrize("num_loops", [2, 3, 4])
def test_drafts_of_changing_lengths(num_loops):
    for sizes in itertools.product([0, 1, 4], repeat=4):
        for holds in itertools.product([False, True], repeat=7):
            text, passes = decode_symbolically(num_loops, sizes, holds)
            assert text == TEXT[:8] and passes <= 7


# -- a pass -----------------------------------------------------------------------------------------------------------


def decode_by_hand(model, ids, prompt: int, num_loops: int, size: int, static: bool) -> float:
    """
    Decodes `ids` (1, T) after `prompt` tokens with `size` new drafts per pass, every fifth of them wrong. Then decodes
    the last three tokens plainly from the same cache. Returns the distance of all logits to the oracle's.
    """
    cache = StaticCache(config=model.config, max_cache_len=64) if static else PLTCache(model.config, num_loops)
    arguments = {"num_loops": num_loops, CACHE_NAME: cache}
    model(ids[:, : prompt - 1], use_cache=True, **arguments)
    staircase, known, drafts, logits = Staircase(cache, num_loops), prompt, [], []
    row = ids[0, :-3].tolist()
    while known < len(row):
        first = known + len(drafts)
        new = enumerate(row[first : first + size], start=first)
        drafts += [token if i % 5 else (token + 1) % VOCAB for i, token in new]
        text, positions = torch.tensor([[row[known - 1], *drafts]]), torch.arange(known - 1, known + len(drafts))[None]
        settled = 0
        for row_logits in model(text, position_ids=positions, staircase=staircase, **arguments).logits[0]:
            logits.append(row_logits)
            known, settled = known + 1, settled + 1
            held = bool(drafts) and drafts.pop(0) == row[known - 1]
            if not held:
                drafts = []
                break
        staircase.settle(settled, held)
        assert [keys.shape[2] for keys, _ in staircase._ahead[-1]] == list(staircase.leads[1:])
        assert staircase.leads[0] <= num_loops * (size + 1)
    staircase.drop()
    assert cache.get_seq_length() == known - 1
    logits += [model(ids[:, i : i + 1], **arguments).logits[0, 0] for i in range(known - 1, ids.shape[1])]
    return distance(torch.stack(logits), oracle(model, ids[0], num_loops)[prompt - 1 :])


@pytest.mark.parametrize("window", [0, 2, 20])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_pass_equals_the_oracle(attention, static, window):
    gate = {"plt_gate_use_hidden_states": window != 2, "plt_normalize_per_loop": window != 20}
    model = tiny_model(attention=attention, plt_window_size=[window, 0], **gate)
    for num_loops, size in [(1, 3), (2, 1), (2, 8), (3, 3), (4, 1), (4, 8)]:
        assert decode_by_hand(model, tokens(1, 40), 6, num_loops, size, static) < TOLERANCE


@torch.no_grad()
def test_a_dropped_draft_does_not_copy_the_cache():
    model, ids = tiny_model(), tokens(1, 30)
    cache = PLTCache(model.config)
    model(ids[:, :20], **{CACHE_NAME: cache})
    model(ids[:, 20:21], **{CACHE_NAME: cache})  # makes spare room
    place = cache.layers[0].keys.data_ptr()
    for known in range(22, 26):
        staircase = Staircase(cache, 2)
        positions = torch.arange(known - 1, known + 3)[None]
        model(ids[:, known - 1 : known + 3], position_ids=positions, staircase=staircase, **{CACHE_NAME: cache})
        staircase.settle(1, keep_ahead=False)
        assert cache.layers[0].keys.data_ptr() == place and cache.get_seq_length() == known


# -- generate() -------------------------------------------------------------------------------------------------------


class Guesses(CandidateGenerator):
    """Drafts the tokens of `text` (T), with wrong ones where `wrong(position)` is true."""

    def __init__(self, text, num_output_tokens, wrong):
        self.text, self.num_output_tokens, self.wrong = text, num_output_tokens, wrong

    def get_candidates(self, input_ids, **kwargs):
        first = input_ids.shape[1]
        drafts = self.text[first : first + self.num_output_tokens].clone()
        for i in range(len(drafts)):
            drafts[i] = (drafts[i] + self.wrong(first + i)) % VOCAB
        return torch.cat([input_ids, drafts[None]], dim=1), None

    def update_candidate_strategy(self, input_ids, scores, num_matches):
        pass


@pytest.fixture
def free_rows(monkeypatch):
    """Makes all drafts worth running."""
    monkeypatch.setattr(drafting_plt, "row_cost", lambda model, num_loops: 0.0)
    monkeypatch.setattr(Drafts, "worth", lambda drafts: 1000)


def generate_with_guesses(model, ids, text, size, wrong, monkeypatch, **kwargs):
    """Returns the tokens, and the number of cells per loop of each pass after the prompt."""
    passes = []
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "_get_candidate_generator", lambda *_, **__: Guesses(text, size, wrong))

        def count(module, args, kwargs):
            passes.append((kwargs["inputs_embeds"] if kwargs["input_ids"] is None else kwargs["input_ids"]).shape[1])

        hook = model.model.register_forward_pre_hook(count, with_kwargs=True)
        output = model.generate(ids, prompt_lookup_num_tokens=size, **GREEDY, **kwargs)
        hook.remove()
    return output, passes[1:]


@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
@torch.no_grad()
def test_passes_of_generate(free_rows, monkeypatch, num_loops):
    """Perfect drafts of n tokens need n / k + R - 1 passes, and wrong ones no more than plain decoding."""
    model, ids = tiny_model(initializer_range=0.3).double(), tokens(1, 9)
    plain = model.generate(ids, max_new_tokens=41, num_loops=num_loops, **GREEDY)
    mistakes = [lambda i: 0, lambda i: 1, lambda i: i % 3 == 0, lambda i: i % 7 == 0]
    for size, wrong in itertools.product([1, 3, 8], mistakes):
        arguments = {"max_new_tokens": 41, "num_loops": num_loops}
        drafted, passes = generate_with_guesses(model, ids, plain[0], size, wrong, monkeypatch, **arguments)
        assert torch.equal(drafted, plain)
        assert len(passes) <= 40  # the prompt's pass writes the first token
        if not any(wrong(i) for i in range(50)):
            assert len(passes) <= math.ceil(40 / size) + num_loops - 1


CODE = Path(drafting_plt.__file__).read_text()


def prompts(count: int):
    """Yields prompts (1, T) of three kinds: random tokens, repeated ones, and code that is asked for again."""
    for seed in range(count):
        kind, length = seed % 3, 6 + seed % 11
        if kind == 0:
            yield tokens(1, length, seed=seed)
        elif kind == 1:
            yield tokens(1, 4 + seed % 5, seed=seed).repeat(1, 3)
        else:
            start = 37 * seed % (len(CODE) - 80)
            code = [ord(c) % VOCAB for c in CODE[start : start + 40]]
            yield torch.tensor([code + code[: 3 + length]])


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
@torch.no_grad()
def test_prompt_lookup_gives_the_tokens_of_plain_decoding(free_rows, num_loops, count):
    """The prompts go through both gates, windows shorter and longer than the drafts, and both kinds of cache."""
    ways, passes = list(itertools.product([True, False], [2, 20], ["dynamic", "static"])), []
    models = {}
    for gate, window, _ in ways:
        shape = {"plt_window_size": [window, 0], "plt_gate_use_hidden_states": gate, "num_hidden_layers": 2}
        models[gate, window] = tiny_model(plt_num_loops=num_loops, **shape).double()
        models[gate, window].model.register_forward_pre_hook(lambda *_: passes.append(1))
    for ids, (gate, window, cache) in zip(prompts(count), itertools.cycle(ways), strict=False):
        arguments = {"max_new_tokens": 20, "attention_mask": torch.ones_like(ids), **GREEDY}
        passes.clear()
        plain = models[gate, window].generate(ids, **arguments)
        plain_passes = len(passes)
        for size in (1, 3, 8):
            passes.clear()
            arguments |= {"prompt_lookup_num_tokens": size, "cache_implementation": cache}
            assert torch.equal(models[gate, window].generate(ids, **arguments), plain), (ids, size)
            assert len(passes) <= plain_passes


def draft_model(kind: str, model):
    if kind == "Llama":
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=VOCAB, bos_token_id=None, eos_token_id=None, **shape)
        return LlamaForCausalLM(config).eval().double()
    if kind == "another PLT":
        return tiny_model(seed=3).double()
    return model.with_num_loops(1) if kind == "one loop" else model


@pytest.mark.parametrize("kind", ["Llama", "one loop", "another PLT", "itself"])
@torch.no_grad()
def test_draft_models(free_rows, kind):
    model = tiny_model(plt_num_loops=3).double()
    drafter = draft_model(kind, model)
    for seed in range(3):
        ids = tokens(1, 7, seed=seed)
        plain = model.generate(ids, max_new_tokens=40, **GREEDY)
        assert torch.equal(model.generate(ids, max_new_tokens=40, assistant_model=drafter, **GREEDY), plain)
        ends = {"eos_token_id": int(plain[0, 30]), "max_new_tokens": 40}
        plain = model.generate(ids, **ends, **GREEDY)
        assert torch.equal(model.generate(ids, assistant_model=drafter, **ends, **GREEDY), plain)


class Puts(BaseStreamer):
    def __init__(self, fails_at: int | None = None):
        self.values, self.fails_at = [], fails_at

    def put(self, value):
        self.values.append(value.tolist())
        if len(self.values) == self.fails_at:
            raise KeyboardInterrupt

    def end(self):
        self.values.append("end")


class Sees(LogitsProcessor):
    """Records the texts that it is called with."""

    def __init__(self):
        self.texts = []

    def __call__(self, input_ids, scores):
        self.texts.append(input_ids.tolist())
        return scores


class StopsAt(StoppingCriteria):
    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_new_tokens": 37},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"max_length": 23},
        {"eos": 17},
        {"stops_at": 29},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 12, "eos": 5},
        {"do_sample": True, "temperature": 0.7, "top_k": 20},
        {"guidance_scale": 1.5},
    ],
    ids=str,
)
@torch.no_grad()
def test_everything_around_the_tokens_is_as_in_plain_decoding(free_rows, monkeypatch, arguments):
    """Streamer calls, texts seen by processors, scores, logits, stopping, sampled tokens, and the cache."""
    arguments = dict(arguments)
    model, ids = tiny_model(plt_num_loops=3, initializer_range=0.3).double(), tokens(1, 9)
    text = model.generate(ids, max_new_tokens=60, **GREEDY)[0]
    eos, stops_at = arguments.pop("eos", None), arguments.pop("stops_at", None)
    if eos is not None:
        arguments["eos_token_id"] = int(text[9 + eos])
    results = []
    for drafting in (False, True):
        torch.manual_seed(5)
        streamer, sees = Puts(), Sees()
        shared = {
            "streamer": streamer,
            "logits_processor": LogitsProcessorList([sees]),
            "return_dict_in_generate": True,
        }
        shared |= {"output_scores": True, "output_logits": True, "max_new_tokens": 45} | GREEDY | arguments
        if "max_length" in arguments:
            shared.pop("max_new_tokens")
        if stops_at:
            shared["stopping_criteria"] = StoppingCriteriaList([StopsAt(stops_at)])
        with monkeypatch.context() as patch:
            patch.setattr(
                type(model), "_get_candidate_generator", lambda *_, **__: Guesses(text, 4, lambda i: i % 6 == 0)
            )
            output = model.generate(ids, **shared, **({"prompt_lookup_num_tokens": 4} if drafting else {}))
        results.append((output, streamer.values, sees.texts))
    (plain, plain_puts, plain_texts), (drafted, puts, texts) = results
    assert torch.equal(drafted.sequences, plain.sequences)
    assert puts == plain_puts and texts == plain_texts
    assert len(drafted.scores) == len(plain.scores) == len(drafted.logits) == drafted.sequences.shape[1] - 9
    for name in ("scores", "logits"):
        torch.testing.assert_close(torch.cat(drafted[name]), torch.cat(plain[name]), rtol=1e-5, atol=1e-5)
    caches = [drafted.past_key_values, plain.past_key_values]
    assert caches[0].get_seq_length() == caches[1].get_seq_length()
    kept = [model(plain.sequences[:, -1:], num_loops=3, **{CACHE_NAME: cache}).logits for cache in caches]
    torch.testing.assert_close(*kept)


@torch.no_grad()
def test_an_interrupted_text_leaves_a_usable_cache(free_rows, monkeypatch):
    model, ids = tiny_model(plt_num_loops=3).double(), tokens(1, 9)
    text = model.generate(ids, max_new_tokens=40, **GREEDY)[0]
    for fails_at in range(2, 12):
        cache = PLTCache(model.config)
        with pytest.raises(KeyboardInterrupt):
            arguments = {"streamer": Puts(fails_at), CACHE_NAME: cache, "max_new_tokens": 30}
            generate_with_guesses(model, ids, text, 3, lambda i: i == 15, monkeypatch, **arguments)
        length = cache.get_seq_length()
        assert 9 <= length < 9 + fails_at
        logits = model(text[None, length : length + 3], **{CACHE_NAME: cache}).logits
        torch.testing.assert_close(logits, model(text[None, : length + 3], use_cache=False).logits[:, length:])


@pytest.mark.parametrize("assistant", [False, True])
@torch.no_grad()
def test_what_falls_back_to_the_library(monkeypatch, assistant):
    """Each of these gives the tokens of plain decoding, in the library's way."""
    ids, calls = tokens(1, 9).repeat(1, 2), []
    library = GenerationMixin._assisted_decoding

    def spy(self, *args, **kwargs):
        calls.append(self)
        return library(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "_assisted_decoding", spy)
    padded, mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1), torch.ones(1, 21, dtype=torch.long)
    mask[0, :3] = 0
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    cases = [
        ({}, {"loop_schedule": "sequence"}, ids),
        ({}, {"attention_mask": mask}, padded),
        ({}, {"output_hidden_states": True, "return_dict_in_generate": True}, ids),
        ({"plt_cross_loop_shift": False}, {}, ids),
        ({"plt_loop_attention": "own"}, {}, ids),
        ({"rope_parameters": rope}, {}, ids),
    ]
    for fields, arguments, prompt in cases:
        model = tiny_model(**fields).double()
        drafting = {"assistant_model": model.with_num_loops(1)} if assistant else {"prompt_lookup_num_tokens": 3}
        arguments = {"max_new_tokens": 12, **GREEDY} | arguments
        calls.clear()
        plain, drafted = model.generate(prompt, **arguments), model.generate(prompt, **drafting, **arguments)
        assert torch.equal(getattr(drafted, "sequences", drafted), getattr(plain, "sequences", plain))
        assert calls == [model], (fields, arguments)
    calls.clear()
    model = tiny_model().double()
    model.generate(ids, max_new_tokens=5, prompt_lookup_num_tokens=3, **GREEDY)
    assert not calls


class Counts(LogitsProcessor):
    """Adds scores that depend on how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        return scores + torch.sin(torch.arange(VOCAB) * self.calls)


@pytest.mark.parametrize("processor", ["guidance", "counting"])
@torch.no_grad()
def test_processors_with_a_state_see_only_the_text(free_rows, processor):
    """Drafting does not call them, although the library gives them to its generators."""
    model, ids = tiny_model(initializer_range=0.3).double(), tokens(1, 9).repeat(1, 3)
    texts = []
    for drafting in ({}, {"prompt_lookup_num_tokens": 4}, {"assistant_model": model.with_num_loops(1)}):
        is_counting = processor == "counting"
        options = {"logits_processor": LogitsProcessorList([Counts()])} if is_counting else {"guidance_scale": 1.5}
        texts.append(model.generate(ids, max_new_tokens=20, **options, **drafting, **GREEDY))
    assert torch.equal(texts[1], texts[0]) and torch.equal(texts[2], texts[0])


@pytest.mark.parametrize("main, own, expected", [(3, None, 1), (3, 2, 2), (None, 2, 2)])
def test_a_draft_model_runs_its_own_number_of_loops(main, own, expected):
    """Even if the main model's generation config sets another one."""
    model, drafter = tiny_model(), tiny_model(seed=3, plt_num_loops=1)
    model.generation_config.num_loops, drafter.generation_config.num_loops = main, own
    loops = set()
    drafter.model.register_forward_pre_hook(
        lambda module, args, kwargs: loops.add(kwargs["num_loops"]), with_kwargs=True
    )
    model.generate(tokens(1, 9), max_new_tokens=5, assistant_model=drafter, **GREEDY)
    assert loops == {expected}


def scale_inputs(self, *args, **kwargs):
    inputs = GenerationMixin.prepare_inputs_for_generation(self, *args, **kwargs)
    return inputs | {"inputs_embeds": 1.5 * self.get_input_embeddings()(inputs.pop("input_ids"))}


def only_known_arguments(
    self,
    input_ids=None,
    attention_mask=None,
    position_ids=None,
    cache=None,
    past_key_values=None,
    use_cache=None,
    logits_to_keep=0,
    return_dict=None,
):
    """A `forward` that takes nothing else."""
    arguments = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": use_cache}
    arguments |= {"past_key_values": past_key_values if cache is None else cache, "logits_to_keep": logits_to_keep}
    return IQuestPLTCoderForCausalLM.forward(self, input_ids, **arguments)


@pytest.mark.parametrize(
    "changes", [{"prepare_inputs_for_generation": scale_inputs}, {"forward": only_known_arguments}], ids=lambda c: [*c]
)
@torch.no_grad()
def test_subclasses_that_change_the_inputs(free_rows, changes):
    model, ids = tiny_model(initializer_range=0.3).double(), tokens(1, 9).repeat(1, 3)
    model.__class__ = type("Changed", (IQuestPLTCoderForCausalLM,), changes)
    plain = model.generate(ids, max_new_tokens=20, **GREEDY)
    assert torch.equal(model.generate(ids, max_new_tokens=20, prompt_lookup_num_tokens=4, **GREEDY), plain)


@pytest.mark.parametrize("embeds", [False, True])
@torch.no_grad()
def test_drafts_stay_inside_a_static_cache(free_rows, monkeypatch, embeds):
    """It need not hold `max_length` tokens if the text ends before."""
    model, ids = tiny_model(initializer_range=0.3).double(), tokens(1, 9)
    prompt = {"inputs_embeds": model.get_input_embeddings()(ids)} if embeds else {}
    text = model.generate(None if embeds else ids, max_new_tokens=40, **prompt, **GREEDY)[0]
    length = len(text) - 28
    cache = StaticCache(config=model.config, max_cache_len=9 + 12 - 1)
    arguments = {"stopping_criteria": StoppingCriteriaList([StopsAt(length)]), CACHE_NAME: cache, **prompt}
    arguments |= {"max_new_tokens": 99}
    drafted, _ = generate_with_guesses(
        model, None if embeds else ids, text, 20, lambda i: i == length - 6, monkeypatch, **arguments
    )
    assert torch.equal(drafted[0], text[:length])


@pytest.mark.parametrize("kind", ["a learned prompt", "aLoRA"])
def test_adapters_that_expect_one_token_per_pass(kind):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    if kind == "aLoRA":
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[5])
    model = peft.get_peft_model(tiny_model(), config).eval()
    with pytest.raises(ValueError, match="cannot decode with drafts"):
        model.generate(input_ids=tokens(1, 9), max_new_tokens=5, prompt_lookup_num_tokens=3, **GREEDY)


def test_cache_layers_of_remote_code(monkeypatch):
    """Remote code and the installed package define separate classes, of which the last one makes the cache."""
    model, calls = tiny_model(), []
    monkeypatch.setattr(generation_plt, "decode_with_drafts", lambda *args: calls.append(args))
    cache = PLTCache(model.config)
    for layer in cache.layers:
        layer.__class__ = type("PLTCacheLayer", (LoopStates, DynamicLayer), {"can_take_back": True})
    model.generate(tokens(1, 9), max_new_tokens=5, prompt_lookup_num_tokens=3, **{CACHE_NAME: cache}, **GREEDY)
    assert calls


@torch.no_grad()
def test_sampling_with_a_draft_model_keeps_the_distribution():
    torch.manual_seed(0)
    scores, draft_scores = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0]), torch.tensor([0.0, 1.5, 0.5, -20.0, 1.0])
    drafts = torch.multinomial(draft_scores.softmax(-1), 20000, replacement=True).tolist()
    drawn = torch.tensor([speculative_sample(scores, draft, draft_scores).item() for draft in drafts])
    share = drawn.bincount(minlength=5) / len(drawn)
    assert (share - scores.softmax(-1)).abs().max() < 0.015  # four standard deviations
    held = (drawn == torch.tensor(drafts)).float().mean()
    assert abs(held - torch.minimum(scores.softmax(-1), draft_scores.softmax(-1)).sum()) < 0.015
    assert all(speculative_sample(scores, draft, scores).item() == draft for draft in (0, 1, 2))


# -- which drafts run -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_drafts_that_never_hold_are_not_run(monkeypatch):
    """They are still compared with the text, so that drafting starts again when they begin to hold."""
    monkeypatch.setattr(drafting_plt, "row_cost", lambda model, num_loops: 0.02)
    model, ids = tiny_model(initializer_range=0.3).double(), tokens(1, 9)
    plain = model.generate(ids, max_new_tokens=150, **GREEDY)
    arguments = (model, ids, plain[0], 8)
    drafted, passes = generate_with_guesses(*arguments, lambda i: i < 80, monkeypatch, max_new_tokens=150)
    assert torch.equal(drafted, plain)
    assert passes[40:60] == [1] * 20 and sum(passes[:70]) < 2 * 70
    assert len(passes) < 70 + 40 and max(passes[70:]) > 8


def test_the_number_of_drafts_follows_how_often_they_hold_and_what_rows_cost():
    drafts = Drafts(Guesses(tokens(9), 10, None), cost=0.1)
    worth = {}
    for rate in (0.05, 0.5, 0.9):
        drafts.hold_rate = rate
        worth[rate] = drafts.worth()
    assert worth == {0.05: 0, 0.5: 3, 0.9: 21}  # the largest j with rate ** j > 0.1
    drafts.cost, drafts.hold_rate = 1.0, 0.9
    assert drafts.worth() == 0


def test_a_draft_model_learns_how_many_of_its_drafts_held():
    class Reports(Guesses):
        def update_candidate_strategy(self, input_ids, scores, num_matches):
            reports.append((scores.shape[1] - 1, num_matches))

    reports, text = [], tokens(30)
    drafts = Drafts(Reports(text, 4, lambda i: i == 12), cost=0.01)
    known = 10
    while known < 24:
        drafts.extend(text[None, :known], room=30 - known)
        drafts.judge(int(text[known]))
        known += 1
    assert reports[0] == (4 + 4 - 1 - 1, 2) or reports[0][1] == 2
    assert all(held <= drafted for drafted, held in reports)


def test_the_cost_of_a_row_is_measured_once():
    model = tiny_model(hidden_size=256, intermediate_size=1024)
    cost = row_cost(model, 2)
    assert 0 <= cost < 10 and row_cost(model, 2) == cost and row_cost(model.with_num_loops(1), 2) == cost


@torch.no_grad()
def test_the_cost_of_a_row_with_hooks_and_offloaded_layers():
    """Hooks see no made-up states."""
    accelerate = pytest.importorskip("accelerate")
    model, ids, calls = tiny_model(), tokens(1, 9).repeat(1, 3), []
    plain = model.generate(ids, max_new_tokens=5, **GREEDY)
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda *args: calls.append(args))
    assert row_cost(model, 2) == drafting_plt.DEFAULT_ROW_COST and not calls
    offloaded = accelerate.cpu_offload(tiny_model(), execution_device="cpu")
    assert offloaded.model.embed_tokens.weight.is_meta
    assert torch.equal(offloaded.generate(ids, max_new_tokens=5, prompt_lookup_num_tokens=3, **GREEDY), plain)


def test_a_wrong_draft_drops_all_that_follow_it():
    drafts = Drafts(Guesses(tokens(9), 10, None), cost=0.1)
    drafts.tokens = [5, 6, 7]
    assert drafts.judge(5) and drafts.tokens == [6, 7]
    assert not drafts.judge(5) and drafts.tokens == []
