# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Checks that a model folder is complete, and that its parts agree with each other and with the manifest."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedConfig

from ..modeling_plt import IQuestPLTCoderForCausalLM
from . import layout, mlx_folder
from .checkpoint import (
    INDEX,
    Checkpoint,
    dtype_name,
    inside,
    manifest_entry,
    open_checkpoint,
    read_chunks,
    read_json,
    sha256,
)
from .quantize import parameter_count, quantized_shapes
from .tokenizer import TEMPLATE_SECONDS, as_list, load_tokenizer, render


INTEGERS = ("weight_packed", "weight_zero_point", "weight_shape")  # of quantized weights
LOGITS_TOLERANCE = 1e-3  # relative to the largest logit, in float32


def verify(
    folder: str | Path,
    *,
    logits: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """
    Checks a folder written by [`convert`] or `save_pretrained`: that safetensors headers, file sizes, index and
    manifest agree; that names and shapes of all tensors fit `config.json`; that no number is NaN or infinite; and the
    token ids and chat template. Runs no Python file of the folder.

    Args:
        logits: a safetensors file with `input_ids` (1, time), `positions` (n,) of some of them, and `logits_r{R}`
            (1, n, vocab_size) for one or more numbers of loops R. The model runs on the CPU in float32, and must match
            these logits to 1e-3 of the largest.
        progress: called with the bytes of weights read so far and in total.

    Returns `{"folder", "problems": [...], "notes": [...], "tensors", "parameters", "bytes"}`. The folder is complete if
    there are no problems. Notes list what could not be checked. Raises ValueError if the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    problems, notes = [], []
    report = {"folder": str(folder), "problems": problems, "notes": notes, "tensors": 0, "parameters": 0, "bytes": 0}

    checkpoint = _attempt(problems, open_checkpoint, folder)
    problems += _check_parts(folder, checkpoint, notes)
    manifest = _attempt(problems, _manifest, folder, notes)
    hashes = {}
    if checkpoint is not None:
        tensors = checkpoint.tensors.values()
        report |= {
            "tensors": len(tensors),
            "parameters": _attempt([], _parameters, folder, checkpoint) or 0,
            "bytes": sum(tensor.nbytes for tensor in tensors),
        }
        hashes = _attempt(problems, _scan, checkpoint, manifest is not None, problems, progress) or {}
    if manifest is not None:
        problems += _attempt(problems, _check_manifest, folder, manifest, checkpoint, hashes, notes) or []
    if logits is not None and not problems:
        problems += _attempt(problems, _check_logits, folder, Path(logits)) or []
    return report


def check_parts(folder: Path) -> list[str]:
    """
    Returns the problems that can be found without reading weights or manifest: in headers, index, names, shapes and
    dtypes of tensors, token ids and chat template.
    """
    problems = []
    checkpoint = _attempt(problems, open_checkpoint, folder)
    return problems + _check_parts(folder, checkpoint, [])


def _check_parts(folder: Path, checkpoint: Checkpoint | None, notes: list[str]) -> list[str]:
    problems = []
    config = _attempt(problems, layout.read_config, folder)
    if checkpoint is not None and config is not None:
        problems += _attempt(problems, _check_tensors, folder, config, checkpoint) or []
    if checkpoint is not None:
        total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        problems += _attempt(problems, _check_index, folder, total) or []
    if config is not None:
        problems += _attempt(problems, _check_tokenizer, folder, config, notes) or []
    return problems


def _attempt(problems: list[str], check: Callable, *args):
    """Returns `check(*args)`. If that raises any error, adds it to the problems and returns None."""
    try:
        return check(*args)
    except Exception as error:
        problems.append(str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}")
        return None


def _manifest(folder: Path, notes: list[str]) -> dict | None:
    if not (folder / layout.MANIFEST).exists():
        notes.append(f"There is no {layout.MANIFEST}, so the list of files could not be checked.")
        return None
    manifest = read_json(inside(folder, layout.MANIFEST))
    files, tensors = manifest.get("files"), manifest.get("tensors")
    if not isinstance(files, dict) or not isinstance(tensors, dict):
        raise ValueError(f"{layout.MANIFEST} lacks `files` or `tensors`.")
    return manifest


def _check_tensors(folder: Path, config: PreTrainedConfig, checkpoint: Checkpoint) -> list[str]:
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    expected = layout.expected_shapes(config, shapes.keys())
    numbers = [tensor for name, tensor in checkpoint.tensors.items() if not name.endswith(INTEGERS)]
    dtypes = {dtype_name(tensor.dtype) for tensor in numbers}
    for_mlx = mlx_folder.quantization_of(folder)
    if for_mlx is not None:
        expected = mlx_folder.quantized_shapes(expected, set(shapes), for_mlx)
        dtypes.discard(dtype_name(torch.uint32))  # packed weights
    elif getattr(config, "quantization_config", None) is not None:
        expected = quantized_shapes(expected, config.quantization_config)
    problems = layout.check_shapes(shapes, expected)
    said = dtype_name(config.dtype)
    if config.dtype is not None and dtypes != {said}:
        problems.append(f"config.json says {said}, but the weights are {', '.join(sorted(dtypes))}.")
    return problems


def _parameters(folder: Path, checkpoint: Checkpoint) -> int:
    fields = {} if mlx_folder.quantization_of(folder) else read_json(inside(folder, "config.json"))
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return parameter_count(shapes, fields.get("quantization_config"))


def _check_index(folder: Path, total: int) -> list[str]:
    if not (folder / INDEX).exists():
        return []
    metadata = read_json(inside(folder, INDEX)).get("metadata")
    said = metadata.get("total_size", total) if isinstance(metadata, dict) else total
    return [] if said == total else [f"{INDEX} says {said} bytes in total, but the tensors have {total}."]


def _scan(
    checkpoint: Checkpoint, wants_hashes: bool, problems: list[str], progress: Callable[[int, int], None]
) -> dict[str, str]:
    """Reads all weights once to find NaN and infinity and, with `wants_hashes`, to return the SHA-256 of every file."""
    total, done, hashes = sum(tensor.nbytes for tensor in checkpoint.tensors.values()), 0, {}
    for file in checkpoint.files:
        tensors = sorted(checkpoint.of_file(file).items(), key=lambda item: item[1].start)
        path = checkpoint.folder / file
        digest = hashlib.sha256()
        for chunk in read_chunks(path, 0, tensors[0][1].start) if tensors else ():
            digest.update(chunk)
        for name, tensor in tensors:
            is_finite = True
            for chunk in tensor.chunks():
                if wants_hashes:
                    digest.update(chunk)
                if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
                    values = torch.frombuffer(bytearray(chunk), dtype=tensor.dtype)
                    is_finite = is_finite and bool(values.isfinite().all())
                done += len(chunk)
                progress(done, total)
            if not is_finite:
                problems.append(f"{name} holds NaN or infinity.")
        if tensors and wants_hashes:
            hashes[file] = digest.hexdigest()
    return hashes


def _check_manifest(
    folder: Path, manifest: dict, checkpoint: Checkpoint | None, hashes: dict[str, str], notes: list[str]
) -> list[str]:
    problems = []
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(there - manifest["files"].keys() - {layout.MANIFEST}):
        changes_what_loads = name.endswith((".py", ".safetensors", ".bin", ".pt", ".pth")) or name.startswith("adapter")
        said = f"{layout.MANIFEST} does not list {name}."
        (problems if changes_what_loads else notes).append(said)
    for name, entry in manifest["files"].items():
        entry = entry if isinstance(entry, dict) else {}
        place, plain = folder, name
        if name.startswith("tokenization/"):
            place, plain = folder / "tokenization", name.removeprefix("tokenization/")
        try:
            path = inside(place, plain)
        except ValueError as error:
            problems.append(f"{layout.MANIFEST} lists a file that cannot be used: {error}")
            continue
        if path.stat().st_size != entry.get("size"):
            problems.append(f"{name} has {path.stat().st_size} bytes, but {layout.MANIFEST} says {entry.get('size')}.")
        elif (hashes.get(name) or sha256(path)) != entry.get("sha256"):
            problems.append(f"{name} differs from the file that {layout.MANIFEST} lists: its SHA-256 is different.")
    if checkpoint is not None:
        found = {name: manifest_entry(tensor, tensor.path.name) for name, tensor in checkpoint.tensors.items()}
        differing = sorted(
            name
            for name in found.keys() | manifest["tensors"].keys()
            if found.get(name) != manifest["tensors"].get(name)
        )
        if differing:
            names = ", ".join(differing[:3]) + ", ..." * (len(differing) > 3)
            problems.append(f"{layout.MANIFEST} does not match the tensors in the files: {names}")
    return problems


def _check_tokenizer(folder: Path, config: PreTrainedConfig, notes: list[str]) -> list[str]:
    problems = []
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        notes.append("There is no tokenizer.json.")
        return []
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        problems.append(f"The tokenizer's ids go up to {largest}, but the embedding has {config.vocab_size} rows.")
    if (folder / "generation_config.json").exists():
        fields = read_json(inside(folder, "generation_config.json"))
        with layout.refusals("generation_config.json"):
            generation = GenerationConfig(**fields)
        stops = set(map(str, as_list(generation.eos_token_id)))
    else:
        notes.append("There is no generation_config.json.")
        generation, stops = GenerationConfig(), set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for where in (config, generation, tokenizer):
            value = getattr(where, name, None)
            for token_id in as_list(value):
                is_id = isinstance(token_id, int) and 0 <= token_id < config.vocab_size
                if token_id is not None and not is_id:
                    problems.append(f"{name} {token_id} is outside the vocabulary ({config.vocab_size}).")
    if tokenizer.chat_template is None:
        notes.append("There is no chat template.")
        return problems
    try:
        text = render(tokenizer, [{"role": "user", "content": "Hello"}], seconds=TEMPLATE_SECONDS)
    except (TimeoutError, MemoryError, ValueError) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        return [*problems, f"The chat template does not render: {kind}{error}"]
    end = tokenizer.get_vocab().get("<|im_end|>")
    if stops and end is not None and "<|im_end|>" in text and str(end) not in stops:
        problems.append(f"A chat turn ends with <|im_end|> ({end}), but generation_config.json does not stop there.")
    return problems


@torch.no_grad()
def _check_logits(folder: Path, path: Path) -> list[str]:
    try:
        golden = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} could not be read: {error}") from None
    loops = {name: int(name[8:]) for name in golden if name.startswith("logits_r") and name[8:].isdecimal()}
    if not loops or not {"input_ids", "positions"} <= golden.keys():
        raise ValueError(f"{path.name} must contain `input_ids`, `positions` and `logits_r1` (or another loop count).")
    layout.read_plt_config(folder)
    model = IQuestPLTCoderForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    problems = []
    for name, num_loops in loops.items():
        with layout.refusals(path.name):
            found = model(golden["input_ids"], num_loops=num_loops).logits[:, golden["positions"]]
            difference = float((found - golden[name]).abs().max() / golden[name].abs().max())
        if not difference <= LOGITS_TOLERANCE:
            problems.append(
                f"{name} differs by {difference:.1e} of the largest logit. The limit is {LOGITS_TOLERANCE:.0e}."
            )
    return problems
