# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Runs mlx-lm's own commands for PLT models, and refuses options that mlx-lm would ignore for them."""

import functools
import sys
from typing import Any

from ...configuration_plt import IQuestPLTCoderConfig
from ...conversion.mlx_folder import require_mlx


COMMANDS = ("generate", "chat", "server", "cache_prompt", "convert", "lora", "fuse")
# Refused options, their shortest abbreviation that argparse accepts, and why.
REFUSED = {
    "--kv-bits": ("--kv-b", "mlx-lm cannot quantize the cache of a PLT with several loops"),
    "--max-kv-size": ("--max-k", "mlx-lm cannot limit the cache of a PLT, whose loops all read loop 0's keys"),
    "--draft-model": ("--dr", "mlx-lm cannot use drafts for a PLT: they need a cache that can be trimmed"),
}


def run(arguments: list[str]) -> None:
    """
    Runs `mlx_lm COMMAND ...` in this process, for example `run(["generate", "--model", "loopcoder-mlx"])`.

    The model is this package's. No Python file of the model's folder runs, so `--trust-remote-code` is not needed.
    Raises ValueError for an unknown command or a refused option, or if mlx-lm is not installed.
    """
    check(arguments)
    require_mlx()
    register()
    from mlx_lm import cli

    sys.argv = ["mlx_lm", *arguments]
    cli.main()


def check(arguments: list[str]) -> None:
    """Raises ValueError unless `arguments` are a supported command without refused options."""
    if not arguments or arguments[0] not in COMMANDS:
        given = f"{arguments[0]!r} is not a command for PLT models." if arguments else "The command is missing."
        raise ValueError(f"{given} Use one of {', '.join(COMMANDS)}.")
    for argument in arguments[1:]:
        name = argument.partition("=")[0]
        for option, (shortest, reason) in REFUSED.items():
            if option.startswith(name) and name.startswith(shortest):
                raise ValueError(f"{reason}. Leave out {option}.")


def register() -> None:
    """Makes mlx-lm load PLT models with this package's model file, whether or not their folder has its own."""
    import mlx_lm.utils

    from . import plt_mlx

    sys.modules[f"mlx_lm.models.{IQuestPLTCoderConfig.model_type}"] = plt_mlx
    if not hasattr(mlx_lm.utils.load_model, "original"):
        mlx_lm.utils.load_model = _with_own_file(mlx_lm.utils.load_model, mlx_lm.utils.load_config)


def _with_own_file(load_model, load_config):
    """Returns mlx-lm's `load_model`, but with the registered model for PLT folders that name a `model_file`."""

    @functools.wraps(load_model)
    def load(model_path, *args, model_config: dict[str, Any] | None = None, **kwargs):
        fields = load_config(model_path)
        name = fields.get("model_file")
        if fields.get("model_type") != IQuestPLTCoderConfig.model_type or name is None:
            return load_model(model_path, *args, model_config=model_config, **kwargs)
        changed = {**(model_config or {}), "model_file": None}
        model, config = load_model(model_path, *args, model_config=changed, **kwargs)
        return model, config | {"model_file": name}  # so that a saved copy of the model names it again

    load.original = load_model
    return load
