# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Elastic loops: trains one checkpoint that works with every number of loops, 1 … R_max.

A model trained for one number of loops performs badly with others. But a loop does not depend on later loops, so a pass
of R loops also yields the states of every smaller number. A loss on each of them trains all numbers at the cost of one
pass and R output layers. Alternatively, each step draws its number of loops: cheaper, but noisier.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer


class ElasticLoops:
    """
    Mixin for Transformers' `Trainer` or a subclass: trains a PLT with a loss that covers several numbers of loops.

    Args:
        loop_loss_weights: weights of the language-model losses after loops r = 0, 1, …; the loss is their weighted mean
            over the loops that a step runs. One weight for each loop of the model, or of the largest of `loop_counts`.
            By default only the last loop counts.
        loop_counts: each optimizer step draws one of these numbers of loops, with equal probability. The draw depends
            only on `args.seed` and the step, so a resumed run repeats it. Default: the model's own number.

    Evaluation runs the model's own number of loops and uses the loss after the last one.

    Raises:
        ValueError: if a number of loops is below 1; if the number of weights is wrong, or they are negative, or all
            zero for one of the numbers of loops; and for weights together with a `compute_loss_func`, with label
            smoothing, or with several devices in one process.
    """

    # Attributes of the trainer.
    accelerator: Any
    args: Any
    model: Any
    state: Any

    def __init__(
        self,
        *args,
        loop_loss_weights: Sequence[float] | None = None,
        loop_counts: Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        config = self.accelerator.unwrap_model(self.model).config
        self.loop_counts = [config.check_num_loops(count) for count in loop_counts or [None]]
        self.loop_loss_weights = None if loop_loss_weights is None else [float(weight) for weight in loop_loss_weights]
        if self.loop_loss_weights is not None:
            if self.compute_loss_func is not None:
                raise ValueError("`loop_loss_weights` and `compute_loss_func` cannot be combined.")
            if self.args.label_smoothing_factor:
                raise ValueError("`loop_loss_weights` and `label_smoothing_factor` cannot be combined.")
            if self.args.n_gpu > 1:
                raise ValueError(
                    "`loop_loss_weights` does not work with several devices in one process. Start one process per "
                    "device with `accelerate launch`."
                )
            self._check_weights()
        # Gates can only be frozen if no step uses them. Here some steps run one loop and others run more.
        if self.accelerator.ddp_handler is not None and min(map(self._needed_loops, self.loop_counts)) == 1:
            self.accelerator.ddp_handler.find_unused_parameters = True

    def _check_weights(self) -> None:
        weights, most, fewest = self.loop_loss_weights, max(self.loop_counts), min(self.loop_counts)
        if len(weights) != most:
            raise ValueError(f"`loop_loss_weights` must have {most} numbers, one for each loop, got {len(weights)}.")
        if not all(0 <= weight < float("inf") for weight in weights) or not any(weights[:fewest]):
            raise ValueError(
                f"`loop_loss_weights` must be at least 0, and above 0 for at least one of the first {fewest} loops, "
                f"got {weights}."
            )

    def num_loops(self) -> int:
        """Returns the loops of the current optimizer step: the drawn number, without trailing loops of weight 0."""
        return self._needed_loops(random.Random(f"{self.args.seed} {self.state.global_step}").choice(self.loop_counts))

    def _needed_loops(self, count: int) -> int:
        weights = [1.0] * count if self.loop_loss_weights is None else self.loop_loss_weights[:count]
        return max(loop for loop, weight in enumerate(weights, 1) if weight)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args, **kwargs) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        inputs = {**inputs, "num_loops": self.num_loops()}
        if self.loop_loss_weights is None:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        inputs["output_loop_states"] = True
        self.compute_loss_func = self._weighted_loss
        decoder = self.accelerator.unwrap_model(self.model).get_decoder()
        hook = decoder.register_forward_hook(self._give_head_all_loops)
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.compute_loss_func = None
            hook.remove()

    def _give_head_all_loops(self, decoder, args, outputs):
        """
        Replaces the last loop's states by the normed states of all weighted loops, concatenated along the batch. So the
        head runs once and inside the model's forward pass; outside of it, its weights may be sharded.
        """
        *before, last = outputs.loop_states
        if not decoder.config.plt_normalize_per_loop:
            before = [decoder.norm(state) for state in before]
        counted = zip([*before, last], self.loop_loss_weights, strict=False)
        outputs.last_hidden_state = torch.cat([state for state, weight in counted if weight])
        return outputs

    def _weighted_loss(self, outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        """Returns the weighted mean of the losses after each loop, in nats per token; `labels` (batch, time)."""
        model = self.accelerator.unwrap_model(self.model)
        weights = [weight for weight in self.loop_loss_weights[: len(outputs["loop_states"])] if weight]
        name = "logits" if "logits" in outputs else "last_hidden_state"
        parts = outputs[name].chunk(len(weights))
        outputs[name] = parts[-1]  # the last loop's part, as without this class
        total: Any = 0.0
        for weight, part in zip(weights, parts, strict=True):
            states, logits = (None, part) if name == "logits" else (part, None)
            total = total + weight * self.loop_loss(model, states, labels, logits, num_items_in_batch)
        return total / sum(weights)

    def loop_loss(
        self,
        model: PreTrainedModel,
        states: torch.Tensor | None,
        labels: torch.Tensor,
        logits: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Returns the language-model loss of one loop, from its logits or, if they are None, its normed states."""
        logits = model.lm_head(states) if logits is None else logits
        options = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        return model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **options)


class ElasticTrainer(ElasticLoops, Trainer):
    """Transformers' `Trainer` with [`ElasticLoops`]."""
