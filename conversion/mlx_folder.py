# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Folders that mlx-lm loads: the model file, the configuration, and quantized weights."""

import contextlib
import functools
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from . import layout
from .checkpoint import read_header, read_json
from .writer import CastTensor, Folder, NewTensor, StoredTensor, Tensor, name_files, split


MODEL_FILE = "plt_mlx.py"  # the model for mlx-lm, which runs it from the folder
BITS = (4, 8)
GROUP_SIZE = 64  # weights that share a scale and a bias; mlx-lm's default
SUPPORTED = (0, 32)  # the only supported and tested release of mlx-lm
MAX_SHARD_BYTES = 5_000_000_000


def require_mlx() -> None:
    """Raises ValueError if mlx-lm or MLX is missing, or if mlx-lm has an unsupported version."""
    install = "pip install '.[mlx]' in a checkout of iquest-plt (on Linux also 'mlx[cpu]')"
    try:
        version = importlib.metadata.version("mlx-lm")
        import mlx.core  # noqa: F401  on Linux, mlx-lm does not install it
    except ImportError:
        raise ValueError(f"This needs mlx-lm, which is not installed: {install}.") from None
    if tuple(int(part) for part in version.split(".")[:2]) != SUPPORTED:
        wanted = ".".join(map(str, SUPPORTED))
        raise ValueError(f"This needs mlx-lm {wanted}, but {version} is installed: {install}.")


def config_fields(config: dict, bits: int | None) -> dict:
    """
    Returns the `config.json` of an MLX folder from that of a PLT. Transformers' `auto_map` is left out, because the
    folder has no code for it.
    """
    fields = {name: value for name, value in config.items() if name != "auto_map"} | {"model_file": MODEL_FILE}
    if bits is None:
        return fields
    quantization = {"group_size": GROUP_SIZE, "bits": bits, "mode": "affine"}
    return fields | {"quantization": quantization, "quantization_config": quantization}


def check_loads(folder: Path, has_weights: bool = True) -> None:
    """
    Raises ValueError if mlx-lm cannot load the folder, whose model file is this package's. Reads only the headers of
    weights; without them (`has_weights`), checks the configuration.
    """
    from mlx_lm.utils import load_model

    with layout.refusals("mlx-lm cannot load the result"), _no_output():
        load_model(folder, lazy=True, strict=has_weights, trust_remote_code=True)


def write_quantized(
    out: Folder, tensors: dict[str, Tensor], config: dict, bits: int, max_shard_size: int | None
) -> dict[str, dict[str, StoredTensor]]:
    """
    Quantizes the weights with mlx-lm, and writes them to `out`, which already has `config.json` and the model file.
    Needs memory for one file at a time.

    Returns the tensors of each file. Raises ValueError if no weight can be quantized.
    """
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.utils import load_model, quantize_model

    fields = {name: value for name, value in config.items() if not name.startswith("quantization")}
    with layout.refusals("mlx-lm cannot quantize the source"), _no_output():
        # The folder's configuration is that of the result. The weights below are not quantized yet.
        unquantized = {"quantization": None, "quantization_config": None}
        model, _ = load_model(out.path, lazy=True, strict=False, trust_remote_code=True, model_config=unquantized)
        weights = {name: _lazy(tensor, name) for name, tensor in tensors.items()}
        model.load_weights(list(model.sanitize(weights).items()))
        del weights
        model, _ = quantize_model(model, fields, GROUP_SIZE, bits)
        if not any(isinstance(module, nn.QuantizedLinear) for module in model.modules()):
            raise ValueError(f"the width of no matrix is a multiple of {GROUP_SIZE}. Leave out --bits.")
        parameters = dict(tree_flatten(model.parameters()))
        model.update(tree_map(lambda _: mx.array([]), model.parameters()))  # so that written weights are freed
        groups = split(parameters, MAX_SHARD_BYTES if max_shard_size is None else max_shard_size)
        parameters.clear()
        names = name_files(groups)
        groups.clear()
        for name in list(names):
            mx.save_safetensors(str(out.path / name), names.pop(name), metadata={"format": "mlx"})
            out.record(name)
    return {path.name: read_header(path) for path in sorted(out.path.glob("*.safetensors"))}


def _lazy(tensor: Tensor, name: str):
    """Returns an MLX array that reads its values when they are needed."""
    import mlx.core as mx

    if isinstance(tensor, NewTensor):
        return mx.full(tensor.shape, tensor.value, dtype=_mlx_dtype(tensor.dtype))
    if isinstance(tensor, CastTensor):
        values = _lazy(tensor.tensor, name)
        cast = values.astype(_mlx_dtype(tensor.dtype))
        if mx.any(mx.isinf(cast) & mx.isfinite(values)).item():
            raise ValueError(f"{name} contains numbers that are too large for {tensor.dtype}")
        return _lazy(tensor.tensor, name).astype(_mlx_dtype(tensor.dtype))  # not `cast`, whose values are in memory
    assert isinstance(tensor, StoredTensor)
    return mx.load(str(tensor.path))[_stored_names(tensor.path)[tensor]]


@functools.lru_cache(maxsize=1)
def _stored_names(path: Path) -> dict[StoredTensor, str]:
    return {tensor: name for name, tensor in read_header(path).items()}


def _mlx_dtype(dtype: torch.dtype):
    import mlx.core as mx

    return getattr(mx, str(dtype).removeprefix("torch."))


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    """Sends what mlx-lm prints to standard error, because standard output may be JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def quantization_of(folder: Path) -> dict | None:
    """
    Returns `quantization` of an MLX folder's `config.json`, with integers `bits` and `group_size`, or None. Raises
    ValueError if it is invalid.
    """
    fields = read_json(folder / "config.json")
    quantization = fields.get("quantization")
    if fields.get("model_file") is None or quantization is None:
        return None
    numbers = [quantization.get(name) for name in ("bits", "group_size")] if isinstance(quantization, dict) else [None]
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError("config.json: `quantization` must have integers `bits` and `group_size`.")
    return quantization


def refuse_quantized(folder: Path) -> None:
    """Raises ValueError if the weights in `folder` are quantized for MLX, which only mlx-lm can run."""
    if quantization_of(folder) is not None:
        raise ValueError(
            f"The weights in {folder} are quantized for MLX. Run them with `iquest-plt mlx`, or convert the original "
            "weights again without --bits."
        )


def quantized_shapes(
    expected: dict[str, tuple[int, ...]], found: set[str], quantization: dict
) -> dict[str, tuple[int, ...]]:
    """
    Returns the shapes after quantization. A matrix (m, n) whose scales were `found` becomes 32-bit words
    (m, n · bits / 32), with scales and biases (m, n / group_size).
    """
    bits, group_size = quantization["bits"], quantization["group_size"]
    shapes = {}
    for name, shape in expected.items():
        prefix = name.removesuffix(".weight")
        if f"{prefix}.scales" not in found or len(shape) != 2 or layout.GATE in name:
            shapes[name] = shape
            continue
        shapes[name] = (shape[0], shape[1] * bits // 32)
        shapes[f"{prefix}.scales"] = shapes[f"{prefix}.biases"] = (shape[0], shape[1] // group_size)
    return shapes
