# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains a small model on one GPU, without Trainer: compiled layers, bf16 arithmetic, and data that stay on the device.

The optimizer works on a float32 copy of the weights. All layers and loops of all models in a process share a few
compiled graphs, so starting another model takes no time. On a GPU, a whole step is recorded as one CUDA graph: a small
model has hundreds of short kernels a step, which the host launches more slowly than the GPU runs them.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from torch.nn import functional as F

from ..modeling_plt import IQuestPLTCoderDecoderLayer, IQuestPLTCoderForCausalLM
from . import data
from .divergence import Guard
from .optimizer import make_optimizer
from .recipe import MAX_GRAD_NORM, Recipe, build_model, prepare
from .run_files import COMPILED, write_json


EAGER_STEPS = 3  # before a step is recorded, so that all buffers exist
MAX_GRAPHS = 64  # PyTorch stops compiling after 8 variants of a function and runs it uncompiled


def next_token_loss(states: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy in nats per token, from states (B, T, D), the head's weight and ids (B, T)."""
    logits = states[:, :-1] @ weight.T
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@dataclass
class History:
    """What happened: training losses as [step, mean loss since the last entry], seconds, and tokens per second."""

    losses: list[list] = field(default_factory=list)
    seconds: float = 0.0
    tokens_per_second: float = 0.0


class CompiledTraining:
    """
    Trains `model` on a token stream (on the device) as `recipe` says. `weights` always has the float32 weights.

    Args:
        model: in float32 on any device. It is copied.
        stream: None if a subclass makes the batches.
        compiled: False runs the layers uncompiled, for tests.
        graph: record steps as a CUDA graph if the device is a GPU.
        elastic: train every number of loops up to the model's, with the mean of their losses.

    Raises:
        ValueError: for an elastic model with `plt_normalize_per_loop=False`.
    """

    def __init__(
        self,
        model: IQuestPLTCoderForCausalLM,
        recipe: Recipe,
        stream: np.ndarray | None,
        device: torch.device,
        compiled: bool = True,
        graph: bool = True,
        elastic: bool = False,
    ):
        if elastic and not model.config.plt_normalize_per_loop:
            raise ValueError("Elastic training needs normed states after each loop: `plt_normalize_per_loop=True`.")
        self.recipe, self.device, self.elastic = recipe, device, elastic
        self.records = graph and device.type == "cuda"
        if stream is not None:
            self.rows = data.PackedRows(stream, recipe.row, recipe.steps * self.rows_per_step, recipe.seed)
            self.stream = torch.from_numpy(stream.astype(np.int16)).to(device)
        self.weights = copy.deepcopy(model).to(device, torch.float32)
        self.model = copy.deepcopy(model).to(device, torch.bfloat16).train()
        self.optimizer = make_optimizer(
            self.weights, recipe.muon_lr, recipe.adamw_lr, recipe.embedding_lr, recipe.weight_decay
        )
        self.learning_rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)
        self.recorded: RecordedStep | None = None
        self.loss: Callable = next_token_loss
        if compiled:
            self._compile()

    def _compile(self) -> None:
        torch._dynamo.config.recompile_limit = MAX_GRAPHS
        forward = torch.compile(IQuestPLTCoderDecoderLayer.forward, dynamic=False)
        for layer in self.model.model.layers:
            layer.forward = MethodType(forward, layer)  # one function for all layers, which then share its graphs
        self.loss = torch.compile(next_token_loss, dynamic=False)

    @property
    def rows_per_step(self) -> int:
        return self.recipe.tokens_per_step // self.recipe.row

    def batch(self, step: int) -> torch.Tensor:
        """Returns the ids (B, T) of a step, int64."""
        first = step * self.rows_per_step
        starts = torch.tensor([self.rows.start(first + row) for row in range(self.rows_per_step)])
        starts = starts.to(self.device, non_blocking=True)
        return self.stream[starts[:, None] + torch.arange(self.recipe.row, device=self.device)].long()

    def loss_of(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss in nats, from states (B, T, D) and ids (B, T)."""
        return self.loss(states, self.model.lm_head.weight, ids)

    def train(self, steps: int | None = None, report: Callable[[int, float], None] | None = None) -> History:
        """
        Trains `steps` steps, by default all of the recipe. `report(step, loss)` is called with each logged loss.

        Raises:
            DivergedError: if the loss becomes NaN or rises far above its best value.
        """
        history, guard, steps = History(), Guard(), self.recipe.steps if steps is None else steps
        start, recent = time.perf_counter(), []
        for step in range(steps):
            self._set_learning_rates(step)
            recent.append(self._run(step))
            if (step + 1) % self.recipe.log_steps == 0 or step + 1 == steps:  # the host waits for the device only here
                mean = torch.stack(recent).mean().item()
                guard.check(mean, step + 1)
                history.losses.append([step + 1, round(mean, 4)])
                recent.clear()
                if report is not None:
                    report(step + 1, mean)
        history.seconds = time.perf_counter() - start
        history.tokens_per_second = steps * self.recipe.tokens_per_step / history.seconds
        return history

    def _run(self, step: int) -> torch.Tensor:
        """Runs a step and returns its loss. Records the step for later ones when it has run a few times."""
        ids = self.batch(step)
        if not self.records:
            return self.step(ids)
        if self.recorded is None and step >= EAGER_STEPS:
            self.recorded = RecordedStep(self.step, ids)
        if self.recorded is not None:
            return self.recorded(ids)
        side = torch.cuda.Stream()  # as recording needs it: https://docs.pytorch.org/docs/stable/notes/cuda.html
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = self.step(ids)
        torch.cuda.current_stream().wait_stream(side)
        return loss

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Trains on ids (B, T) and returns the loss. It never waits for the device."""
        output = self.model.model(ids, use_cache=False, output_loop_states=self.elastic)
        trained = output.loop_states if self.elastic else [output.last_hidden_state]
        loss = torch.stack([self.loss_of(states, ids) for states in trained]).mean()
        loss.backward()
        self._update()
        return loss.detach()

    def _set_learning_rates(self, step: int) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"].fill_(rate * self.recipe.lr_factor(step))

    @torch.no_grad()
    def _update(self) -> None:
        weights, params = list(self.weights.parameters()), list(self.model.parameters())
        for weight, param in zip(weights, params, strict=True):
            weight.grad = None if param.grad is None else param.grad.float()
            param.grad = None
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        self.optimizer.step()
        torch._foreach_copy_(params, weights)

    def trained_model(self) -> IQuestPLTCoderForCausalLM:
        """Returns the trained model in bf16, in evaluation mode and without compiled layers."""
        for layer in self.model.model.layers:
            vars(layer).pop("forward", None)
        return self.model.eval()


class RecordedStep:
    """A training step as a CUDA graph. Its ids and loss are buffers, and every call runs the same kernels on them."""

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor):
        """Records `step(ids)` without running it."""
        self.ids, self.graph = ids.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = step(self.ids)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        self.ids.copy_(ids)
        self.graph.replay()
        return self.loss.clone()


def seconds_per_step(training: CompiledTraining, steps: int = 12) -> float:
    """Trains some steps to compile, and as many to measure their time."""
    training.train(steps)
    return training.train(steps).seconds / steps


def train_small(
    out: Path, recipe: Recipe, device: torch.device, minutes: float | None = None, compiled: bool = True
) -> Path:
    """
    Trains the small model on the data in `out`, and writes weights and log to OUT/compiled, which `export` reads.

    With `minutes`, first measures the speed and then cuts the number of tokens to what fits. Returns the folder. An
    interrupted run starts again, since the whole takes minutes.
    """
    begun = time.perf_counter()
    tokenizer, stream, _, _ = prepare(out, recipe)
    model = build_model(recipe, tokenizer, attention="sdpa")
    if minutes is not None:
        step = seconds_per_step(CompiledTraining(model, recipe, stream, device, compiled))
        steps = min(recipe.steps, max(1, int((60 * minutes - (time.perf_counter() - begun)) / step)))
        recipe = replace(recipe, tokens=steps * recipe.tokens_per_step)
    write_json(out / "recipe.json", asdict(recipe))
    training = CompiledTraining(model, recipe, stream, device, compiled)
    print(f"{model.num_parameters():,} parameters, {recipe.steps} steps, {len(stream):,} tokens", flush=True)
    start = time.perf_counter()

    def report(step: int, loss: float) -> None:
        rate = step * recipe.tokens_per_step / (time.perf_counter() - start)
        print(f"step {step}/{recipe.steps}  loss {loss:.3f}  {rate:,.0f} tokens/s", flush=True)

    history = training.train(report=report)
    folder = out / COMPILED
    training.trained_model().save_pretrained(folder, max_shard_size="15MB")  # small files are easier to move
    log = [{"step": step, "loss": loss} for step, loss in history.losses]
    write_json(
        folder / "trainer_state.json", {"global_step": recipe.steps, "max_steps": recipe.steps, "log_history": log}
    )
    return folder
