# Copyright 2026 The iquest-plt authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
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
