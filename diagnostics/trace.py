# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs a model over a text and records each loop's states, queries, keys and gates.

Attention weights are not stored: they grow with the square of the text. They are computed from the queries and keys,
for a few queries at a time.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from . import metrics
from .loop_names import loop_name


MODEL_CLASS = "IQuestPLTCoderForCausalLM"
MAX_LENGTH = 1024  # default number of tokens in a piece
BRANCHES = ("global", "window", "mixture")
KNOWN_ATTENTIONS = ("gated", "shared", "own")  # as `plt_loop_attention`


@dataclass
class Trace:
    """
    One pass over a text: T tokens, R loops, L layers. Lists over loops begin with loop 0.

    Attributes:
        embeddings (T, D): `h^(0)`, the rows of the embedding matrix, without `plt_emb_scale`: the input of loop 0.
        states: `h^(1) … h^(R+1)`, each (T, D), as fed back: normed if `plt_normalize_per_loop` is set. There is one
            more loop than measured, for the fixed-point gap.
        head_inputs: R tensors (T, D), the input of `lm_head` after each loop; always normed.
        queries, keys: [loop][layer], (H, T, C) and (K, T, C), with rotary embeddings applied.
        gates: [loop][layer], (H, T), the weight of the global branch; None in loop 0, and for models without gates.
        scaling: factor on the product of query and key.
        window: number of keys before its own that a token's window contains.
        loop_attention: `plt_loop_attention`.
    """

    embeddings: torch.Tensor
    states: list[torch.Tensor]
    head_inputs: list[torch.Tensor]
    queries: list[list[torch.Tensor]]
    keys: list[list[torch.Tensor]]
    gates: list[list[torch.Tensor] | None]
    scaling: float
    window: int
    loop_attention: str

    @property
    def num_loops(self) -> int:
        return len(self.head_inputs)

    def log_attention(self, loop: int, layer: int, start: int, stop: int) -> dict[str, torch.Tensor | None]:
        """
        Returns log attention weights of queries start … stop − 1 on keys 0 … stop − 1, for each of `BRANCHES`:
        (H, stop − start, stop), or None if the branch is absent.

        Loop 0 has no window. In loop 0, and for `plt_loop_attention="shared"`, the mixture is the global branch on
        loop 0's keys. For "own", later loops have only the window.
        """
        query = self.queries[loop][layer][:, start:stop]
        own_keys, first_keys = (self.keys[index][layer][:, :stop] for index in (loop, 0))
        if loop == 0 or self.loop_attention == "shared":
            log_global = log_attention(query, first_keys, self.scaling, start)
            return {"global": log_global, "window": None, "mixture": log_global}
        log_window = log_attention(query, own_keys, self.scaling, start, self.window)
        if self.loop_attention == "own":
            return {"global": None, "window": log_window, "mixture": log_window}
        log_global = log_attention(query, first_keys, self.scaling, start)
        gate = self.gates[loop][layer][:, start:stop]  # type: ignore[index]
        mixed = metrics.mixture(log_global, log_window, gate)
        return {"global": log_global, "window": log_window, "mixture": mixed}


def log_attention(
    query: torch.Tensor, key: torch.Tensor, scaling: float, start: int, window: int | None = None
) -> torch.Tensor:
    """
    Returns the log softmax of causal attention, (H, Q, S), for queries (H, Q, C) at positions from `start` and keys
    (K, S, C) from position 0; K divides H. With `window`, a query sees at most that many keys before its own. Half
    precision is computed in float32.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    key = key.repeat_interleave(len(query) // len(key), dim=0).to(dtype)
    scores = query.to(dtype) @ key.transpose(1, 2) * scaling
    positions = torch.arange(key.shape[1], device=key.device)
    distance = positions[start : start + query.shape[1], None] - positions
    hidden = distance < 0 if window is None else (distance < 0) | (distance > window)
    return scores.masked_fill(hidden, -torch.inf).log_softmax(-1)


def check_model(model: PreTrainedModel) -> None:
    """Raises ValueError if the model is not a PLT with a language-model head."""
    if not any(cls.__name__ == MODEL_CLASS for cls in type(model).__mro__):  # by name: remote code has its own class
        raise ValueError(
            f"The diagnostics need a Parallel Loop Transformer, but this is a {type(model).__name__}. Load a PLT "
            "checkpoint with `AutoModelForCausalLM`, and merge any adapters."
        )


def check_controls(model: PreTrainedModel) -> None:
    """Raises ValueError for the research controls that the metrics of states and attention do not cover."""
    config = model.config
    for name, known in (("plt_cross_loop_shift", (True, False)), ("plt_loop_attention", KNOWN_ATTENTIONS)):
        if getattr(config, name) not in known:
            raise ValueError(
                f"The diagnostics of states and attention cover only {', '.join(map(repr, known))} as `{name}`, and "
                f"this model has {getattr(config, name)!r}. `loop_lens` takes any model."
            )


def check_settings(
    model: PreTrainedModel, max_loops: int | None, max_length: int | None, length_name: str = "max_length"
) -> tuple[int, int]:
    """Returns both numbers, with None replaced by the model's default. Raises ValueError if one is below 1."""
    max_loops = model.config.plt_num_loops if max_loops is None else max_loops
    max_length = min(MAX_LENGTH, model.config.max_position_embeddings) if max_length is None else max_length
    for name, value in (("max_loops", max_loops), (length_name, max_length)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")
    return max_loops, max_length


@torch.no_grad()
def trace(model: PreTrainedModel, ids: torch.Tensor, num_loops: int) -> Trace:
    """
    Runs `model` on one text, `ids` (T,), for `num_loops` + 1 loops, in evaluation mode and with any attention kernel.

    Raises:
        ValueError: if a state is not finite.
    """
    decoder, config = model.model, model.config
    embeddings, rotary, before_norm = [], [], []
    attentions = [layer.self_attn for layer in decoder.layers]
    queries, keys, gates = ([[] for _ in attentions] for _ in range(3))
    hooks = [
        decoder.embed_tokens.register_forward_hook(_keep_output(embeddings)),
        decoder.rotary_emb.register_forward_hook(_keep_output(rotary)),
        decoder.norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0])),
    ]
    for layer, attention in enumerate(attentions):
        hooks.append(attention.q_proj.register_forward_hook(_keep_output(queries[layer])))
        hooks.append(attention.k_proj.register_forward_hook(_keep_output(keys[layer])))
        hooks.append(attention.plt_gate.register_forward_hook(_keep_output(gates[layer])))
    was_training = model.training
    model.eval()
    try:
        ids = ids.to(decoder.embed_tokens.weight.device)
        outputs = decoder(
            input_ids=ids[None],
            num_loops=num_loops + 1,
            loop_schedule="sequence",  # one layer call per loop, even for a single token
            use_cache=False,
            output_loop_states=True,
            return_dict=True,
        )
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()

    states = [state[0] for state in outputs.loop_states]
    if not config.plt_normalize_per_loop:
        states[-1] = before_norm[-1][0]
    for loop, state in enumerate(states):
        if not state.isfinite().all():
            raise ValueError(f"The states after {loop_name(loop)} are not finite: {_reason(model)}.")
    head_inputs = states if config.plt_normalize_per_loop else [decoder.norm(state) for state in states]

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, config.head_dim)).transpose(1, 2)

    cos, sin = rotary[0]
    rotated = [
        [
            apply_rotary_pos_emb(heads(query), heads(key), cos.to(query.device), sin.to(query.device))
            for query, key in zip(queries[layer][:num_loops], keys[layer][:num_loops], strict=True)
        ]
        for layer in range(len(attentions))
    ]
    gated = [[gate[0].T for gate in of_layer] for of_layer in gates]  # begins with loop 1; empty without gates
    return Trace(
        embeddings=embeddings[0][0].to(states[0].device),
        states=states,
        head_inputs=head_inputs[:num_loops],
        queries=[[of_layer[loop][0][0] for of_layer in rotated] for loop in range(num_loops)],
        keys=[[of_layer[loop][1][0] for of_layer in rotated] for loop in range(num_loops)],
        gates=[
            [of_layer[loop - 1] for of_layer in gated] if loop > 0 and gated[0] else None for loop in range(num_loops)
        ],
        scaling=attentions[0].scaling,
        window=config.loop_window,
        loop_attention=config.plt_loop_attention,
    )


def _keep_output(kept: list):
    def hook(module: nn.Module, args: tuple, output) -> None:
        kept.append(output)

    return hook


def _reason(model: PreTrainedModel) -> str:
    """Returns why the model's numbers are not finite, for an error message."""
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not parameter.isfinite().all():
            return f"the weights of {name} contain NaN or infinite values. Load another copy of the checkpoint"
    return "the model overflows in this precision. Load it in float32 or bfloat16"
