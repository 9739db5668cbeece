# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
`measure`: runs a model over documents, in bounded memory.

Each document is reduced to one number and one weight per metric, loop and layer. A document longer than `max_length`
is cut into pieces, run one at a time with fresh context. The states, queries and keys of all loops of a piece are
kept. Attention weights and predictions grow faster, so they are reduced to numbers a few tokens at a time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from . import bootstrap, metrics
from .documents import Document, check_document, pieces
from .lens import CHUNK_ELEMENTS, Predictions, predict
from .measurements import Curve, Recommendation, without_nan
from .metric_info import ATTENTION_METRICS, GATE_METRICS, LAYER_METRICS, LENS_METRICS, STATE_METRICS
from .result import GainCost
from .trace import BRANCHES, Trace, check_controls, check_model, check_settings, trace


HISTOGRAM_BINS = 20
CONFIDENCE = 0.95
CPU_CHUNK_ELEMENTS = 2**18  # 1 MB in float32: tensors that fit the CPU cache are several times faster
SUMMED = tuple(STATE_METRICS | ATTENTION_METRICS | GATE_METRICS | LENS_METRICS)


class Tally:
    """Sums and weights of one document's metrics, (loops, layers) each; metrics without layers use layer 0."""

    def __init__(self, loops: int, layers: int):
        self.sums = {name: np.zeros((loops, layers)) for name in SUMMED}
        self.weights = {name: np.zeros((loops, layers)) for name in SUMMED}
        self.histogram = np.zeros((loops, layers, HISTOGRAM_BINS), dtype=np.int64)

    def add(self, name: str, loop: int, values: torch.Tensor, layer: int = 0, weight: float = 1.0) -> None:
        """Adds values of one loop, of any shape, each with weight `weight`. NaNs are skipped."""
        values = values.double()
        found = ~values.isnan()
        self.sums[name][loop, layer] += weight * values[found].sum().item()
        self.weights[name][loop, layer] += weight * found.sum().item()


def tally_states(tally: Tally, trace: Trace, shift: bool) -> None:
    """Adds the metrics of the states. With `shift`, loop r received the previous token's state."""
    h = [trace.embeddings, *trace.states]  # h^(0) … h^(R+1)
    for loop in range(trace.num_loops):
        before, after = h[loop], h[loop + 1]
        tally.add("step_size", loop, metrics.step_size(after, before))
        tally.add("fixed_point_gap", loop, metrics.step_size(h[loop + 2], after))
        rank = metrics.effective_rank(trace.head_inputs[loop])
        tally.add("effective_rank", loop, rank, weight=len(trace.embeddings))
        if loop > 0:
            tally.add("angular_change", loop, metrics.angular_change(after, before, h[loop - 1]))
            aligned = metrics.aligned_step if shift else metrics.step_size
            tally.add("aligned_step", loop, aligned(after, before))
            cost = metrics.offset_cost(before)
            tally.add("offset_cost", loop, cost)
            tally.add("offset_cost_per_sqrt_d", loop, cost / math.sqrt(after.shape[-1]))


def tally_attention(tally: Tally, trace: Trace, chunk_elements: int | None = None) -> None:
    """
    Adds the metrics of attention, for a few queries of one layer and two loops at a time. Tensors of attention weights
    have up to `chunk_elements` numbers; the default fits a CPU's cache and is larger on other devices.
    """
    time = len(trace.embeddings)
    if chunk_elements is None:
        chunk_elements = CPU_CHUNK_ELEMENTS if trace.embeddings.device.type == "cpu" else CHUNK_ELEMENTS
    for layer, query in enumerate(trace.queries[0]):
        rows = max(1, chunk_elements // (len(query) * time))
        for start in range(0, time, rows):
            before = dict.fromkeys(BRANCHES)
            for loop in range(trace.num_loops):
                now = trace.log_attention(loop, layer, start, min(start + rows, time))
                if now["window"] is not None:  # no query sees keys before the first query's window
                    now["window"] = now["window"][..., max(0, start - trace.window) :]
                known = {}  # two branches may be the same tensor
                for branch, log_weights in now.items():
                    pair = (id(log_weights), id(before[branch]))
                    if log_weights is not None and pair not in known:
                        known[pair] = _of_attention(log_weights, before[branch])
                    for name, values in known.get(pair, {}).items():
                        tally.add(f"{name}_{branch}", loop, values, layer)
                before = now
    for loop, of_layers in enumerate(trace.gates):
        for layer, gate in enumerate(of_layers or ()):
            tally.add("gate", loop, gate, layer)
            tally.histogram[loop, layer] += metrics.gate_histogram(gate, HISTOGRAM_BINS).cpu().numpy()


def _of_attention(log_weights: torch.Tensor, before: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Returns the metrics of one loop's weights (H, Q, S), and their change from the previous loop if there is one."""
    weights = log_weights.exp()
    found = {
        "attention_entropy": metrics.entropy(log_weights, weights),
        "head_similarity": metrics.head_similarity(weights),
        "head_rank": metrics.head_rank(weights),
    }
    if before is not None:
        found["attention_change"] = metrics.kl_divergence(log_weights, before, weights)
    return found


def tally_predictions(tally: Tally, predictions: Predictions) -> None:
    """Adds the metrics of the logit lens."""
    best = predictions.best_loop
    for loop, (loss, rank) in enumerate(zip(predictions.loss, predictions.true_rank, strict=True)):
        tally.add("loss", loop, loss)
        tally.add("true_rank", loop, rank)
        tally.add("top1_accuracy", loop, rank == 1)
        tally.add("entropy", loop, predictions.entropy[loop])
        tally.add("agreement", loop, predictions.agreement[loop])
        if loop > 0:
            tally.add("refinement", loop, predictions.refinement[loop - 1])
            tally.add("refinement_share", loop, best == loop)  # type: ignore[arg-type]


def measure(
    model: PreTrainedModel,
    documents: Sequence[Document],
    max_loops: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> GainCost:
    """
    Measures what each loop gains and costs on held-out documents.

    Args:
        model: a PLT with a language-model head, any dtype and device. Metrics are computed in float32 or float64.
        documents: see `encode_documents`.
        max_loops: number of loops to measure; default: the model's own. It may be larger.
        max_length: longer documents are cut into pieces, each with fresh context (`documents.pieces`). Default: 1024,
            or the model's `max_position_embeddings` if that is less.
        seed, resamples: for the bootstrap over documents.
        progress: called after every piece with the tokens done and the total.

    Raises:
        ValueError: if there are no documents, a document is too short or has tokens outside the vocabulary, the model
            is not a PLT or computes NaN, or an argument is out of range.
    """
    check_model(model)
    check_controls(model)
    max_loops, max_length = check_settings(model, max_loops, max_length)
    for name, value, least in (("resamples", resamples, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    documents = list(documents)
    if not documents:
        raise ValueError("There are no documents to measure. Pass at least one.")
    for document in documents:
        check_document(document, model.config.vocab_size)

    total, done, tallies, entries = sum(len(document.ids) - 1 for document in documents), 0, [], []
    for document in documents:
        tally = Tally(max_loops, model.config.num_hidden_layers)
        count = 0
        for inputs, targets in pieces(document.ids, max_length):
            tally_piece(tally, model, inputs, targets, max_loops)
            done, count = done + len(targets), count + 1
            if progress is not None:
                progress(done, total)
        tokens, loss = len(document.ids) - 1, tally.sums["loss"][:, 0]
        if document.num_bytes is not None:
            tally.sums["bits_per_byte"][:, 0] = loss / math.log(2)
            tally.weights["bits_per_byte"][:, 0] = document.num_bytes
        entry = {"name": document.name, "tokens": tokens, "bytes": document.num_bytes, "pieces": count}
        entries.append(entry | {"loss": (loss / tokens).tolist()})
        tallies.append(tally)
    settings = {
        "max_loops": max_loops,
        "max_length": max_length,
        "seed": seed,
        "resamples": resamples,
        "confidence": CONFIDENCE,
    }
    return summarize(tallies, entries, _describe(model), settings)


def tally_piece(tally: Tally, model: PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor, loops: int) -> None:
    """Runs the model on one piece, inputs and targets (T,), and adds all its metrics."""
    recorded = trace(model, inputs, loops)
    tally_states(tally, recorded, model.config.plt_cross_loop_shift)
    tally_attention(tally, recorded)
    tally_predictions(tally, predict(model.lm_head, recorded.head_inputs, targets, model.config.vocab_size))


def summarize(tallies: list[Tally], documents: list[dict], model: dict, settings: dict) -> GainCost:
    """Computes means, intervals and the recommendation from the documents' tallies; copies the rest to the result."""
    count, loops = len(tallies), settings["max_loops"]
    counts = bootstrap.draws(count, settings["resamples"], settings["seed"])
    names = [name for name in SUMMED if name != "bits_per_byte" or all(entry["bytes"] for entry in documents)]
    means, resampled, layers = {}, {}, {}
    for name in names:
        sums = np.stack([tally.sums[name] for tally in tallies])
        weights = np.stack([tally.weights[name] for tally in tallies])
        means[name] = bootstrap.ratios(np.ones((1, count)), sums.sum(2), weights.sum(2))
        resampled[name] = bootstrap.ratios(counts, sums.sum(2), weights.sum(2))
        if name in LAYER_METRICS:
            by_layer = bootstrap.ratios(np.ones(count), sums.reshape(count, -1), weights.reshape(count, -1))
            rows = without_nan(by_layer.reshape(loops, -1).tolist())
            layers[name] = [None if None in of_loop else of_loop for of_loop in rows]
    for name in ("loss", "effective_rank"):
        for values in (means, resampled):
            first = np.full((len(values[name]), 1), np.nan)
            values[f"{name}_change"] = np.hstack([first, np.diff(values[name])])

    curves = {}
    for name, mean in means.items():
        low, high = bootstrap.interval(resampled[name], settings["confidence"])
        if count == 1:
            low = high = np.full(loops, np.nan)
        curves[name] = Curve(*(without_nan(values.tolist()) for values in (mean[0], low, high)))
    return GainCost(
        model=model,
        settings=settings,
        documents=documents,
        metrics=curves,
        layers=layers,
        gate_histogram=_histogram(np.sum([tally.histogram for tally in tallies], axis=0)),
        recommendation=_recommendation(means, resampled if count > 1 else None, loops),
    )


def _recommendation(means: dict, resampled: dict | None, limit: int) -> Recommendation:
    """Recommends by the rule and by the loss alone, from means (1, R) and resampled means (resamples, R)."""
    fields: dict[str, Any] = {"limit": limit}
    for suffix, names in (("", ("loss", "effective_rank")), ("_by_loss", ("loss",))):
        fields[f"loops{suffix}"] = int(bootstrap.recommend(*(means[name][0] for name in names)))
        fields[f"share{suffix}"] = None
        if resampled is not None:
            drawn = bootstrap.recommend(*(resampled[name] for name in names))
            fields[f"share{suffix}"] = (np.bincount(drawn - 1, minlength=limit) / len(drawn)).tolist()
    return Recommendation(**fields)


def _histogram(counts: np.ndarray) -> dict | None:
    """Returns the gate counts (loops, layers, bins) as a document, or None if there are no gates."""
    if not counts.any():
        return None
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1).round(6).tolist()
    return {"edges": edges, "counts": [of_loop.tolist() if of_loop.any() else None for of_loop in counts]}


def _describe(model: PreTrainedModel) -> dict:
    config = model.config
    return {
        "name": config.name_or_path,
        "num_loops": config.plt_num_loops,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "window": config.plt_window_size[0],
        "cross_loop_shift": config.plt_cross_loop_shift,
        "loop_attention": config.plt_loop_attention,
        "normalize_per_loop": config.plt_normalize_per_loop,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
