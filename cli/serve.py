# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`serve`: starts an OpenAI-compatible server, vLLM's if vLLM is installed, else Transformers'."""

import importlib.util
import json
import os
import sys
from typing import Annotated

import typer

from .options import DtypeOption, Model, NumLoops, Revision


PARSER = "loopcoder"  # the name under which `serving/vllm` registers it


def serve(
    path: Model,
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Options passed on to the server, after `--`.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompt plus reply.", show_default="the model's maximum")
    ] = None,
    parsers: Annotated[bool, typer.Option(help="Separate thoughts and tool calls from the text.")] = True,
    num_loops: NumLoops = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Devices to split the model across.")] = 1,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Serve the model with OpenAI's API on /v1, with vLLM if it is installed, else with Transformers."""
    from ..conversion import layout, mlx_folder
    from ..conversion.download import fetch
    from ..serving.transformers_cli import check_model

    folder, _ = fetch(path, revision, check_hashes=False)
    config = layout.read_plt_config(folder)
    mlx_folder.refuse_quantized(folder)
    if max_length is not None and not 2 <= max_length <= config.max_position_embeddings:
        raise ValueError(
            f"--max-length must be 2 to {config.max_position_embeddings} for this model, got {max_length}."
        )
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{path} has no tokenizer.json. Make one from tokenizer.model with `iquest-plt convert`.")
    common = ["--host", host, "--port", str(port), *(["--dtype", dtype.value] if dtype else [])]
    if importlib.util.find_spec("vllm"):
        server = ["vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", path, *common]
        server += ["--tensor-parallel-size", str(tensor_parallel)]
        if max_length is not None:
            server += ["--max-model-len", str(max_length)]
        if num_loops is not None:
            server += ["--hf-overrides", json.dumps({"plt_num_loops": num_loops})]
        check_model(str(folder))
        if parsers:
            server += ["--enable-auto-tool-choice", "--tool-call-parser", PARSER, "--reasoning-parser", PARSER]
    else:
        refused = {"--num-loops": num_loops is not None, "--tensor-parallel": tensor_parallel > 1}
        for option in (name for name, is_asked in refused.items() if is_asked):
            raise ValueError(f"{option} needs vLLM, which is not installed. Transformers' server has no such option.")
        server = ["iquest_plt.serving.transformers_cli", "serve", str(folder), *common]
        if max_length is not None:
            server += ["--max-length", str(max_length)]
        if not parsers:
            print("note: --no-parsers has no effect on Transformers' server", file=sys.stderr)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", *server, *(extra or [])])
