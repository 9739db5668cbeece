# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Prints the progress of a training run."""

import math
import statistics
import time

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Progress(TrainerCallback):
    """Prints a line per log interval: share done, loss, tokens/s (median of recent steps), time left."""

    def __init__(self, tokens_per_step: int, bytes_per_token: float):
        self.tokens_per_step, self.bytes_per_token = tokens_per_step, bytes_per_token
        self.times: list[float] = []
        self.started = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.times = [*self.times[-49:], time.monotonic() - self.started]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs,
    ) -> None:
        logs = logs or {}
        share = state.global_step / state.max_steps
        bar = "#" * round(20 * share)
        line = f"[{bar:<20}] {share:6.1%}  step {state.global_step}/{state.max_steps}"
        if "eval_loss" in logs:
            bits = logs["eval_loss"] / math.log(2) / self.bytes_per_token
            line += f"  held-out sample {logs['eval_loss']:.3f} nats/token = {bits:.3f} bits/byte"
        elif "loss" in logs and self.times:
            seconds = statistics.median(self.times)
            left = (state.max_steps - state.global_step) * seconds / 60
            line += f"  loss {logs['loss']:.3f}  grad {float(logs['grad_norm']):.2f}"
            line += f"  lr {logs['learning_rate']:.2e}  {self.tokens_per_step / seconds:.0f} tokens/s"
            line += f"  {left:.0f} min left"
            if "repeated" in logs:  # by `unlikelihood.py`
                line += f"  repeated tokens {logs['repeated']:.0%}"
        else:
            return
        print(line, flush=True)
