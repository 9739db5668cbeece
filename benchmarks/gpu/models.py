# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The model at the released size with random weights, the Llama of its shape, and the limits of the hardware."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from ... import IQuestPLTCoderConfig
from ..common import RELEASED, bytes_read_per_token, llama_of
from .stage import Stage, free, seconds_each


def full_size_config(smoke: bool = False) -> IQuestPLTCoderConfig:
    """Returns LoopCoder-V2's configuration without end tokens; toy sizes with `smoke`."""
    fields: dict[str, int | None] = {"eos_token_id": None, "bos_token_id": None}
    if smoke:
        fields |= {"hidden_size": 160, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 10}
        fields |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512}
    return IQuestPLTCoderConfig.from_pretrained(RELEASED, **fields)


def full_size_models(stage: Stage):
    """Makes the PLT on the device, and a Llama that shares all its weights except the gates."""
    config = full_size_config(stage.smoke)
    with stage.device:
        plt = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    return plt, llama_of(plt)


@dataclass
class Hardware:
    """Measured speed of the device: bytes copied (read and written) and bf16 operations per second."""

    bytes_per_second: float
    flops_per_second: float

    @classmethod
    def measure(cls, stage: Stage) -> "Hardware":
        """Times a copy of 4 GB, and a product of two random matrices of 8,192 rows."""
        result = cls(_copied(stage), _multiplied(stage))
        free(stage.device)
        return result


def _copied(stage: Stage) -> float:
    source = torch.ones(2**16 if stage.smoke else 2**31, dtype=torch.bfloat16, device=stage.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_each(lambda: target.copy_(source), stage.device, 10)


def _multiplied(stage: Stage) -> float:
    rows = 128 if stage.smoke else 8192
    left, right = (torch.randn(rows, rows, device=stage.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * rows**3 / seconds_each(lambda: left @ right, stage.device, 10)


def bytes_per_step(plt, batch: int, context: int, num_loops: int) -> int:
    """Returns the bytes a decode step reads: weights without the embedding, loop 0's keys and values, and windows."""
    return bytes_read_per_token(plt) + batch * plt.kv_bytes_per_sequence(context, num_loops)
