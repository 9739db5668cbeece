# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""`measure` and its parts: compared with NumPy and with the model itself, and invariances."""

import itertools
import json
import math

import pytest
import torch
from diagnostics_numpy import Observed, Values
from diagnostics_numpy import measure as measure_in_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCAB, llama_of, tiny_model, tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from iquest_plt.diagnostics import (
    METRICS,
    Document,
    GainCost,
    attention_maps,
    encode_documents,
    loop_lens,
    measure,
)
from iquest_plt.diagnostics import collect as collecting
from iquest_plt.diagnostics.documents import pieces
from iquest_plt.diagnostics.lens import predict, tokenize
from iquest_plt.diagnostics.trace import Trace, trace
from iquest_plt.training.evaluate import document_bits


LENGTHS = (13, 2, 18, 9)
MAX_LENGTH = 8
RECORDS = {f"output_{name}": True for name in ("attentions", "window_attentions", "gates")} | {"use_cache": False}
KINDS = {
    "gated": {},
    "gate on the query": {"plt_gate_use_hidden_states": False},
    "not normed": {"plt_normalize_per_loop": False},
    "no shift": {"plt_cross_loop_shift": False},
    "shared": {"plt_loop_attention": "shared"},
    "own": {"plt_loop_attention": "own"},
    "plain loops": {"plt_loop_attention": "own", "plt_cross_loop_shift": False, "plt_normalize_per_loop": False},
    "no scales": {"plt_emb_scale": None, "plt_hidden_scale": None},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16},
    "tied": {"tie_word_embeddings": True},
}


def ids_of(lengths=LENGTHS):
    return [tokens(length, seed=seed).tolist() for seed, length in enumerate(lengths)]


def documents(lengths=LENGTHS):
    return [Document(ids, f"text {n}", 3 * len(ids)) for n, ids in enumerate(ids_of(lengths))]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer with one token per byte, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: n for n, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.fixture(scope="module")
def result():
    return measure(tiny_model(plt_num_loops=3), documents(), max_length=MAX_LENGTH, resamples=200)


def trace_of_oracle(oracle: Observed, inputs: list[int], loops: int) -> Trace:
    """Converts the oracle's states to a `Trace`, in float64."""
    config = oracle.config
    _, states = oracle(inputs, loops + 2)
    h = [torch.tensor(state) for state in states[: loops + 1]]
    seen = [[[torch.tensor(part) for part in layer] for layer in oracle.seen[r]] for r in range(loops)]
    has_gates = config.plt_loop_attention == "gated"
    return Trace(
        embeddings=torch.tensor(oracle.weights["model.embed_tokens.weight"][inputs]),
        states=h,
        head_inputs=[
            state if config.plt_normalize_per_loop else torch.tensor(oracle.norm("model.norm", state.numpy()))
            for state in h[:loops]
        ],
        queries=[[query for query, _, _ in layers] for layers in seen],
        keys=[[key for _, key, _ in layers] for layers in seen],
        gates=[[gate for _, _, gate in layers] if r and has_gates else None for r, layers in enumerate(seen)],
        scaling=config.head_dim**-0.5,
        window=config.loop_window,
        loop_attention=config.plt_loop_attention,
    )


def assert_curves(found, expected, rtol, atol=1e-9):
    """Asserts that two lists agree, with None in the same places."""
    assert [value is None for value in found] == [value is None for value in expected]
    assert [v for v in found if v is not None] == pytest.approx([v for v in expected if v is not None], rtol, atol)


def assert_agrees(result: GainCost, expected: Values, rtol: float) -> None:
    loops, layers = result.max_loops, result.model["num_hidden_layers"]
    for name in METRICS:
        if name == "bits_per_byte" or name.endswith("_change"):
            continue
        assert_curves(result.metrics[name].mean, expected.curve(name, loops), rtol)
        first = METRICS[name].first_loop
        assert all(value is None for value in result.metrics[name].mean[:first])
        for loop in range(loops) if name in result.layers else ():
            of_layers = [expected.curve(name, loops, layer)[loop] for layer in range(layers)]
            assert_curves(result.layers[name][loop] or [None] * layers, of_layers, rtol)


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_the_oracles_states_agrees_with_numpy(kind, monkeypatch):
    """All metrics agree to 1e-6 in float64. Chunks are small, so that their boundaries are tested."""
    model, loops = tiny_model(**KINDS[kind]), 4
    oracle = Observed(model.config, model.state_dict())
    weight = torch.tensor(oracle.weights[("model.embed_tokens" if kind == "tied" else "lm_head") + ".weight"])

    def tally_piece(tally, _, inputs, targets, loops):
        seen = trace_of_oracle(oracle, inputs.tolist(), loops)
        collecting.tally_states(tally, seen, model.config.plt_cross_loop_shift)
        collecting.tally_attention(tally, seen, chunk_elements=70)
        head_inputs = seen.head_inputs
        collecting.tally_predictions(tally, predict(lambda x: x @ weight.T, head_inputs, targets, VOCAB, 3 * VOCAB))

    monkeypatch.setattr(collecting, "tally_piece", tally_piece)
    result = measure(model, documents(), max_loops=loops, max_length=MAX_LENGTH, resamples=2)
    assert_agrees(result, measure_in_numpy(model, ids_of(), loops, MAX_LENGTH), 1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_measuring_a_model_agrees_with_numpy(kind, attention):
    """Compares in the model's own float32."""
    model = tiny_model(attention=attention, **KINDS[kind])
    result = measure(model, documents(), max_loops=3, max_length=MAX_LENGTH, resamples=2)
    assert_agrees(result, measure_in_numpy(model, ids_of(), 3, MAX_LENGTH), 2e-4)


def test_one_loop_has_only_metrics_of_one_loop():
    model = tiny_model(plt_num_loops=1)
    result = measure(model, documents(), max_length=MAX_LENGTH, resamples=20)
    assert_agrees(result, measure_in_numpy(model, ids_of(), 1, MAX_LENGTH), 2e-4)
    for name, metric in METRICS.items():
        assert (result.metrics[name].mean == [None]) == (metric.first_loop > 0)
    assert result.gate_histogram is None
    assert (result.recommendation.loops, result.recommendation.share) == (1, [1.0])
    assert "allows no recommendation" in result.reason


@pytest.mark.parametrize("kind", ["gated", "not normed", "own", "no shift"])
def test_each_loops_logits_equal_a_pass_with_that_many_loops(kind):
    model, ids = tiny_model(**KINDS[kind]), tokens(20)
    seen = trace(model, ids, 4)
    assert len(seen.states) == 5  # one extra, for the fixed-point gap
    for loop in range(1, 5):
        logits = model.lm_head(seen.head_inputs[loop - 1])
        expected = model(ids[None], num_loops=loop).logits[0]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_equals_the_models_records(kind):
    """Compares each loop with a pass that ends with it, under eager attention."""
    model, ids = tiny_model(attention="eager", **KINDS[kind]), tokens(15)
    seen = trace(model, ids, 3)
    for loop in range(1, 4):
        recorded = model(ids[None], num_loops=loop, **RECORDS)
        for layer in range(model.config.num_hidden_layers):
            found = seen.log_attention(loop - 1, layer, 0, 15)
            for branch, maps in (("global", recorded.attentions), ("window", recorded.window_attentions)):
                maps = () if maps is None else [of_layer for of_layer in maps if of_layer is not None]
                assert (found[branch] is None) == (not maps)
                if maps:
                    torch.testing.assert_close(found[branch].exp(), maps[layer][0], rtol=1e-5, atol=1e-6)
            if seen.gates[loop - 1] is not None:
                torch.testing.assert_close(seen.gates[loop - 1][layer], recorded.gates[layer][0])


def test_the_fixed_point_gap_is_the_next_step(result):
    """f is the next loop, so the gap equals the next step."""
    steps, gaps = result.metrics["step_size"].mean, result.metrics["fixed_point_gap"].mean
    assert gaps[:-1] == pytest.approx(steps[1:], rel=1e-6)
    more = measure(tiny_model(plt_num_loops=3), documents(), max_loops=4, max_length=MAX_LENGTH, resamples=2)
    assert gaps[-1] == pytest.approx(more.metrics["step_size"].mean[-1], rel=1e-6)


def test_the_model_is_left_unchanged():
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, documents(), max_length=MAX_LENGTH, resamples=2)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(RuntimeError):  # also after an error
        measure(model, [Document([1, 2])], progress=lambda *_: (_ for _ in ()).throw(RuntimeError()))
    assert model.training


def test_dropout_is_disabled():
    model = tiny_model(attention_dropout=0.5).train()
    first, second = (measure(model, documents(), max_length=MAX_LENGTH, resamples=2) for _ in range(2))
    assert first == second


# Invariances.


def same(first: GainCost, second: GainCost, rel=1e-5) -> None:
    for name, curve in first.metrics.items():
        assert_curves(curve.mean, second.metrics[name].mean, rel, 1e-6)
    assert first.gate_histogram == second.gate_histogram


@given(order=st.permutations(range(len(LENGTHS))))
@settings(max_examples=5, deadline=None)
def test_the_order_of_documents_does_not_matter(result, order):
    shuffled = [documents()[n] for n in order]
    other = measure(tiny_model(plt_num_loops=3), shuffled, max_length=MAX_LENGTH, resamples=2)
    same(result, other)
    assert [entry["name"] for entry in other.documents] == [f"text {n}" for n in order]


@pytest.mark.parametrize("chunk_elements", [1, 100, 1000])
def test_the_chunk_size_does_not_matter(chunk_elements, result, monkeypatch):
    tally_attention = collecting.tally_attention
    monkeypatch.setattr(collecting, "tally_attention", lambda *args: tally_attention(*args, chunk_elements))
    monkeypatch.setattr(collecting, "predict", lambda *args: predict(*args, chunk_elements))
    same(result, measure(tiny_model(plt_num_loops=3), documents(), max_length=MAX_LENGTH, resamples=2))


def test_repeating_every_document_does_not_matter(result):
    other = measure(tiny_model(plt_num_loops=3), 2 * documents(), max_length=MAX_LENGTH, resamples=2)
    for name, curve in result.metrics.items():
        assert_curves(curve.mean, other.metrics[name].mean, 1e-9)


@given(count=st.integers(2, 60), max_length=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_pieces_predict_every_token_but_the_first_once(count, max_length):
    cut = list(pieces(list(range(count)), max_length))
    lengths = [len(inputs) for inputs, _ in cut]
    assert max(lengths) <= max_length
    assert max(lengths) - min(lengths) <= 1
    assert len(cut) == math.ceil((count - 1) / max_length)
    assert [token for _, targets in cut for token in targets.tolist()] == list(range(1, count))
    assert all((targets == inputs + 1).all() for inputs, targets in cut)


def test_pieces_of_a_document_equal_separate_documents():
    """Pieces have fresh context: each gives the same values as a separate document."""
    model, ids = tiny_model(), tokens(17).tolist()
    cut = measure(model, [Document(ids)], max_length=8, resamples=2)
    alone = measure(model, [Document(ids[:9]), Document(ids[8:])], max_length=8, resamples=2)
    assert cut.documents[0]["pieces"] == 2
    same(cut, alone)


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor created, and of all tensors together."""

    size = total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
                self.total += tensor.numel()
        return output


def test_chunks_of_attention_fit_the_cpu_cache():
    """Handling a whole piece at once is several times slower, since the weights do not fit the CPU cache."""
    model, time = tiny_model(num_hidden_layers=1, max_position_embeddings=1024), 1024
    seen = trace(model, tokens(time), 2)
    with Largest() as largest:
        collecting.tally_attention(collecting.Tally(2, 1), seen)
    assert largest.size <= collecting.CPU_CHUNK_ELEMENTS <= 2**18
    predictions = torch.zeros(time, 16)
    head = torch.zeros(16, 20_000)
    with Largest() as largest:
        predict(lambda x: x @ head, [predictions, predictions], tokens(time), 20_000)
    assert largest.size <= 128 * 20_000


def test_no_tensor_grows_with_text_squared_or_text_times_vocabulary():
    model, time, limit = tiny_model(), 120, 4000
    seen = trace(model, tokens(time), 2)
    tally = collecting.Tally(2, model.config.num_hidden_layers)
    keys_of_all_heads = 4 * time * model.config.head_dim
    with Largest() as largest:
        collecting.tally_attention(tally, seen, limit)
    assert largest.size <= max(limit, keys_of_all_heads) < time * time
    with Largest() as largest:
        predict(model.lm_head, seen.head_inputs, tokens(time), VOCAB, limit)
    assert largest.size <= limit < time * VOCAB


# The result.


def test_every_metric_has_a_curve(result):
    assert list(result.metrics) and set(result.metrics) == set(METRICS)
    for name, curve in result.metrics.items():
        for points in (curve.mean, curve.low, curve.high):
            assert [value is None for value in points] == [loop < METRICS[name].first_loop for loop in (0, 1, 2)]
        for low, mean, high in zip(curve.low, curve.mean, curve.high, strict=True):
            assert mean is None or low - 1e-9 <= high
    nothing_known = measure(tiny_model(), [Document([1, 2, 3]), *documents()], max_length=MAX_LENGTH, resamples=2)
    assert set(METRICS) - set(nothing_known.metrics) == {"bits_per_byte"}
    assert nothing_known.bytes is None


def test_tokens_bytes_and_shares(result):
    assert result.tokens == sum(LENGTHS) - len(LENGTHS)
    assert result.bytes == 3 * sum(LENGTHS)
    assert sum(result.metrics["refinement_share"].mean[1:]) == pytest.approx(1)
    assert result.metrics["agreement"].mean[-1] == 1
    ratio = result.metrics["loss"].mean[0] / math.log(2) * result.tokens / result.bytes
    assert result.metrics["bits_per_byte"].mean[0] == pytest.approx(ratio)
    sums = [entry["loss"][1] * entry["tokens"] for entry in result.documents]
    assert result.metrics["loss"].mean[1] == pytest.approx(sum(sums) / result.tokens)
    changes = [b - a for a, b in zip(result.metrics["loss"].mean, result.metrics["loss"].mean[1:], strict=False)]
    assert result.metrics["loss_change"].mean[1:] == pytest.approx(changes)


def test_the_histogram_counts_every_gate(result):
    counts = result.gate_histogram["counts"]
    assert counts[0] is None
    assert [[sum(bins) for bins in of_loop] for of_loop in counts[1:]] == [[4 * result.tokens] * 3] * 2
    assert len(result.gate_histogram["edges"]) == len(counts[1][0]) + 1
    edges = result.gate_histogram["edges"]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    mean = sum(n * m for n, m in zip(counts[1][2], middles, strict=True)) / (4 * result.tokens)
    assert mean == pytest.approx(result.layers["gate"][1][2], abs=0.025)


def summarized(losses, ranks, resamples=4000):
    """Summarizes documents with these losses and ranks, (documents, loops)."""
    tallies = []
    for loss, rank in zip(losses, ranks, strict=True):
        tally = collecting.Tally(len(loss), 1)
        for loop, (a, b) in enumerate(zip(loss, rank, strict=True)):
            tally.add("loss", loop, torch.tensor([a]))
            tally.add("effective_rank", loop, torch.tensor([b]))
        tallies.append(tally)
    entries = [{"name": "", "tokens": 1, "bytes": None, "pieces": 1, "loss": list(loss)} for loss in losses]
    chosen = {"max_loops": len(losses[0]), "max_length": 8, "seed": 0, "resamples": resamples, "confidence": 0.95}
    return collecting.summarize(tallies, entries, {}, chosen)


def test_the_certainty_reflects_agreement_between_documents():
    """The loss falls by 2 in one document and rises by 1 in the other: only drawing the second twice rejects a loop."""
    result = summarized([(5.0, 3.0, 4.0), (5.0, 6.0, 7.0)], [(1.0, 2.0, 3.0)] * 2)
    assert result.recommendation.loops == result.recommendation.loops_by_loss == 2
    assert result.recommendation.share == pytest.approx([0.25, 0.75, 0], abs=0.03)
    assert result.metrics["loss_change"].mean == [None, -0.5, 1.0]
    assert (result.metrics["loss_change"].low[1], result.metrics["loss_change"].high[1]) == (-2, 1)
    assert result.reason == (
        "Loop 3 changes the effective rank by +1.00 (+1.00 to +1.00) and the loss by +1.0000 (+1.0000 to +1.0000) nats "
        "per token, so the rule stops at 2 loops."
    )


def test_the_recommendation_says_where_rank_and_loss_disagree():
    result = summarized([(5.0, 4.0, 3.0)] * 3, [(2.0, 1.0, 3.0)] * 3)
    assert (result.recommendation.loops, result.recommendation.loops_by_loss) == (1, 3)
    assert (result.recommendation.share, result.recommendation.share_by_loss) == ([1, 0, 0], [0, 0, 1])
    assert result.reason.endswith("so the rule stops at 1 loop; the loss alone falls up to 3 loops.")


def test_intervals_of_changes_are_paired():
    """The documents differ much, but the change between loops is the same in all."""
    result = summarized([(n, n - 1.0) for n in range(10, 60, 5)], [(1.0, 2.0)] * 10)
    assert result.metrics["loss"].high[0] - result.metrics["loss"].low[0] > 10
    change = result.metrics["loss_change"]
    assert (change.low[1], change.high[1]) == pytest.approx((-1, -1))


def test_one_document_has_no_interval():
    result = measure(tiny_model(), documents()[:1], max_length=MAX_LENGTH)
    assert result.recommendation.share is None
    assert all(value is None for curve in result.metrics.values() for value in curve.low + curve.high)
    assert None not in result.metrics["loss"].mean
    assert "(" not in result.reason


def test_a_result_is_saved_and_loaded(result, tmp_path):
    path = tmp_path / "gain_cost.json"
    result.save(path)
    loaded = GainCost.load(path)
    assert loaded == result
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, which JSON does not allow
    assert list(json.loads(path.read_text()))[:2] == ["format", "version"]
    assert result == measure(tiny_model(plt_num_loops=3), documents(), max_length=MAX_LENGTH, resamples=200)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: text[: len(text) // 2], "cannot be loaded"),
        (lambda text: "[]", "not a diagnostics result"),
        (lambda text: text.replace('"iquest-plt gain-cost"', '"other"'), "not a diagnostics result"),
        (lambda text: text.replace('"version": 1', '"version": 2', 1), "version 2.*reads version 1"),
        (lambda text: text.replace('"metrics"', '"measures"', 1), r"damaged \(missing: metrics\)"),
        (lambda text: text.replace('"step_size"', '"size"', 1), "damaged.*step_size"),
        (lambda text: text.replace('"max_loops": 3', '"max_loops": 4', 1), "damaged.*does not have 4 loops"),
        (lambda text: text.replace('"limit": 3', '"limit": 2', 1), "damaged.*another number of loops"),
        (lambda text: text.replace('"tokens": 12', '"tokens": "12"', 1), "damaged"),
        (lambda text: text.replace('"mean"', '"middle"', 1), "damaged"),
        (lambda text: "\udc80".join(text[:1]) + "\x80", "cannot be loaded"),
    ],
)
def test_a_damaged_result_is_refused(damage, message, result, tmp_path):
    path = tmp_path / "gain_cost.json"
    result.save(path)
    path.write_text(damage(path.read_text()), errors="surrogateescape")
    with pytest.raises(ValueError, match=message) as error:
        GainCost.load(path)
    assert str(path) in str(error.value)


def _set(document: dict, path: str, value=None) -> None:
    """Sets the entry at the dotted `path`, or removes it if `value` is `...`."""
    *parents, last = path.split(".")
    for name in parents:
        document = document[name]
    if value is ...:
        del document[last]
    else:
        document[last] = value


@pytest.mark.parametrize(
    "place, value, message",
    [
        ("metrics.loss_change.low", "abc", "low of loss_change"),
        ("metrics.loss_change.low", [None, "-0.1", None], "low of loss_change"),
        ("metrics.bits_per_byte.mean", [1.0], "mean of bits_per_byte does not have 3 loops"),
        ("metrics.loss.mean", [None, 1.0, 1.0], "mean of loss"),
        ("metrics.loss.mean", [math.nan, 1.0, 1.0], "mean of loss"),
        ("metrics.other", {"mean": [None] * 3, "low": [None] * 3, "high": [None] * 3}, "other is not a metric"),
        ("model", {}, "name"),
        ("model.loop_attention", "both", "loop_attention"),
        ("gate_histogram", {}, "edges"),
        ("gate_histogram.counts", [None] * 3, "other loops"),
        ("recommendation.loops", None, "None loops"),
        ("recommendation.share", [1.0], "share does not have 3 loops"),
        ("layers.gate", ..., "gate"),
        ("documents", [], "no documents"),
    ],
)
def test_a_result_with_a_wrong_part_is_refused(place, value, message, result, tmp_path):
    document = json.loads(json.dumps(result.to_dict()))
    _set(document, place, value)
    path = tmp_path / "gain_cost.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"damaged.*{message}") as error:
        GainCost.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# Texts.


def test_texts_are_enclosed_in_end_tokens(tokenizer):
    end = tokenizer.eos_token_id
    (first, second) = encode_documents(tokenizer, {"a": "né", "b": "</s>"})
    assert (first.ids[0], first.ids[-1], len(first.ids), first.num_bytes) == (end, end, 5, 3)
    assert second.ids.count(end) == 2  # the "</s>" in the text is four characters
    assert (second.name, len(second.ids)) == ("b", 6)


def test_the_loss_equals_that_of_the_evaluation(tokenizer):
    model, text = tiny_model(vocab_size=257), "def f(x):\n    return x\n"
    result = measure(model, encode_documents(tokenizer, {"a": text}), max_loops=3, resamples=2)
    ids = tokenizer(text)["input_ids"]
    for loop in (1, 2, 3):
        bits = document_bits(model, ids, tokenizer.eos_token_id, loop)
        assert result.metrics["bits_per_byte"].mean[loop - 1] == pytest.approx(bits / len(text), rel=1e-5)


def test_the_loop_lens_records_every_token(tokenizer):
    model, text = tiny_model(vocab_size=257), "x = 'né 🙂'\n"
    lens = loop_lens(model, tokenizer, text, max_loops=3)
    assert "".join(record.text for record in lens.tokens) == text
    ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text)["input_ids"]])
    assert [record.id for record in lens.tokens] == ids[1:].tolist()
    p = [model(ids[None], num_loops=loop).logits[0, :-1].double().softmax(-1) for loop in (1, 2, 3)]
    for index, record in enumerate(lens.tokens):
        losses = [-of_loop[index, record.id].log().item() for of_loop in p]
        changes = [(b[index] * (b[index] / a[index]).log()).sum().item() for a, b in itertools.pairwise(p)]
        assert record.loss == pytest.approx(losses, rel=1e-4)
        assert record.refinement == [None, *(pytest.approx(change, rel=1e-3, abs=1e-6) for change in changes)]
        assert record.best == 1 + changes.index(max(changes))
        assert record.rank == [1 + (of_loop[index] > of_loop[index, record.id]).sum().item() for of_loop in p]
        assert record.top == [tokenizer.decode([of_loop[index].argmax().item()]) for of_loop in p]
    document = json.loads(json.dumps(lens.to_dict(), allow_nan=False))
    assert [token["best"] for token in document["tokens"]] == [record.best + 1 for record in lens.tokens]  # from 1
    assert loop_lens(model, tokenizer, text, max_loops=1).tokens[0].best is None


def test_the_lens_cuts_a_long_text_into_pieces(tokenizer):
    model, text = tiny_model(vocab_size=257), "abc def " * 4
    lens = loop_lens(model, tokenizer, text, max_length=10)
    assert "".join(record.text for record in lens.tokens) == text
    result = measure(model, [Document([tokenizer.eos_token_id, *tokenizer(text)["input_ids"]])], max_length=10)
    for loop in (1, 2):
        losses = [record.loss[loop - 1] for record in lens.tokens]
        assert sum(losses) / len(losses) == pytest.approx(result.metrics["loss"].mean[loop - 1], rel=1e-5)


@pytest.mark.parametrize("text", ["  def f(x):\n\treturn x", "naïve 🙂🙂 \n", " ", "x </s> y", "\n\n"])
def test_the_joined_token_texts_equal_the_text(text, tokenizer, spm_tokenizer):
    for any_tokenizer in (tokenizer, spm_tokenizer):
        ids, texts = tokenize(any_tokenizer, text)
        assert len(ids) == len(texts)
        assert "".join(texts) == text


@pytest.mark.parametrize("kind", ["gated", "shared", "own"])
def test_maps_equal_the_models_records(kind, tokenizer):
    model = tiny_model(attention="eager", vocab_size=257, **KINDS[kind])
    maps = attention_maps(model, tokenizer, "hello, world", max_loops=3, max_tokens=9, layers=[2, 0])
    assert maps.tokens == ["</s>", *"hello, w"]
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer("hello, w")["input_ids"]]])
    recorded = model(ids, num_loops=3, **RECORDS)
    for index, layer in enumerate(maps.layers):
        for found, expected in (
            (maps.global_, recorded.attentions if kind != "own" else None),
            (maps.window, recorded.window_attentions if kind != "shared" else None),
            (maps.gate, recorded.gates if kind == "gated" else None),
        ):
            if expected is None:
                assert found[2][index] is None
            else:
                mean = expected[layer][0].mean(0).numpy(force=True)
                assert found[2][index] == pytest.approx(mean, rel=1e-5, abs=1e-6)
        for of_loop in maps.mixture:
            assert of_loop[index].sum(-1) == pytest.approx(1, rel=1e-5)
    written = json.loads(json.dumps(maps.to_dict(), allow_nan=False))
    assert written["window"][0] is None
    assert (written["global"][1] is None) == (kind == "own")
    assert len(written["mixture"][2]) == 2


# Precision and bad input.


def test_a_bfloat16_model_is_measured_in_float32():
    model = tiny_model(plt_num_loops=3)
    half = measure(tiny_model(plt_num_loops=3).bfloat16(), documents(), max_length=MAX_LENGTH, resamples=2)
    whole = measure(model, documents(), max_length=MAX_LENGTH, resamples=2)
    assert half.model["dtype"] == "bfloat16"
    for name in ("loss", "effective_rank", "step_size", "offset_cost", "attention_entropy_mixture", "gate"):
        assert_curves(half.metrics[name].mean, whole.metrics[name].mean, 0.05)


def broken(name, value=math.nan):
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[:] = value
    return model


@pytest.mark.parametrize(
    "make, ids, options, message",
    [
        (tiny_model, [], {}, "no documents"),
        (tiny_model, [[]], {}, r"doc 0 has 0 token\(s\).*Leave it out"),
        (tiny_model, [[1, 2], [3]], {}, r"doc 1 has 1 token\(s\).*Leave it out"),
        (tiny_model, [[1, VOCAB]], {}, f"token id {VOCAB}.*own tokenizer"),
        (tiny_model, [[1, -1]], {}, "token id -1.*own tokenizer"),
        (lambda: llama_of(tiny_model()), [[1, 2]], {}, r"this is a LlamaForCausalLM\. Load a PLT"),
        (lambda: tiny_model().model, [[1, 2]], {}, r"this is a IQuestPLTCoderModel\. Load"),
        (tiny_model, [[1, 2]], {"max_loops": 0}, "`max_loops` must be an integer >= 1, got 0"),
        (tiny_model, [[1, 2]], {"max_loops": True}, "`max_loops` must be"),
        (tiny_model, [[1, 2]], {"max_length": 0}, "`max_length` must be"),
        (tiny_model, [[1, 2]], {"resamples": 0}, "`resamples` must be"),
        (tiny_model, [[1, 2]], {"seed": -1}, "`seed` must be"),
        (lambda: broken("model.layers.1.mlp.up_proj.weight"), [[1, 2]], {}, "loop 1.*layers.1.mlp.up_proj.*NaN"),
        (lambda: broken("model.layers.1.self_attn.plt_gate.bias"), [[1, 2]], {}, "loop 2.*plt_gate.bias.*NaN"),
        (lambda: broken("lm_head.weight"), [[1, 2]], {}, "loop 1.*lm_head"),
        (lambda: broken("lm_head.weight", math.inf), [[1, 2]], {}, "loop 1.*lm_head"),
        (lambda: broken("model.layers.0.mlp.up_proj.weight", 1e38), [[1, 2]], {}, "overflows in this precision"),
    ],
)
def test_bad_input_is_refused(make, ids, options, message):
    given = [Document(of_document, f"doc {n}") for n, of_document in enumerate(ids)]
    with pytest.raises(ValueError, match=message):
        measure(make(), given, **options)


def test_bad_texts_are_refused(tokenizer):
    model = tiny_model(vocab_size=257)
    no_end = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    for call, message in (
        (lambda: encode_documents(tokenizer, {}), "no texts"),
        (lambda: encode_documents(tokenizer, {"a": ""}), "a is empty"),
        (lambda: encode_documents(no_end, {"a": "b"}), "no end token"),
        (lambda: loop_lens(model, tokenizer, ""), "text is empty"),
        (lambda: loop_lens(model, no_end, "a"), "no end token"),
        (lambda: loop_lens(tiny_model(), tokenizer, "ÿ"), "own tokenizer"),
        (lambda: attention_maps(model, tokenizer, ""), "text is empty"),
        (lambda: attention_maps(model, tokenizer, "a", layers=[3]), "layers 0 to 2"),
        (lambda: attention_maps(model, tokenizer, "a", layers=[]), "layers 0 to 2"),
        (lambda: attention_maps(model, tokenizer, "a", max_tokens=0), "`max_tokens` must be"),
        (lambda: attention_maps(llama_of(model), tokenizer, "a"), "LlamaForCausalLM"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_progress_is_reported_after_every_piece():
    calls = []
    measure(tiny_model(), documents(), max_length=MAX_LENGTH, resamples=2, progress=lambda *done: calls.append(done))
    total = sum(LENGTHS) - len(LENGTHS)
    assert calls[0] == (6, total)
    assert calls[-1] == (total, total)
    assert len(calls) == 2 + 1 + 3 + 1
