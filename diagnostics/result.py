# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`GainCost`: the results of the diagnostics, with their picture."""

from typing import Any

from .measurements import Measurements


class GainCost(Measurements):
    __doc__ = Measurements.__doc__

    def plot(self) -> Any:
        """Draws the curves as a matplotlib figure."""
        from .plots import plot  # matplotlib takes a second to import

        return plot(self)
