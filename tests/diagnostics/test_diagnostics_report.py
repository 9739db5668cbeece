# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The output of `diagnose`: correct figures and sentences, and a self-contained page that escapes any text."""

import copy
import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest


pytest.importorskip("matplotlib", reason="pip install '.[diagnostics]' in a checkout of iquest-plt")

from iquest_plt.diagnostics import (
    METRICS,
    AttentionMaps,
    Curve,
    GainCost,
    LoopLens,
    Recommendation,
    TokenRecord,
    interpretation,
    plots,
    report,
    sweep,
)
from iquest_plt.diagnostics.metric_info import LAYER_METRICS


LOOPS, LAYERS = 4, 3
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\"quotes\" 'and' `ticks` ${x} \\ &lt;",
    "NUL \0 and \x07 bell",
    "line\u2028separators\u2029",
    "\ttabs\n\r\nlines",
    "\u202egnp.exe\u202c \u2066iso\u2069",
    "שלום مرحبا 日本語 🎉",
    "",  # part of a character
    "an",
    " end\n",
    "new",
]


def curve(first: int, values: list[float], spread: float | None = 0.01) -> Curve:
    """Returns a curve of values from loop `first` on, with intervals unless `spread` is None."""
    mean = [None] * first + values
    low, high = ([None if v is None or spread is None else v + s * spread for v in mean] for s in (-1, 1))
    return Curve(mean, low, high)


def make_result(
    loss=(2.0, 1.5, 1.6, 1.6), rank=(50.0, 60.0, 55.0, 54.0), spread=0.01, documents=12, **model
) -> GainCost:
    """Makes a result with known curves. `spread=None` stands for a single document, which has no intervals."""
    metrics = {}
    for index, (name, metric) in enumerate(METRICS.items()):
        metrics[name] = curve(
            metric.first_loop, [index + 1.1 + 0.1 * r for r in range(metric.first_loop, LOOPS)], spread
        )
    metrics["loss"], metrics["effective_rank"] = curve(0, list(loss), spread), curve(0, list(rank), spread)
    metrics["loss_change"] = curve(1, np.diff(loss).tolist(), spread)
    metrics["effective_rank_change"] = curve(1, np.diff(rank).tolist(), spread)
    metrics["refinement"] = curve(1, [0.8, 0.1, 0.05], spread)
    metrics["offset_cost"] = curve(1, [20.0, 21.0, 22.0], spread)
    metrics["refinement_share"] = curve(1, [0.9, 0.07, 0.03], spread)
    gates = [None] + [[0.1 * loop + 0.2 * layer for layer in range(LAYERS)] for loop in range(1, LOOPS)]
    layers = {name: gates if name == "gate" else [[0.5] * LAYERS] * LOOPS for name in LAYER_METRICS}
    best = 1 + int(np.cumprod(np.diff(loss) < 0).sum())
    both = 1 + int(np.cumprod((np.diff(loss) < 0) & (np.diff(rank) > 0)).sum())
    certain = [[float(loop == advice) for loop in range(1, LOOPS + 1)] for advice in (both, best)]
    shares = certain if spread is not None else [None, None]
    histogram = {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "counts": [None, *[[[1, 2, 3, 4]] * LAYERS] * (LOOPS - 1)]}
    about = {
        "name": "a <b>model</b>",
        "num_loops": 2,
        "hidden_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "window": 8,
        "cross_loop_shift": True,
        "loop_attention": "gated",
        "normalize_per_loop": True,
        "dtype": "float32",
    }
    return GainCost(
        model=about | model,
        settings={"max_loops": LOOPS, "max_length": 64, "seed": 0, "resamples": 100, "confidence": 0.95},
        documents=[
            {"name": f"{i}.py", "tokens": 10 + i, "bytes": 40 + i, "pieces": 1, "loss": [v + 0.01 * i for v in loss]}
            for i in range(documents)
        ],
        metrics=metrics,
        layers=layers,
        gate_histogram=histogram,
        recommendation=Recommendation(both, LOOPS, shares[0], best, shares[1]),
    )


def make_lens(texts=("def", " f", "():\n", "\treturn"), loops=LOOPS) -> LoopLens:
    """Makes a lens: loop 1 halves the loss of even tokens and doubles that of odd ones; later loops change nothing."""
    records = []
    for i, text in enumerate(texts):
        losses = [2.0, *[1.0 if i % 2 == 0 else 4.0] * (loops - 1)]
        refinement = [None, 0.25 + i, *[0.0] * (loops - 2)][:loops]
        records.append(TokenRecord(i, text, losses, refinement, 1, [i + 1] * loops, [0.5] * loops, [text] * loops))
    return LoopLens("hostile <name>.py", loops, records)


def make_maps(size=5) -> AttentionMaps:
    weights = np.tril(np.ones((size, size))) / np.arange(1, size + 1)[:, None]
    full, later = [[weights, weights**2]] * 3, [[None, None], *[[weights, weights]] * 2]
    gate = [[None, None], *[[np.full(size, 0.5)] * 2] * 2]
    return AttentionMaps(3, [HOSTILE[0], *"bcde"], [0, 2], full, later, full, gate)


class Page(HTMLParser):
    """The page as a browser parses it: tags with attributes, scripts, and the other text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self.inside = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def page():
    html = report.render(make_result(), make_lens(HOSTILE), make_maps(), ["A note & its <sign>."])
    return Page(html), html


@pytest.fixture
def no_pictures(monkeypatch):
    """Skips drawing, which takes most of the time, in tests of the text."""
    monkeypatch.setattr(plots, "to_svg", lambda figure, name, label: f'<svg id="{name}"></svg>')


# -- figures -----------------------------------------------------------------------------------------------------------


def drawn(axes) -> list[tuple[list, list, list]]:
    """Returns x, y and the ends of the error bars of each curve that has them."""
    found = []
    for container in axes.containers:
        line, _, (bars,) = container
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        found.append((line.get_xdata().tolist(), line.get_ydata().tolist(), ends))
    return found


def test_gain_cost_figure_shows_the_numbers():
    figure = make_result().plot()
    left, right = figure.axes
    for axes, name, values in ((left, "Refinement Δp (nats)", [0.8, 0.1, 0.05]), (right, "Ω", [20, 21, 22])):
        ((x, y, bars),) = drawn(axes)
        assert name in axes.get_ylabel()
        assert y == pytest.approx(values)
        assert np.round(x).tolist() == [2, 3, 4]
        assert bars == [pytest.approx([value - 0.01, value + 0.01]) for value in values]
    assert "no common unit" in figure.get_supxlabel() and "12 documents" in figure.get_supxlabel()


def test_rule_figure_shows_the_changes():
    loss, rank = plots.plot_rule(make_result()).axes
    assert drawn(loss)[0][1] == pytest.approx([-0.5, 0.1, 0.0])
    assert drawn(rank)[0][1] == pytest.approx([10, -5, -1])


def test_every_metric_is_drawn_once():
    """Each metric is drawn with its own numbers."""
    result = make_result()
    charted = [name for names in plots.CHARTS.values() for name in names]
    assert sorted([*charted, "loss_change", "effective_rank_change"]) == sorted(METRICS)
    figure = plots.plot_metrics(result)
    found = [y for axes in figure.axes for _, y, _ in drawn(axes)]
    expected = [[v for v in result.metrics[name].mean if v is not None] for name in charted]
    assert found == [pytest.approx(values) for values in expected]


def test_metrics_that_a_model_lacks_are_left_out(no_pictures):
    result = make_result(loop_attention="shared")
    del result.metrics["bits_per_byte"]
    for name in METRICS:
        if name.endswith("_window") or name == "gate":
            result.metrics[name] = Curve([None] * LOOPS, [None] * LOOPS, [None] * LOOPS)
    result.gate_histogram = None
    assert plots.plot_gates(result) is None
    assert plots.plot_chart(result, "Bits per byte") is None
    assert len(drawn(plots.plot_chart(result, "Attention entropy").axes[0])) == 2
    html = report.render(result)
    assert 'id="gate"' not in html and 'id="lens"' not in html and "there is one branch and no gate" in html


def test_gate_figure_shows_the_gates():
    result = make_result()
    heat, histogram, _ = plots.plot_gates(result).axes
    shown = heat.collections[0].get_array().reshape(LAYERS, LOOPS - 1)
    assert shown.T.tolist() == [pytest.approx(row) for row in result.layers["gate"][1:]]
    assert histogram.patches[0].get_data().values.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_attention_figure_shows_the_maps():
    maps = make_maps()
    *pictures, _ = plots.plot_attention(maps, "global").axes
    assert len(pictures) == 3 * 2
    shown = pictures[1].images[0].get_array()
    allowed = np.tril(np.ones((5, 5), dtype=bool))
    assert np.allclose(shown.data[allowed] ** 2, maps.global_[0][1][allowed], atol=1e-6)
    assert (np.ma.getmaskarray(shown) == ~allowed).all()
    assert len(plots.plot_attention(maps, "window").axes) == 2 * 2 + 1  # loop 1 has no window
    with pytest.raises(ValueError, match="branches"):
        plots.plot_attention(maps, "local")


def test_svg_uses_the_pages_colours_and_is_deterministic():
    svgs = [plots.to_svg(plots.plot(make_result()), name, 'a "label" & <more>') for name in ("one", "one", "two")]
    assert svgs[0] == svgs[1]
    root = ElementTree.fromstring(svgs[0].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert root.get("aria-label") == 'a "label" & <more>'
    assert "currentColor" in svgs[0] and "var(--gain," in svgs[0]
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in svgs]
    assert ids[0] and not ids[0] & ids[2]
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', svgs[0])) <= ids[0]


# -- sentences ---------------------------------------------------------------------------------------------------------


def test_sentences_match_the_numbers():
    falling, rising = make_result(loss=(2.0, 1.5, 1.2, 1.0)), make_result(loss=(2.0, 2.5, 2.6, 2.7))
    assert (
        interpretation.loss(falling)[0] == "Loop 2 lowers the held-out loss by 0.500 (0.490 to 0.510) nats per token."
    )
    assert interpretation.loss(rising)[0] == "Loop 2 raises the held-out loss by 0.500 (0.490 to 0.510) nats per token."
    assert interpretation.rank(falling)[0].startswith("Loop 2 raises the effective rank by 10.0 ")
    assert interpretation.rank(falling)[1].startswith("Loop 3 lowers the effective rank by 5.00 ")


def test_an_interval_that_contains_zero_may_be_chance():
    result = make_result(loss=(2.0, 1.5, 1.495, 1.0))
    first, second, third = interpretation.loss(result)
    assert "chance" in second and "lowers" not in second
    assert "chance" not in first + third
    result = make_result(spread=None, documents=1)
    assert all("There is one document" in sentence for sentence in interpretation.loss(result))


def test_the_course_of_a_curve():
    def say(values, spread):
        return interpretation.course(curve(1, values, spread), "X", "")

    assert "X falls from 3.00" in say([3.0, 2.0, 1.0], 0.1) and "do not overlap" in say([3.0, 2.0, 1.0], 0.1)
    assert "X rises from 1.00" in say([1.0, 2.0, 3.0], 0.1)
    assert "may be no change" in say([1.0, 2.0, 3.0], 1.5)
    assert "passing 0.500 (0.400 to 0.600) in loop 3" in say([1.0, 0.5, 3.0], 0.1)
    assert "passing" not in say([1.0, 2.0, 3.0], 0.1)
    assert "no intervals" in say([1.0, 2.0, 3.0], None)
    assert say([1.0], 0.1) == "X is 1.00 (0.900 to 1.10) in loop 2."
    assert interpretation.course(Curve([None], [None], [None]), "X", "") == ""


def test_the_recommendation_notes_that_the_rules_disagree(no_pictures):
    agree = make_result()
    disagree = make_result(rank=(60.0, 50.0, 55.0, 54.0))
    assert (agree.recommendation.loops, agree.recommendation.loops_by_loss) == (2, 2)
    assert not any("disagree" in sentence for sentence in interpretation.recommendation(agree))
    assert any("disagree: 1 loop " in sentence for sentence in interpretation.recommendation(disagree))
    assert any("measure more loops" in s for s in interpretation.recommendation(make_result(loss=(4.0, 3.0, 2.0, 1.0))))
    assert any("Only 3 documents" in s for s in interpretation.recommendation(make_result(documents=3)))
    assert any("One document" in s for s in interpretation.recommendation(make_result(spread=None, documents=1)))
    html = report.render(disagree)
    assert "<strong>1 loop</strong>" in html and "<strong>2 loops</strong>" in html


def test_gates_motion_and_shift():
    result = make_result()
    text = " ".join(interpretation.gates(result))
    assert "Layer 2 reads loop 1's keys most (0.500), layer 0 least (0.100)" in text
    assert "mix the two branches" in text  # no bin of this histogram is within 0.1 of an end
    result.gate_histogram["edges"] = [0.0, 0.1, 0.5, 0.9, 1.0]
    assert "50 % of the gates are within 0.1" in " ".join(interpretation.gates(result))
    result.metrics["step_size"], result.metrics["fixed_point_gap"] = curve(0, [10.0] * LOOPS), curve(0, [0.5] * LOOPS)
    result.metrics["angular_change"] = curve(1, [0.5, 0.005, -0.5])
    said = " ".join(interpretation.motion(result))
    assert "5.0 % of the first step: they have almost come to rest" in said
    assert [said.index(s) for s in ("continues in the", "does not show whether", "partly undoes")] == sorted(
        said.index(s) for s in ("continues in the", "does not show whether", "partly undoes")
    )
    result.metrics["fixed_point_gap"] = curve(0, [20.0] * LOOPS)
    assert "200 % of the first step: they are still moving" in " ".join(interpretation.motion(result))
    assert not any("no shift" in sentence for sentence in interpretation.gain_cost(result))
    assert any("no shift" in sentence for sentence in interpretation.gain_cost(make_result(cross_loop_shift=False)))


def test_the_lens_counts_tokens():
    first, *later = interpretation.lens(make_lens())
    assert first.startswith(
        "Loop 2 lowers the loss of 50 % of them and raises it for 50 %; the mean change is 0.500 nats"
    )
    assert all("lowers the loss of 0 % of them and raises it for 0 %" in sentence for sentence in later)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (1234.5, "1,234"), (99.96, "100"), (-0.276, "−0.276"), (0.000256, "0.000256"), (3e-7, "3e−7")],
)
def test_numbers_for_people(value, text):
    assert interpretation.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.5, "50 %"), (0.9972, "99.7 %"), (0.99999, "over 99.9 %"), (0.0001, "under 0.1 %")],
)
def test_shares_for_people(share, text):
    assert interpretation.percent(share) == text


def test_no_change_is_not_a_rise():
    result = make_result(loss=(2.0, 1.5, 1.5, 1.6), spread=None, documents=1)
    expected = "Loop 3 does not change the held-out loss. There is one document, so no interval."
    assert interpretation.loss(result)[1] == expected


@pytest.mark.parametrize("attention", ["gated", "shared", "own"])
def test_the_text_mentions_only_the_models_branches(attention, no_pictures):
    """With one branch, the text mentions neither a second branch nor a window nor a gate."""
    result, maps = make_result(loop_attention=attention), make_maps()
    if attention != "gated":
        result.gate_histogram, result.metrics["gate"] = None, Curve(*[[None] * LOOPS] * 3)
        maps = dataclasses.replace(maps, gate=[[None, None]] * 3)
    text = report.render(result, None, maps)
    for words in ("both branches", "weighted by the gate", "window 8", METRICS["gate"].meaning.split(".")[0]):
        assert (words in text.replace("&#39;", "'")) == (attention == "gated"), words


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_loads_no_other_files(page):
    parsed, html = page
    for tag, attributes in parsed.tags:
        for name in ("src", "srcset", "data", "poster", "background", "action"):
            assert name not in attributes, (tag, attributes)
        for name in ("href", "xlink:href"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:image/png")) or (
                tag == "a" and target.startswith("https://arxiv.org/")
            )
        assert not any(name.startswith("on") for name in attributes)
    assert {tag for tag, _ in parsed.tags} & {"link", "iframe", "object", "embed", "base", "img"} == set()
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    policy = next(a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert len(html) < 3_000_000


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page[0].tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_hostile_text_stays_text(page):
    parsed, html = page
    data, script = parsed.scripts
    assert json.loads(data)["text"] == HOSTILE
    assert "<" not in data and "\u2028" not in data and "\0" not in html
    assert script.strip().endswith("})();")
    assert "<img" not in html and "</script><" not in html
    assert "a <b>model</b>" in parsed.text and "hostile <name>.py" in parsed.text
    assert "A note & its <sign>." in parsed.text


def test_quoted_text_shows_invisible_characters():
    assert report.quoted('a"\n\u202e\u2028é🎉\0') == '"a\\"\\n\\u202e\\u2028é🎉\\u0000"'


def test_lens_data_equals_the_measurements():
    data = report.lens_data(make_lens())
    assert [values[1] for values in data["loss"]] == [1.0, 4.0, 1.0, 4.0]
    assert [values[1] for values in data["refinement"]] == [0.25, 1.25, 2.25, 3.25]
    assert data["names"][data["top"][3][0]] == "\treturn"
    assert (data["loops"], data["rank"][3], data["best"][0]) == (LOOPS, [4] * LOOPS, 2)


def test_the_page_describes_the_measurement(page):
    text = " ".join(page[0].text.split())
    result = make_result()
    for part in (f"loops 1 to 4 on {result.tokens} tokens", "no common unit", "2510.24824", "2606.18023", "without it"):
        assert part in text
    assert all(sentence in text for sentence in (*interpretation.loss(result), *interpretation.gates(result)))
    assert "<sup>" not in text and "{{" not in text  # no markup shown as text
    for name in ("step_size", "effective_rank", "offset_cost", "refinement", "gate"):
        assert text.count(METRICS[name].title) >= 2  # in the table and in the definitions


def test_the_same_json_gives_the_same_report(tmp_path):
    result = make_result()
    result.save(tmp_path / "gain_cost.json")
    pages = [report.render(r, make_lens(), make_maps()) for r in (result, GainCost.load(tmp_path / "gain_cost.json"))]
    assert pages[0] == pages[1]


def test_different_numbers_give_a_different_report(no_pictures):
    result = make_result()
    other = copy.deepcopy(result)
    other.metrics["loss_change"].mean[1] = -0.4
    pages = [report.render(r) for r in (result, result, other)]
    assert pages[0] == pages[1] != pages[2]


def test_one_loop_and_one_document(no_pictures):
    """The page says that there is nothing to compare and no interval."""
    result = make_result(spread=None, documents=1)
    short = {name: Curve(c.mean[:1], c.low[:1], c.high[:1]) for name, c in result.metrics.items()}
    settings, layers = result.settings | {"max_loops": 1}, {name: v[:1] for name, v in result.layers.items()}
    advice = Recommendation(1, 1, None, 1, None)
    one = dataclasses.replace(
        result, metrics=short, settings=settings, layers=layers, recommendation=advice, gate_histogram=None
    )
    html = report.render(one, make_lens(loops=1))
    assert "One loop was measured" in html and "there is nothing to choose from" in html
    assert "lens-data" not in html and "loop 2</th>" not in html
    many = dataclasses.replace(one, documents=make_result().documents, recommendation=Recommendation(1, 1, [1], 1, [1]))
    html = report.render(many)
    assert "allows no recommendation" in html and "more may be worth it" not in html and "1 loop: 100 %" not in html


def test_csv_contains_every_number():
    import csv

    result = make_result()
    rows = list(csv.DictReader(report.to_csv(result).splitlines()))
    found = {(row["metric"], row["layer"], int(row["loop"])): row for row in rows}
    assert float(found["loss", "", 2]["mean"]) == 1.5 and float(found["loss", "", 2]["low"]) == pytest.approx(1.49)
    assert float(found["gate", "2", 3]["mean"]) == pytest.approx(0.6)
    assert ("gate", "", 1) not in found and found["refinement", "", 2]["unit"] == "nats"
    assert len([row for row in rows if not row["layer"]]) == sum(LOOPS - m.first_loop for m in METRICS.values())


# -- sweeps ------------------------------------------------------------------------------------------------------------


def timing(loops: int) -> sweep.Timing:
    return sweep.Timing(0.01 * (1 + 0.1 * (loops - 1)), 1 + 0.1 * (loops - 1), 100, 1000 + 10 * (loops - 1))


def make_sweep(result=None) -> sweep.Sweep:
    result = result or make_result()
    loops = range(1, LOOPS + 1)
    return sweep.sweep([(result, loop) for loop in loops], [timing(loop) for loop in loops], 10, {"device": "none"})


def test_sweep_of_one_model():
    found = make_sweep()
    result = found.results[0]
    bits = [
        sum(d["tokens"] * d["loss"][loop] for d in result.documents) / np.log(2) / result.bytes for loop in range(LOOPS)
    ]
    assert [row.bits_per_byte.mean for row in found.rows] == pytest.approx(bits)
    assert found.best.loops == 2 and found.best.lowest_share == 1.0
    assert found.rows[0].change.mean is None
    change = found.rows[1].change
    assert change.mean == pytest.approx(bits[1] - bits[0]) and change.low < change.mean < change.high < 0
    said = " ".join(sweep.sentences(found))
    assert "The loss is lowest with 2 loops" in said and "1.10 times as long" in said and "1.0 % larger" in said
    assert "The difference between 3 loops and 4 loops may be chance" in said  # they have the same loss
    rising = make_sweep(make_result(loss=(1.0, 2.0, 3.0, 4.0)))
    assert "The loss is lowest with 1 loop:" in sweep.sentences(rising)[0]


def test_sweep_of_several_models():
    one, two = make_result(name="one"), make_result(loss=(3.0, 1.0, 1.0, 1.0), name="two|a")
    found = sweep.sweep([(one, 1), (two, 2)], [timing(1), timing(2)], 10, {})
    assert [row.model for row in found.rows] == ["one", "two|a"] and len(found.results) == 2
    page = sweep.to_markdown(found, "sweep.png")
    assert "two\\|a" in page and "2 loops (two|a)" in page
    assert "| time per token over one with 1 loop |" in page and "contexts of up to 64 tokens" in page
    later = sweep.sweep([(two, 2), (one, 3)], [timing(2), timing(3)], 10, {})
    assert later.base == "two|a with 1 loop"
    longer = dataclasses.replace(two, settings=two.settings | {"max_length": 128})
    with pytest.raises(ValueError, match="contexts of 64 and 128 tokens"):
        sweep.sweep([(one, 1), (longer, 2)], [timing(1), timing(2)], 10, {})
    two.documents[0] = two.documents[0] | {"name": "other.py"}
    with pytest.raises(ValueError, match="different documents"):
        sweep.sweep([(one, 1), (two, 2)], [timing(1), timing(2)], 10, {})
    one.documents[0]["bytes"] = None
    with pytest.raises(ValueError, match="bytes"):
        sweep.sweep([(one, 1)], [timing(1)], 10, {})


def test_changes_between_rows_are_paired():
    """The documents differ much more than the rows, but the change is the same in all of them and so is certain."""
    result = make_result()
    for index, document in enumerate(result.documents):
        document |= {"tokens": 10, "bytes": 40, "loss": [1 + index - 0.1 * loop for loop in range(LOOPS)]}
    before, row = make_sweep(result).rows[:2]
    change = -0.1 * 10 / 40 / np.log(2)
    assert before.bits_per_byte.high - before.bits_per_byte.low > 10 * abs(change)
    assert (row.change.low, row.change.mean, row.change.high) == pytest.approx((change,) * 3)


def test_sweep_table_picture_and_csv():
    import csv

    found = make_sweep()
    lines = sweep.table(found)
    assert lines[0] == ["loops R", "1", "2", "3", "4"] and all(len(line) == LOOPS + 1 for line in lines)
    assert ["time per token over R = 1", "1.00", "1.10", "1.20", "1.30"] in lines
    assert ["Refinement Δp (nats)", "–", "0.800", "0.100", "0.0500"] in lines
    loss, time, memory, gain, cost = plots.plot_sweep(found).axes
    assert drawn(loss)[0][1] == pytest.approx([row.bits_per_byte.mean for row in found.rows])
    assert time.lines[0].get_ydata().tolist() == pytest.approx([1.0, 1.1, 1.2, 1.3])
    assert memory.lines[0].get_ydata().tolist() == pytest.approx([1e-3, 1.01e-3, 1.02e-3, 1.03e-3])
    assert gain.lines[0].get_ydata()[1:].tolist() == pytest.approx([0.8, 0.1, 0.05])
    assert cost.lines[0].get_ydata()[1:].tolist() == pytest.approx([20, 21, 22])
    plain = list(csv.DictReader(sweep.to_csv(found).splitlines()))
    assert float(plain[2]["diagnostics.refinement"]) == 0.1 and plain[0]["change.mean"] == ""
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rows"][3]["loops"] == 4
    one = make_sweep(make_result(spread=None, documents=1))
    assert one.best.lowest_share is None and one.rows[1].change.low is None
    assert "One document" in " ".join(sweep.sentences(one))


# -- a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    """Opens the page of hostile tokens from disk in headless Chromium, offline."""
    pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    from selenium.webdriver.support.ui import WebDriverWait

    from iquest_plt.utils.browser import CHROMIUM, DRIVER, MISSING, chromium

    if not (CHROMIUM and DRIVER):
        pytest.skip(MISSING)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page[1], encoding="utf-8")
    with chromium(1200, 900) as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        driver.get(path.as_uri())
        # The page unpacks its data after it has loaded.
        WebDriverWait(driver, 60).until(lambda driver: driver.find_elements("css selector", ".t"))
        yield driver


def colours(driver) -> list[str]:
    script = "return [...document.querySelectorAll('.t')].map(t => getComputedStyle(t).backgroundColor)"
    return driver.execute_script(script)


def choose(driver, name: str, value: str) -> None:
    driver.execute_script(f"document.querySelector('input[name={name}][value=\"{value}\"]').click()")


def rgb(colour: str) -> list[float]:
    return [float(part) for part in re.findall(r"[\d.]+", colour)]


def test_the_lens_in_a_browser(browser):
    from selenium.webdriver import ActionChains, Keys

    shown = browser.execute_script("return document.querySelectorAll('.t').length")
    assert shown == len(HOSTILE)
    assert browser.execute_script("return document.querySelectorAll('#text img, #text script').length") == 0
    text = browser.execute_script("return document.getElementById('text').textContent")
    assert "</script><img src=x onerror=alert(1)>" in text and "␀" in text and "⟨U+202E⟩" in text
    assert "\0" not in text and "\u202e" not in text

    falls = colours(browser)
    assert falls[0] != falls[1] and falls[0] == falls[2]  # loop 2 helps even tokens and harms odd ones
    fall, rise = rgb(falls[0]), rgb(falls[1])
    assert fall[2] > fall[0] and rise[0] > rise[2]  # blue falls, orange rises
    assert "2.000 nats" in browser.execute_script("return document.getElementById('scale').textContent")
    choose(browser, "loop", "3")
    assert len(set(colours(browser))) == 1  # loop 3 changes nothing
    choose(browser, "quantity", "refinement")
    choose(browser, "loop", "2")
    strengths = [rgb(colour)[3] if len(rgb(colour)) == 4 else 1.0 for colour in colours(browser)]
    assert strengths == sorted(strengths) and strengths[0] < strengths[-1]  # Δp grows with the index
    assert "Δp" in browser.execute_script("return document.querySelector('#numbers, #controls').textContent")

    def numbers():
        return browser.execute_script("return document.getElementById('numbers').innerText")

    tokens = browser.find_elements("css selector", ".t")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", tokens[1])
    ActionChains(browser).move_to_element(tokens[1]).perform()
    first = numbers()
    assert "(2 of 12)" in first and "+2.000" in first and "<!--<script>" in first
    ActionChains(browser).move_to_element(tokens[9]).perform()
    assert "(10 of 12)" in numbers()
    browser.execute_script("document.getElementById('text').focus()")
    ActionChains(browser).send_keys(Keys.HOME).perform()
    assert "(1 of 12)" in numbers() and "−1.000" in numbers()
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).send_keys(Keys.ARROW_RIGHT).perform()
    assert "(3 of 12)" in numbers()
    active = browser.execute_script("return document.getElementById('text').getAttribute('aria-activedescendant')")
    assert active == "t2"
    ActionChains(browser).send_keys(Keys.END).perform()
    assert "(12 of 12)" in numbers()
    ActionChains(browser).send_keys(Keys.ARROW_UP).perform()
    assert "(12 of 12)" not in numbers()
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert "Point at a token" in numbers()
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_the_page_fits_a_phone(browser):
    device = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_colour(browser, scheme):
    """The text contrasts with the strongest colours by at least 4.5, as WCAG AA requires."""
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    ink, *grounds = browser.execute_script(
        "const probe = document.body.appendChild(document.createElement('i'));"
        "const out = [getComputedStyle(document.body).color];"
        "for (const c of ['var(--bg)', 'var(--card)', 'rgb(var(--fall))', 'rgb(var(--rise))', 'rgb(var(--move))'])"
        "{ probe.style.backgroundColor = c; out.push(getComputedStyle(probe).backgroundColor); }"
        "probe.remove(); return out"
    )

    def luminance(colour):
        parts = [value / 255 for value in rgb(colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    for ground in grounds:
        dark, light = sorted((luminance(ink), luminance(ground)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, ground)
