# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding with vLLM, with requests that arrive at different times, compared with the Transformers model."""

import contextlib
import random
from collections import Counter

import torch
from tiny import tiny_model
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

from iquest_plt import IQuestPLTCoderForCausalLM
from iquest_plt.serving.vllm import model as plugin


NEW_TOKENS = 32
# The rule for ties. A token passes if, after the same text, no logit of the reference exceeds the token's by more than
# this share of the largest logit. Kernels round differently, so logits that are equal up to rounding may swap places.
# Such ties may occur once in a thousand tokens. So far none has occurred.
MARGIN = 1e-4
VOCAB = 500


def save_model(folder, num_loops: int, gate_on_hidden: bool, swapped: bool = False, **fields) -> str:
    """Saves a random model in which carries, windows and gates matter. `swapped` replaces every gate g by 1 - g."""
    defaults = {
        "vocab_size": VOCAB,
        "hidden_size": 128,  # a carry of 128 numbers needs one cell of 2 * 2 * 32, or two under tensor parallelism
        "intermediate_size": 192,
        "num_attention_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_theta": 1000.0,
        "plt_window_size": [64, 0],
        "plt_num_loops": num_loops,
        "plt_gate_use_hidden_states": gate_on_hidden,
    }
    model = tiny_model(**defaults | fields)
    if swapped:
        for layer in model.model.layers:
            layer.self_attn.plt_gate.weight.data.neg_()
            layer.self_attn.plt_gate.bias.data.neg_()
    path = folder / f"{num_loops}-{gate_on_hidden}-{swapped}"
    model.save_pretrained(path)
    return str(path)


def some_prompts(count: int, longest: int, vocab: int = VOCAB, seed: int = 0) -> list[list[int]]:
    """Returns prompts of 1 to `longest` tokens, spread logarithmically, including lengths around a window and block."""
    draw = random.Random(seed)
    lengths = [1, 2, 63, 64, 65, 66, 128, 129, longest]
    lengths += [round(longest ** draw.random()) for _ in range(count - len(lengths))]
    draw.shuffle(lengths)
    return [[draw.randrange(vocab) for _ in range(length)] for length in lengths]


@contextlib.contextmanager
def engine(path: str, **options):
    """Starts a vLLM engine. There is only one at a time."""
    defaults = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": 2176,
        "max_num_seqs": 64,
        "block_size": 32,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    llm = LLM(path, **defaults | options)
    try:
        yield llm.llm_engine
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


def count_kinds(monkeypatch) -> Counter:
    """Returns a count of passes by whether they have rows whose loops run together, and other rows."""
    kinds, split = Counter(), plugin.split

    def watched(*args):
        together, rest = split(*args)
        kinds[together is not None, rest is not None] += 1
        return together, rest

    monkeypatch.setattr(plugin, "split", watched)
    return kinds


def generate(
    engine, prompts: list[list[int]], every: int = 2, preempt_every: int = 0, adapters: list | None = None
) -> list:
    """
    Returns the requests' outputs. One request arrives every `every` engine steps; 0 sends all at once. If
    `preempt_every` is set, all running requests are regularly preempted and lose their cache. `adapters` are vLLM's
    LoRA requests, or None, one per prompt.
    """
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    waiting, outputs, step = list(enumerate(prompts)), {}, 0
    while waiting or engine.has_unfinished_requests():
        while waiting and (every == 0 or step % every == 0):
            index, prompt = waiting.pop(0)
            adapter = adapters[index] if adapters else None
            engine.add_request(str(index), {"prompt_token_ids": prompt}, params, lora_request=adapter)
            if every:
                break
        outputs |= {output.request_id: output for output in engine.step() if output.finished}
        step += 1
        if preempt_every and step % preempt_every == 0:
            engine.reset_prefix_cache(reset_running_requests=True)
    return [outputs[str(index)] for index in range(len(prompts))]


def said(output) -> list[int]:
    return list(output.outputs[0].token_ids)


class Judge:
    """The Transformers model of a checkpoint, to measure how far other tokens are from its own choices."""

    def __init__(self, path: str, **fields):
        self.model = IQuestPLTCoderForCausalLM.from_pretrained(path, dtype=torch.float32, **fields).eval()
        self.known = {}

    @torch.no_grad()
    def gaps(self, prompt: list[int], chosen: list[int]) -> torch.Tensor:
        """Returns, for each chosen token, the gap to the largest logit, relative to the largest absolute logit."""
        key = (*prompt, -1, *chosen)
        if key not in self.known:
            logits = self.model(torch.tensor([prompt + chosen[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
            taken = logits.gather(1, torch.tensor(chosen)[:, None])[:, 0]
            self.known[key] = (logits.amax(-1) - taken) / logits.abs().amax(-1)
        return self.known[key]

    def agrees(self, prompts: list[list[int]], outputs: list) -> list[bool]:
        """Returns, for each output, whether every token is the model's own greedy choice, except for ties."""
        return [bool((gaps <= MARGIN).all()) for gaps in self.all_gaps(prompts, outputs)]

    def check(self, prompts: list[list[int]], outputs: list, margin: float = MARGIN, ties: float = 1e-3) -> None:
        """Asserts that all outputs agree. At most a share `ties` of the tokens may have a gap, of at most `margin`."""
        gaps = torch.cat(self.all_gaps(prompts, outputs))
        print(f"{len(gaps)} tokens, {(gaps > 0).sum()} not the likeliest, largest gap {gaps.max():.1e}")
        assert gaps.max() <= margin
        assert (gaps > 0).sum() <= len(gaps) * ties

    def all_gaps(self, prompts, outputs) -> list[torch.Tensor]:
        chosen = [said(output) for output in outputs]
        assert all(len(tokens) == NEW_TOKENS for tokens in chosen)
        return [self.gaps(*pair) for pair in zip(prompts, chosen, strict=True)]
