# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`convert`, `verify` and `info`: commands that inspect and rewrite checkpoints."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from ..conversion import convert as conversion
from ..conversion import layout
from ..conversion import verify as verification
from ..conversion.checkpoint import dtype_name
from ..conversion.download import fetch
from ..modeling_plt import IQuestPLTCoderForCausalLM
from ..utils.terminal import printable
from .common import human_size, parse_size, print_result, progress_bar
from .options import Dtype, Json, NumLoops, Revision


Kind = Enum("Kind", {"plt": "plt", "dense": "dense", "mlx": "mlx"})
Init = Enum("Init", {"keep": "keep", "zero": "zero"})


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, a .gguf file, or a Hub repository id.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A folder that does not exist yet.")],
    to: Annotated[
        Kind, typer.Option(help="plt; mlx: for mlx-lm; or dense: a Llama that equals the PLT run with one loop.")
    ] = Kind.plt,
    revision: Revision = None,
    num_loops: Annotated[int | None, typer.Option(min=1, help="Loops of a PLT made from a dense model.")] = None,
    init: Annotated[
        Init, typer.Option(help="How loops >= 1 of a dense model start: keep what it computes, or zero gates.")
    ] = Init.keep,
    window: Annotated[
        int | None, typer.Option(min=0, help="Previous tokens that each token sees in loops >= 1.")
    ] = None,
    emb_scale: Annotated[float | None, typer.Option(help="Scale of the embedding in loops >= 1.")] = None,
    hidden_scale: Annotated[float | None, typer.Option(help="Scale of the state fed back to the next loop.")] = None,
    gate_use_hidden_states: Annotated[
        bool | None,
        typer.Option("--gate-on-hidden-states/--gate-on-queries", help="Input of the gate. [default: queries]"),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="[default: as stored]")] = None,
    max_shard_size: Annotated[
        int | None, typer.Option(parser=parse_size, metavar="SIZE", help="For example 5GB. [default: keep the shards]")
    ] = None,
    hard_link: Annotated[
        bool, typer.Option("--hard-link", help="Hard-link unchanged files; editing one then edits both.")
    ] = False,
    bits: Annotated[int | None, typer.Option(help="With --to mlx: quantize the weights to 4 or 8 bits.")] = None,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint into a self-contained folder: from the vendor's layout, from a dense Llama, or to one."""
    plt = {
        "plt_num_loops": num_loops,
        "plt_window_size": None if window is None else [window, 0],
        "plt_emb_scale": emb_scale,
        "plt_hidden_scale": hidden_scale,
        "plt_gate_use_hidden_states": gate_use_hidden_states,
    }
    with progress_bar("Converting") as progress:
        manifest = conversion.convert(
            source,
            target,
            to=to.value,
            revision=revision,
            plt={name: value for name, value in plt.items() if value is not None},
            init=init.value,
            dtype=dtype and dtype.value,
            max_shard_size=max_shard_size,
            hard_link=hard_link,
            bits=bits,
            progress=progress,
        )
    size = sum(entry["size"] for entry in manifest["files"].values())
    text = f"{target}: {len(manifest['tensors'])} tensors, {len(manifest['files'])} files, {human_size(size)}"
    print_result({"target": str(target), **manifest}, as_json, text)


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model folder.")],
    logits: Annotated[
        Path | None, typer.Option(help="Also run the model and compare its logits with this safetensors file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a model folder is complete and matches its configuration and its manifest."""
    with progress_bar("Reading") as progress:
        report = verification.verify(path, logits=logits, progress=progress)
    lines = [*report["problems"], *(f"note: {note}" for note in report["notes"])]
    summary = f"{report['tensors']} tensors, {human_size(report['bytes'])}"
    lines.append(f"{path}: {len(report['problems'])} problems" if report["problems"] else f"{path}: OK, {summary}")
    print_result(report, as_json, "\n".join(lines))
    if report["problems"]:
        raise typer.Exit(1)


def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or a Hub repository id.")],
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens per sequence. [default: the model's maximum]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in the batch.")] = 1,
    num_loops: NumLoops = None,
    dtype: Annotated[Dtype | None, typer.Option(help="[default: the model's]")] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Show shapes, parameters, and the memory of weights and cache. Reads only config.json."""
    folder, _ = fetch(path, revision, files=["config.json"], check_hashes=False)
    config = layout.read_plt_config(folder)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    kind = conversion.FLOATS[dtype.value] if dtype else stored
    with layout.refusals("config.json"), torch.device("meta"):
        model = IQuestPLTCoderForCausalLM(config).to(kind)
    length, loops = length or config.max_position_embeddings, config.check_num_loops(num_loops)
    parameters = model.num_parameters()
    weights, per_sequence = parameters * kind.itemsize, model.kv_bytes_per_sequence(length, loops)
    document = {
        "path": path,
        "loops": loops,
        "loops_of_the_model": config.plt_num_loops,
        "window": config.plt_window_size[0],
        "gate": "hidden states" if config.plt_gate_use_hidden_states else "queries",
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "dtype": dtype_name(kind),
        "parameters": parameters,
        "length": length,
        "batch": batch,
        "bytes": {
            "weights": weights,
            "cache_per_token": model.kv_bytes_per_token(),
            "cache_per_sequence": per_sequence,
            "weights_and_cache": weights + batch * per_sequence,
        },
    }
    table = Table(show_header=False, box=None)
    for name, value in document.items():
        if name == "bytes":
            for part, size in value.items():
                table.add_row(part.replace("_", " "), f"{size:,} bytes ({human_size(size)})")
        else:
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else printable(value))
    print_result(document, as_json, table)
