# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Ends a run on Ctrl-C with a checkpoint, so that no step is lost."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveAndStop(TrainerCallback):
    """Saves a checkpoint and stops after the step in which `is_asked` becomes True."""

    def __init__(self):
        self.is_asked = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.is_asked:
            control.should_save = control.should_training_stop = True


@contextmanager
def saving_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """
    On the first Ctrl-C in this block, the trainer saves a checkpoint after the current step, and the block ends with
    KeyboardInterrupt. The second Ctrl-C ends it at once, as does the first one of several processes: they could
    disagree on the step to save.
    """
    if trainer.args.world_size > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    callback = SaveAndStop()
    trainer.add_callback(callback)

    def ask(*_) -> None:
        callback.is_asked = True
        signal.signal(signal.SIGINT, before)
        print("Saving a checkpoint after this step. Press Ctrl-C again to stop at once.", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        trainer.remove_callback(callback)
    if callback.is_asked and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
