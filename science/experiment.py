# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of experiments without training: measures one model on held-out rows, and adds it to a list."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..utils.scripts import one_line_errors
from ..utils.timing import environment
from .heldout import Heldout, load_heldout, load_model
from .results import FOLDER, add_result


def command_line(description: str | None, file: str) -> argparse.ArgumentParser:
    """Returns the options of every experiment. `file` names the list of results in docs/science."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("--name", help="name in the tables; default: the folder's")
    parser.add_argument("--rows", type=int, help="number of held-out rows; default: all")
    parser.add_argument("--out", type=Path, default=FOLDER / file)
    return parser


def run(
    args: argparse.Namespace,
    compare: Callable[[IQuestPLTCoderForCausalLM, Heldout], dict],
    variant: str = "",
    min_loops: int = 2,
) -> None:
    """Adds the result of `compare` to the list. `variant` ends the model's name; `min_loops`: see `load_model`."""
    with one_line_errors():
        model = load_model(args.model, min_loops)
        heldout = load_heldout(args.model, model, args.rows)
        name = (args.name or args.model.name) + variant
        head = {"model": name, "loops": model.config.plt_num_loops, "rows": len(heldout.rows)}
        add_result(args.out, head | compare(model, heldout) | {"environment": environment("cpu")})
