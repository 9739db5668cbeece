# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`convert`, `verify` and `info`: commands that inspect and rewrite checkpoints."""

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..utils.terminal import printable
from .common import chosen_length, human_size, parse_size, print_result, progress_bar
from .options import Dtype, DtypeOption, Json, NumLoops, Revision


if TYPE_CHECKING:
    from ..configuration_plt import IQuestPLTCoderConfig

Kind = Enum("Kind", {"plt": "plt", "dense": "dense", "mlx": "mlx"})
Init = Enum("Init", {"keep": "keep", "zero": "zero"})
LENGTHS = (4096, 32768, 131072)  # of the contexts in the table of `info`
Bits = Enum("Bits", {"int8": "int8", "int4": "int4"})


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
        typer.Option("--gate-on-hidden-states/--gate-on-queries", help="Input of the gate.", show_default="queries"),
    ] = None,
    dtype: DtypeOption = None,
    quantize: Annotated[
        Bits | None, typer.Option(help="Bits of the linear layers. Faster and smaller, and less accurate.")
    ] = None,
    max_shard_size: Annotated[
        int | None,
        typer.Option(
            parser=parse_size, metavar="SIZE", help="Largest file, for example 5GB.", show_default="keep the shards"
        ),
    ] = None,
    hard_link: Annotated[
        bool, typer.Option("--hard-link", help="Hard-link unchanged files; editing one then edits both.")
    ] = False,
    bits: Annotated[int | None, typer.Option(help="With --to mlx: quantize the weights to 4 or 8 bits.")] = None,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint into a self-contained folder: from the vendor's layout, from a dense Llama, or to one."""
    from ..conversion.convert import convert as run

    plt = {
        "plt_num_loops": num_loops,
        "plt_window_size": None if window is None else [window, 0],
        "plt_emb_scale": emb_scale,
        "plt_hidden_scale": hidden_scale,
        "plt_gate_use_hidden_states": gate_use_hidden_states,
    }
    with progress_bar("Converting") as progress:
        manifest = run(
            source,
            target,
            to=to.value,
            revision=revision,
            plt={name: value for name, value in plt.items() if value is not None},
            init=init.value,
            dtype=dtype and dtype.value,
            quantize=quantize and quantize.value,
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
    from ..conversion.verify import verify as run

    with progress_bar("Reading") as progress:
        report = run(path, logits=logits, progress=progress)
    lines = [*report["problems"], *(f"note: {note}" for note in report["notes"])]
    summary = f"{report['tensors']} tensors, {human_size(report['bytes'])}"
    count = len(report["problems"])
    result = f"{count} problem{'s' if count > 1 else ''}" if count else f"OK, {summary}"
    lines.append(f"{path if path.name else path.resolve()}: {result}")  # "." would look like the end of a sentence
    print_result(report, as_json, "\n".join(lines))
    if report["problems"]:
        raise typer.Exit(1)


def memory_needed(config: "IQuestPLTCoderConfig", lengths: Iterable[int], num_loops: int) -> dict[str, dict[str, int]]:
    """
    Returns the bytes of weights and cache of one sequence in bf16, and with weights of 8 and 4 bits, by length. The
    lengths are strings, as in JSON.
    """
    import torch

    from ..conversion.quantize import SCHEMES, bytes_in
    from ..modeling_plt import IQuestPLTCoderForCausalLM

    with torch.device("meta"):
        model = IQuestPLTCoderForCausalLM(config).to(torch.bfloat16)
    caches = {str(length): model.kv_bytes_per_sequence(length, num_loops) for length in lengths}
    weights = {name: bytes_in(model, name if name in SCHEMES else None) for name in ("bfloat16", *SCHEMES)}
    return {name: {length: size + cache for length, cache in caches.items()} for name, size in weights.items()}


def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or a Hub repository id.")],
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens per sequence.", show_default="the model's maximum")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in the batch.")] = 1,
    num_loops: NumLoops = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the weights.", show_default="the model's")] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Show shapes, parameters, and the memory of weights and cache. Reads only config.json."""
    import torch

    from ..conversion import layout
    from ..conversion.checkpoint import dtype_name
    from ..conversion.convert import FLOATS
    from ..conversion.download import fetch
    from ..conversion.quantize import stored_bytes
    from ..modeling_plt import IQuestPLTCoderForCausalLM

    folder, _ = fetch(path, revision, files=["config.json"], check_hashes=False)
    config = layout.read_plt_config(folder)
    length = chosen_length(length, config.max_position_embeddings)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    kind = FLOATS[dtype.value] if dtype else stored
    with layout.refusals("config.json"), torch.device("meta"):
        model = IQuestPLTCoderForCausalLM(config).to(kind)
    loops = config.check_num_loops(num_loops)
    parameters = model.num_parameters()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    weights = stored_bytes(shapes, getattr(config, "quantization_config", None), kind.itemsize)
    per_sequence = model.kv_bytes_per_sequence(length, loops)
    cache_per_token = model.kv_bytes_per_token()
    lengths = [size for size in LENGTHS if size <= config.max_position_embeddings]
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
            "cache_per_token": cache_per_token,
            "cache_per_sequence": per_sequence,
            "weights_and_cache": weights + batch * per_sequence,
        },
        "memory": memory_needed(config, lengths, loops),
    }
    table = Table(show_header=False, box=None)
    for name, value in document.items():
        if name == "bytes":
            for part, size in value.items():
                table.add_row(part.replace("_", " "), f"{size:,} bytes ({human_size(size)})")
        elif name == "memory":
            for precision, sizes in value.items():
                cells = ", ".join(f"{human_size(size)} for {int(tokens):,} tokens" for tokens, size in sizes.items())
                table.add_row(f"{precision} weights and cache", cells)
        else:
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else printable(value))
    print_result(document, as_json, table)
