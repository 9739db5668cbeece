# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Small models where gates, norms and windows all have an effect, and their distance to the oracle."""

import numpy as np
import pytest
import torch
from packaging.version import Version
from reference import Reference
from transformers import LlamaConfig, LlamaForCausalLM

from iquest_plt import IQuestPLTCoderConfig, IQuestPLTCoderForCausalLM


VOCAB = 97
# Relative to the oracle's largest logit. The largest error measured in the whole suite is 4e-5 (float32, R = 4).
TOLERANCE = 1e-4
# Every kind of rotary scaling, with its parameters.
ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 8.0},
}


def pytorch_before(release: str) -> bool:
    return Version(torch.__version__) < Version(release)


needs_dynamo = pytest.mark.skipif(
    pytorch_before("2.7"), reason="Dynamo of PyTorch 2.6 cannot trace Transformers' decorators, around Llama either"
)


def tiny_config(**overrides) -> IQuestPLTCoderConfig:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "rope_theta": 100.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "plt_num_loops": 2,
        "plt_window_size": [4, 0],
        "plt_emb_scale": 0.7,
        "plt_hidden_scale": 0.4,
        "plt_gate_use_hidden_states": True,
    }
    return IQuestPLTCoderConfig(**fields | overrides)


def tiny_model(seed: int = 0, attention: str = "sdpa", **overrides) -> IQuestPLTCoderForCausalLM:
    """Makes a model in evaluation mode, with norms away from 1, and gates away from 0.5 but not saturated."""
    torch.manual_seed(seed)
    model = IQuestPLTCoderForCausalLM(tiny_config(**overrides)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
        elif "plt_gate" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.4)
        elif "shift_mix" in name:  # wide enough to leave the start
            torch.nn.init.normal_(parameter, 0.0, 4.0)
    model.set_attn_implementation(attention)
    return model


def llama_of(model) -> LlamaForCausalLM:
    """Returns the Llama that equals the model with one loop, with a copy of its weights."""
    names = LlamaConfig().to_dict().keys() - {"architectures", "model_type", "transformers_version"}
    config = LlamaConfig(**{k: v for k, v in model.config.to_dict().items() if k in names})
    llama = LlamaForCausalLM(config).eval()
    weights = {k: v for k, v in model.state_dict().items() if "plt_gate" not in k}
    llama.load_state_dict(weights)
    llama.set_attn_implementation(model.config._attn_implementation)
    return llama


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def oracle(model, ids: torch.Tensor, num_loops: int | None = None, **kwargs) -> np.ndarray:
    """Returns the oracle's logits (time, vocabulary) for one row of ids."""
    return Reference(model.config, model.state_dict(), **kwargs)(ids.tolist(), num_loops)[0]


def distance(logits: torch.Tensor, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest expected value."""
    logits = logits.detach().double().numpy()
    assert logits.shape == expected.shape
    assert np.isfinite(logits).all()
    return float(np.abs(logits - expected).max() / (np.abs(expected).max() or 1.0))
