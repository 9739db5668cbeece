# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Checks on a GPU, with one command of a few minutes, that the model is correct, and measures what a loop costs.

    python -m iquest_plt.benchmarks.gpu --minutes 8 --out gpu_results

Needs torch, Transformers and a checkout, but no network and no weights. Stages run in order of importance, each in its
own process and with its own time limit. Each writes its JSON after every case, so that an interruption loses nothing.
The traceback of a failed case is saved in the result. `--smoke` runs everything on a CPU at toy size.
"""
