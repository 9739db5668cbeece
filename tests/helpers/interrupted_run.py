# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, for the tests of those that go on."""

from transformers import TrainerCallback


class KilledError(Exception):
    pass


class Kill(TrainerCallback):
    """Stops the run after step 3, the first beyond a checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KilledError
