# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
How many loops are worth it: the gain–cost diagnostics of LoopCoder-v2 (arXiv 2606.18023) for any PLT checkpoint.

    result = measure(model, encode_documents(tokenizer, {"a.py": text}), max_loops=4)
    result.recommendation.loops, result.metrics["loss"].mean
    result.save("gain_cost.json")

Two things to keep in mind. The offset cost Ω is a distance between states and the refinement Δp a divergence between
predictions: they have no common unit, so where their curves cross on one picture means nothing; only their course
does. And both papers measured models with the shift alone, so they cannot tell its cost from that of looping:
a model with `plt_cross_loop_shift=False` is the control they lack.
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
