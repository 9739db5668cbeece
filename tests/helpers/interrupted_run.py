# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Kills a run, for tests of resuming."""

from transformers import TrainerCallback


class KilledError(Exception):
    pass


class Kill(TrainerCallback):
    """Kills the run after step 3, one step after a checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KilledError
