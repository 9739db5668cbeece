# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Muon for the hidden matrices and AdamW for the rest, in one optimizer that Trainer can save and resume.

Muon (Jordan et al., 2024) replaces the momentum by its nearest semi-orthogonal matrix, with a Newton-Schulz iteration.
"""

from collections.abc import Callable

import torch
from torch import nn


COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # coefficients of Muon's quintic iteration


@torch.no_grad()
def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Returns matrices (M, rows, columns) with all singular values near 1, computed in bf16."""
    x = matrices.bfloat16()
    transposed = x.shape[1] > x.shape[2]
    if transposed:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if transposed else x).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """
    Each parameter group has `kind="muon"` or `kind="adamw"`, and its own learning rate and weight decay. A learning
    rate may be a tensor on the parameters' device, so that a CUDA graph of the step reads its current value.
    """

    def __init__(self, params, lr=0.01, weight_decay=0.0, momentum=0.95, betas=(0.9, 0.95), eps=1e-8, kind="adamw"):
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps, "kind": kind},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            (self._muon if group["kind"] == "muon" else self._adamw)(group, params)

    def _muon(self, group, params):
        by_shape = {}
        for param in params:
            by_shape.setdefault(param.shape, []).append(param)
        for shape, same in by_shape.items():
            updates = []
            for param in same:
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                updates.append(param.grad.lerp(state["momentum"], group["momentum"]))
            scale = max(1, shape[0] / shape[1]) ** 0.5
            for param, update in zip(same, orthogonalize(torch.stack(updates)), strict=True):
                param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update * (group["lr"] * scale))

    def _adamw(self, group, params):
        beta1, beta2 = group["betas"]
        for param in params:
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros((), device=param.device)
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
            state["step"] += 1
            state["exp_avg"].lerp_(param.grad, 1 - beta1)
            state["exp_avg_sq"].lerp_(param.grad.square(), 1 - beta2)
            mean = state["exp_avg"] / (1 - beta1 ** state["step"])
            scale = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
            param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(mean.div_(scale).mul_(group["lr"]))


def make_optimizer(
    model: nn.Module, muon_lr: float, adamw_lr: float, embedding_lr: float, weight_decay: float
) -> MuonAdamW:
    """Makes an optimizer: Muon for matrices inside the layers; AdamW without weight decay for everything else."""
    hidden, embeddings, rest = [], [], []
    for name, param in model.named_parameters():
        if "embed_tokens" in name:
            embeddings.append(param)
        elif param.ndim == 2 and ".layers." in name and "plt_gate" not in name:
            hidden.append(param)
        else:
            rest.append(param)
    return MuonAdamW(
        [
            {"params": hidden, "lr": muon_lr, "weight_decay": weight_decay, "kind": "muon"},
            {"params": rest, "lr": adamw_lr, "weight_decay": 0.0, "kind": "adamw"},
            {"params": embeddings, "lr": embedding_lr, "weight_decay": 0.0, "kind": "adamw"},
        ]
    )
