# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
PLT models on Apple silicon, through mlx-lm.

    plt_mlx.py    the model, a single file that `iquest-plt convert --to mlx` also copies into the model's folder
    launcher.py   runs mlx-lm's commands with that model; `python -m iquest_plt.serving.mlx COMMAND ...` calls it
"""
