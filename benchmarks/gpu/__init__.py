# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
What a GPU user would ask, measured by one command of a few minutes: whether it is right, and what a loop costs.

    python -m iquest_plt.benchmarks.gpu --minutes 8 --out gpu_results

Needs torch, Transformers and a checkout, and neither a network nor weights. Stages run in order of worth, each in a
process and a time box of its own, and each writes its JSON after every case, so that a stop loses nothing. A case that
fails leaves its traceback in the result. `--smoke` runs all of it on a CPU at toy size.
"""
