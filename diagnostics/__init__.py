# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Gain–cost diagnostics of LoopCoder-v2 (arXiv 2606.18023) for any PLT checkpoint: how many loops are worth it.

    result = measure(model, encode_documents(tokenizer, {"a.py": text}), max_loops=4)
    result.recommendation.loops, result.metrics["loss"].mean
    result.save("gain_cost.json")

Keep two limits in mind. The offset cost Ω is a distance between states, and the refinement Δp is a divergence between
predictions. They have no common unit: only the shape of each curve means something, not the point where they cross.
And both papers measured only models with the shift, so they cannot separate its cost from the cost of looping. A model
with `plt_cross_loop_shift=False` is the missing control.
"""

from .collect import measure
from .documents import Document, encode_documents
from .lens import LoopLens, TokenRecord, loop_lens
from .maps import AttentionMaps, attention_maps
from .measurements import Curve, Recommendation
from .metric_info import METRICS, Metric
from .result import GainCost


__all__ = [
    "METRICS",
    "AttentionMaps",
    "Curve",
    "Document",
    "GainCost",
    "LoopLens",
    "Metric",
    "Recommendation",
    "TokenRecord",
    "attention_maps",
    "encode_documents",
    "loop_lens",
    "measure",
]
