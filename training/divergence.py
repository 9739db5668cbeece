# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Stops a diverged run before it wastes time or overwrites good checkpoints."""

import math

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


ADVICE = "Start again from an older checkpoint, or in a new folder with lower learning rates."


class DivergedError(RuntimeError):
    """The loss is NaN or infinite, or has risen far above its best value."""


class Guard(TrainerCallback):
    """
    Raises [`DivergedError`] if the loss is NaN or infinite, or its moving average has risen by more than `rise` nats.

    As a callback it checks every logged training loss. `TrainingArguments.logging_nan_inf_filter` must be off, or
    Transformers hides NaN from the log. `memory` is the weight of the previous average at each update.
    """

    def __init__(self, memory: float = 0.8, rise: float = 1.5):
        self.memory, self.rise = memory, rise
        self.smooth_loss: float | None = None
        self.best_loss = math.inf

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs,
    ) -> None:
        if "loss" in logs:
            self.check(logs["loss"], state.global_step)
        if not math.isfinite(logs.get("eval_loss", 0.0)):  # no training loss follows the last step
            raise DivergedError(f"The held-out loss at step {state.global_step} is {logs['eval_loss']}. {ADVICE}")

    def check(self, loss: float, step: int) -> None:
        """Checks one more loss."""
        if not math.isfinite(loss):
            raise DivergedError(f"The loss at step {step} is {loss}. {ADVICE}")
        smooth = loss if self.smooth_loss is None else self.smooth_loss
        self.smooth_loss = self.memory * smooth + (1 - self.memory) * loss
        self.best_loss = min(self.best_loss, self.smooth_loss)
        if self.smooth_loss > self.best_loss + self.rise:
            raise DivergedError(
                f"The loss around step {step} is {self.smooth_loss:.2f}, up from {self.best_loss:.2f}. {ADVICE}"
            )
