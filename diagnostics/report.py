# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Renders the measurements as one self-contained HTML file. Needs the extra `diagnostics`.

    Path("report.html").write_text(render(result, lens=loop_lens(...), maps=attention_maps(...)), encoding="utf-8")
"""

import csv
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from . import interpretation, plots
from .lens import LoopLens
from .loop_names import loop_number, loops_text
from .maps import AttentionMaps
from .metric_info import BOTH_BRANCHES, METRICS
from .result import GainCost


NOT_DRAWN = Markup("<em>This picture could not be drawn.</em>")
TEMPLATE = Path(__file__).with_name("report.html.jinja")
TABLE = (
    "loss",
    "loss_change",
    "bits_per_byte",
    "top1_accuracy",
    "refinement",
    "refinement_share",
    "offset_cost",
    "step_size",
    "angular_change",
    "effective_rank",
    "effective_rank_change",
)
GROUPS = {  # groups of `plots.CHARTS`, by their first metric
    "Predictions": (
        "loss",
        "bits_per_byte",
        "true_rank",
        "top1_accuracy",
        "entropy",
        "agreement",
        "refinement",
        "refinement_share",
    ),
    "States": ("step_size", "aligned_step", "angular_change", "fixed_point_gap", "effective_rank", "offset_cost"),
    "Attention": (
        "attention_change_mixture",
        "attention_entropy_mixture",
        "head_similarity_mixture",
        "head_rank_mixture",
        "gate",
    ),
}


def render(
    result: GainCost,
    lens: LoopLens | None = None,
    maps: AttentionMaps | None = None,
    notes: list[str] | tuple[str, ...] = (),
    on_error: Callable[[str, Exception], None] | None = None,
) -> str:
    """
    Renders the report. Equal arguments give equal text.

    Args:
        result: the measurements.
        lens: a text token by token. Its section is omitted without one, or if it has only one loop.
        maps: attention maps of a text. Their section is omitted without them.
        notes: sentences about the data, such as its licence.
        on_error: called with the name of a picture that cannot be drawn, and the error; a note then takes the picture's
            place. If None, the error is raised.
    """
    svg = partial(_svg, on_error)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {
        "percent": interpretation.percent,
        "loops_text": loops_text,
        "quoted": quoted,
    }
    if lens is not None and (lens.max_loops == 1 or not lens.tokens):
        lens = None
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        result=result,
        metrics=METRICS,
        advice=result.recommendation,
        gated=_gated(result),
        both_branches=BOTH_BRANCHES,
        interpretation=interpretation,
        gain_cost=svg("gain-cost", "Refinement and offset cost of each loop", plots.plot, result),
        rule=svg("rule", "Change of loss and of effective rank in each loop", plots.plot_rule, result),
        gates=svg("gates", "Mean gate of each layer and loop, and a histogram of gates", plots.plot_gates, result),
        charts=_charts(result, svg),
        table=[
            [name, [interpretation.parts(result.metrics[name], loop) for loop in range(result.max_loops)]]
            for name in TABLE
            if name in result.metrics
        ],
        lens=lens,
        lens_data=None if lens is None else lens_data(lens),
        maps=maps,
        attention=_attention(maps, svg),
        notes=notes,
    )


def quoted(text: str) -> str:
    """Quotes a text and escapes its invisible characters."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(text, ensure_ascii=False))


def lens_data(lens: LoopLens) -> dict:
    """
    Returns the data of the page's script and of `lens.json`: a list for each field of `TokenRecord`, with numbers
    rounded to four digits. `top` holds indices into `names`, and `best` counts loops from 1.
    """
    names = list(dict.fromkeys(top for token in lens.tokens for top in token.top))
    index = {name: position for position, name in enumerate(names)}
    columns = {
        name: [[_short(value) for value in getattr(token, name)] for token in lens.tokens]
        for name in ("loss", "refinement", "rank", "entropy")
    }
    return columns | {
        "loops": lens.max_loops,
        "text": [token.text for token in lens.tokens],
        "best": [None if token.best is None else loop_number(token.best) for token in lens.tokens],
        "names": names,
        "top": [[index[top] for top in token.top] for token in lens.tokens],
    }


def to_csv(result: GainCost) -> str:
    """Writes a row per number: metric, unit, layer (empty: all layers), loop (from 1), mean, low, high."""
    target = io.StringIO()
    rows = csv.writer(target, lineterminator="\n")
    rows.writerow(["metric", "unit", "layer", "loop", "mean", "low", "high"])
    for name, curve in result.metrics.items():
        for loop, values in enumerate(zip(curve.mean, curve.low, curve.high, strict=True)):
            if values[0] is not None:
                rows.writerow([name, METRICS[name].unit, "", loop_number(loop), *values])
    for name, by_loop in result.layers.items():
        for loop, layers in enumerate(by_loop):
            for layer, value in enumerate(layers or ()):
                rows.writerow([name, METRICS[name].unit, layer, loop_number(loop), value, None, None])
    return target.getvalue()


def _gated(result: GainCost) -> bool:
    """Returns True if the model has two branches with a gate between them."""
    return result.model["loop_attention"] == "gated"


def _svg(on_error: Callable | None, name: str, label: str, draw: Callable, *arguments) -> Markup | None:
    """Returns the picture that `draw` makes, or None if there is nothing to draw."""
    try:
        figure = draw(*arguments)
        return None if figure is None else Markup(plots.to_svg(figure, name, label))
    except Exception as error:
        if on_error is None:
            raise
        on_error(name, error)
        return NOT_DRAWN


def _charts(result: GainCost, svg: Callable) -> dict[str, list[dict]]:
    """Returns the charts by group: title, picture and meaning of each."""
    titles = {names[0]: title for title, names in plots.CHARTS.items()}
    groups = {}
    for group, names in GROUPS.items():
        groups[group] = []
        for name in names:
            title = titles[name]
            chart = svg(f"chart-{name.replace('_', '-')}", f"{title} over loops", plots.plot_chart, result, title)
            if chart is not None:
                meaning = METRICS[name].meaning if _gated(result) else METRICS[name].meaning.replace(BOTH_BRANCHES, "")
                groups[group].append({"title": title, "svg": chart, "meaning": meaning})
    return groups


def _attention(maps: AttentionMaps | None, svg: Callable) -> dict[str, Markup]:
    if maps is None:
        return {}
    branches = plots.BRANCHES if any(gate is not None for gate in (maps.gate[-1] or [None])) else ("mixture",)
    pictures = {}
    for branch in branches:
        label = f"Attention maps of the {branch}, a row for each loop"
        pictures[branch] = svg(f"attention-{branch}", label, plots.plot_attention, maps, branch)
    return {branch: picture for branch, picture in pictures.items() if picture is not None}


def _short(value: float | int | None) -> float | int | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")
