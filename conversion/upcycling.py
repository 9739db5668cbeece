# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
How the loops start in a PLT that is made from a dense model.

`keep`: with any number of loops the PLT computes nearly what the dense model does, so training starts there. In loop r

    x^r_i = emb_scale · E_i + hidden_scale · H^{r-1}_{i-1},   g = sigmoid(bias)

emb_scale = 1 makes the input of each loop the embedding plus a small part of the state fed back:

    hidden_scale = SHARE · rms(E) / rms(w),   w the weight of the final norm, which H has gone through

and the bias lets the branch on loop 0's keys outweigh the window: these are then nearly the loop's own keys, and the
attention that of the dense model. Neither is so small that the shift or the gate would get no gradient.

`zero`: gates at zero, g = 1/2, and the scales as given. What the dense model knows is lost for two loops and more.
"""

from collections.abc import Mapping

import torch

from .writer import Tensor


INITS = ("keep", "zero")
SHARE = 0.04  # of the embedding's size: SmolLM2-135M then has 0.2 to 0.8 % more loss with 2 to 4 loops
GATE_BIAS = 2.0  # g = 0.88


def starting_fields(init: str, tensors: Mapping[str, Tensor], plt: dict) -> dict:
    """
    The fields `plt_...` of the new model. What `plt` already has stays as it is.

    Raises:
        ValueError: for `keep` if states are fed back without a norm, since their size is then unknown.
    """
    if init == "zero":
        return plt
    if not plt.get("plt_normalize_per_loop", True):
        raise ValueError("With plt_normalize_per_loop=False the size of the states is unknown: use init=zero.")
    scale = SHARE * _rms(tensors["model.embed_tokens.weight"]) / _rms(tensors["model.norm.weight"])
    return {"plt_emb_scale": 1.0, "plt_hidden_scale": float(f"{scale:.4g}")} | plt


def gate_value(init: str, name: str) -> float:
    """What the tensor `name` of a gate or a learned shift holds at the start."""
    if name.endswith("gate_norm.weight"):
        return 1.0
    return GATE_BIAS if init == "keep" and name.endswith("plt_gate.bias") else 0.0


def _rms(tensor: Tensor) -> float:
    """The root mean square of a tensor's numbers, read piece by piece."""
    total, count, rest = 0.0, 0, b""
    for chunk in tensor.chunks():
        chunk = rest + chunk
        whole = len(chunk) // tensor.dtype.itemsize * tensor.dtype.itemsize
        values = torch.frombuffer(bytearray(chunk[:whole]), dtype=tensor.dtype).double()
        total, count, rest = total + values.square().sum().item(), count + len(values), chunk[whole:]
    return (total / max(count, 1)) ** 0.5
