# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Draws the measurements with matplotlib, and turns figures into SVG in a page's colours. Needs the extra `diagnostics`.

Figures are independent objects (no `pyplot`, no global state): show them in a notebook, or call `figure.savefig(path)`.
"""

import io
import math
import re
from typing import Any

import numpy as np


try:
    import matplotlib
except ImportError as error:
    raise ImportError(
        "matplotlib is not installed: pip install '.[diagnostics]' in a checkout of iquest-plt"
    ) from error

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .loop_names import SHARED_KEYS, loop_name, loop_number
from .maps import AttentionMaps
from .measurements import Curve, Measurements
from .metric_info import METRICS
from .sweep import Sweep


# Okabe and Ito's palette for colour-blind readers. In SVG, INK becomes the page's text colour, others CSS variables.
INK, FAINT = "#22272e", "#8b949e"
GAIN, COST, THIRD = "#0072b2", "#d55e00", "#009e73"
VARIABLES = {FAINT: "faint", GAIN: "gain", COST: "cost", THIRD: "third"}
RC: Any = {  # matplotlib settings
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",  # keeps text as text: smaller files, in the page's font
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
}
BRANCHES = {"mixture": (INK, "o-"), "global": (GAIN, "s--"), "window": (COST, "^:")}
NO_COMMON_UNIT = "The two axes have no common unit: where the lines cross means nothing.\n"
MAX_MAP_LAYERS = 4

# Charts: title -> metrics drawn together. Every metric is in one chart, except those that `plot_rule` draws.
CHARTS = {
    METRICS[name].title: [name]
    for name in ("loss", "bits_per_byte", "true_rank", "top1_accuracy", "entropy", "agreement", "refinement")
}
CHARTS |= {
    METRICS[name].title: [name]
    for name in ("refinement_share", "step_size", "aligned_step", "angular_change", "fixed_point_gap", "effective_rank")
}
CHARTS |= {METRICS[name].title: [name] for name in ("offset_cost", "offset_cost_per_sqrt_d", "gate")}
CHARTS |= {
    METRICS[f"{name}_global"].title.split(",")[0]: [f"{name}_{branch}" for branch in BRANCHES]
    for name in ("attention_change", "attention_entropy", "head_similarity", "head_rank")
}


def plot(result: Measurements) -> Figure:
    """Draws gain and cost of each loop: refinement Δp on the left axis, offset cost Ω on the right, with intervals."""
    with matplotlib.rc_context(RC):
        figure, (axes,) = _figure(6.4, 3.8)
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        for side, name, color, style in ((axes, "refinement", GAIN, "o-"), (right, "offset_cost", COST, "s--")):
            metric = METRICS[name]
            _draw_curve(side, result.metrics[name], color, style, shift=0.03 if side is right else -0.03)
            side.set_ylabel(f"{metric.title} ({metric.unit})", color=color)
            side.tick_params(axis="y", colors=color)
            side.set_ylim(0, _top(result.metrics[name]))
        _loop_axis(axes, result.max_loops)
        axes.set_title("What a loop changes in the predictions, and what the shift costs it")
        figure.supxlabel(_below(result, NO_COMMON_UNIT), fontsize=8, color=FAINT)
    return figure


def plot_rule(result: Measurements) -> Figure:
    """Draws the basis of the recommendation: the change of loss and effective rank in each loop."""
    with matplotlib.rc_context(RC):
        figure, both = _figure(6.4, 3.4, columns=2)
        for axes, name, better in zip(both, ("loss_change", "effective_rank_change"), ("below", "above"), strict=True):
            metric = METRICS[name]
            _draw_curve(axes, result.metrics[name], GAIN, "o-")
            axes.axhline(0, color=FAINT, linewidth=0.8)
            axes.set_title(f"{metric.title}\n({f'{metric.unit}; ' if metric.unit else ''}worth it {better} 0)")
            _loop_axis(axes, result.max_loops)
        figure.supxlabel(_below(result), fontsize=8, color=FAINT)
    return figure


def plot_metrics(result: Measurements) -> Figure:
    """Draws one chart for each metric that the model has."""
    names = [title for title in CHARTS if _chart_metrics(result, title)]
    with matplotlib.rc_context(RC):
        rows = -(-len(names) // 4)
        figure, grid = _figure(13, 2.6 * rows, columns=4, rows=rows)
        for axes, title in zip(grid, names, strict=False):
            _draw_chart(axes, result, title)
        for axes in grid[len(names) :]:
            axes.set_axis_off()
        figure.supxlabel(_below(result), fontsize=8, color=FAINT)
    return figure


def plot_chart(result: Measurements, title: str) -> Figure | None:
    """Draws one of `CHARTS`; None if the model lacks the metric."""
    if not _chart_metrics(result, title):
        return None
    with matplotlib.rc_context(RC):
        figure, (axes,) = _figure(3.6, 2.5)
        _draw_chart(axes, result, title)
    return figure


def plot_gates(result: Measurements) -> Figure | None:
    """Draws the mean gate of each layer and loop, and a histogram per loop; None for a model without gates."""
    histogram = result.gate_histogram
    if histogram is None:
        return None
    loops = [loop for loop, layers in enumerate(result.layers["gate"]) if layers is not None]
    means = np.array([result.layers["gate"][loop] for loop in loops], dtype=float).T
    with matplotlib.rc_context(RC):
        figure, (left, right) = _figure(6.8, max(3.0, 1.2 + 0.22 * len(means)), columns=2)
        mesh = left.pcolormesh(means, cmap="cividis", vmin=0, vmax=1, edgecolor="none")
        left.set(xlabel="loop", ylabel="layer (from 0)", title="Mean gate")
        left.set_xticks(np.arange(len(loops)) + 0.5, map(loop_number, loops))
        left.set_yticks(np.arange(len(means)) + 0.5, range(len(means)))
        left.invert_yaxis()
        if means.size <= 80:
            for (layer, column), value in np.ndenumerate(means):
                color = "#000000" if value > 0.5 else "#ffffff"
                left.text(column + 0.5, layer + 0.5, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
        figure.colorbar(mesh, ax=left, label=f"0: window … 1: {SHARED_KEYS}")
        for loop, color, style in zip(loops, (GAIN, COST, THIRD, INK), ("-", "--", "-.", ":"), strict=False):
            counts = np.sum(histogram["counts"][loop], axis=0)
            right.stairs(counts / counts.sum(), histogram["edges"], color=color, linestyle=style, label=loop_name(loop))
        right.set(xlabel="gate", ylabel="share of gates", title="All layers and heads", xlim=(0, 1), ylim=(0, None))
        right.legend(fontsize=8)
    return figure


def plot_attention(maps: AttentionMaps, branch: str = "mixture") -> Figure | None:
    """
    Draws attention maps of a branch ("mixture", "global" or "window"): a row for each loop that has it, a column for
    each of up to four layers. None if no loop has it.

    Raises:
        ValueError: if `branch` is unknown.
    """
    if branch not in BRANCHES:
        raise ValueError(f"`branch` must be one of the branches {', '.join(BRANCHES)}, got {branch!r}.")
    by_loop = maps.global_ if branch == "global" else getattr(maps, branch)
    loops = [loop for loop, layers in enumerate(by_loop) if layers[0] is not None]
    if not loops:
        return None
    count = min(MAX_MAP_LAYERS, len(maps.layers))
    columns = np.linspace(0, len(maps.layers) - 1, count).round().astype(int)
    with matplotlib.rc_context(RC):
        figure, grid = _figure(1.9 * count + 0.9, 1.8 * len(loops) + 0.5, columns=count, rows=len(loops))
        for axes, (loop, column) in zip(grid, ((loop, c) for loop in loops for c in columns), strict=True):
            weights = by_loop[loop][column]
            future = np.triu(np.ones_like(weights, dtype=bool), k=1)
            shown = np.ma.array(np.sqrt(weights), mask=future)  # the root makes medium weights visible
            image = axes.imshow(shown, cmap="cividis", vmin=0, vmax=1, interpolation="none")
            axes.set(xticks=[], yticks=[])
            if loop == loops[0]:
                axes.set_title(f"layer {maps.layers[column]}", fontsize=9)
            if column == columns[0]:
                axes.set_ylabel(loop_name(loop), fontsize=9)
        bar = figure.colorbar(image, ax=grid.tolist(), label="attention weight", shrink=0.6, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0", "0.25", "1"])
    return figure


def plot_sweep(found: Sweep) -> Figure:
    """Draws loss, time, memory, gain and cost of each row of a sweep."""
    x = np.arange(len(found.rows))
    names = [f"R = {row.loops}" + (f"\n{row.model[-18:]}" if len(found.results) > 1 else "") for row in found.rows]
    with matplotlib.rc_context(RC):
        figure, (loss, time, memory, gain) = _figure(9.5, 6.4, columns=2, rows=2)
        bits = [row.bits_per_byte for row in found.rows]
        curve = Curve(*([getattr(value, part) for value in bits] for part in ("mean", "low", "high")))
        draw_interval(loss, x, curve, GAIN, "o-")
        loss.set_title("Bits per byte, lower is better")
        best = found.rows.index(found.best)
        loss.annotate("lowest", (x[best], curve.mean[best]), (6, 6), textcoords="offset points", color=GAIN)
        _plot_up(time, [row.time_ratio for row in found.rows], COST)
        time.set_title(f"Time per token over {found.base}", fontsize=10 if len(found.results) > 1 else None)
        _plot_up(memory, [row.kv_bytes_per_sequence / 1e6 for row in found.rows], COST)
        memory.set_title(f"Cache of {found.length:,} tokens (MB)")
        right = gain.twinx()
        right.spines["right"].set_visible(True)
        for side, metric, color, style in ((gain, "refinement", GAIN, "o-"), (right, "offset_cost", COST, "s--")):
            _plot_up(side, [row.diagnostics[metric] for row in found.rows], color, style)
            side.set_ylabel(f"{METRICS[metric].title} ({METRICS[metric].unit})", color=color)
            side.tick_params(axis="y", colors=color)
        gain.set_title("Gain and cost: no common unit")
        for axes in (loss, time, memory, gain):
            axes.set_xticks(x, names, fontsize=8 if len(found.results) > 1 else 10)
            axes.set_xlim(-0.4, len(x) - 0.6)
        figure.supxlabel(_below(found.results[0]), fontsize=8, color=FAINT)
    return figure


def to_svg(figure: Figure, name: str, label: str) -> str:
    """
    Returns an `<svg>` element for a page. Equal figures give equal text.

    Colours become those of the page (INK is `currentColor`, others `var(--gain)` …), ids begin with `name`, and screen
    readers read `label`.
    """
    target = io.StringIO()
    salt: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(salt):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'(<image\b[^>]*?)\s+id="[^"]*"', r"\1", svg)  # unused, and equal for equal images
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans', ", "")
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    label = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}" role="img" '
    return re.sub(r"<svg[^>]*>", lambda _: f'{opening}aria-label="{label}">', svg, count=1).strip()


def draw_interval(axes: Axes, x: np.ndarray, curve: Curve, color: str, style: str, label: str | None = None) -> None:
    """Draws a curve at `x`, with error bars where it has an interval."""
    mean, low, high = (np.array(values, dtype=float) for values in (curve.mean, curve.low, curve.high))
    known = ~np.isnan(mean)
    x, mean, low, high = np.asarray(x)[known], mean[known], low[known], high[known]
    # A percentile interval may miss the mean itself if the distribution is skewed.
    bars = np.nan_to_num(np.clip([mean - low, high - mean], 0, None))
    axes.errorbar(x, mean, yerr=bars, fmt=style, color=color, capsize=3, markersize=5, linewidth=1.5, label=label)


def _plot_up(axes: Axes, values: list[float | None], color: str, style: str = "o-") -> None:
    """Draws values at 0 … n − 1 on an axis that begins at zero."""
    heights = np.array(values, dtype=float)
    axes.plot(np.arange(len(values)), heights, style, color=color)
    axes.set_ylim(0, 1.1 * np.nanmax(heights, initial=0) or None)


def _draw_curve(axes: Axes, curve: Curve, color: str, style: str, label: str | None = None, shift: float = 0) -> None:
    draw_interval(axes, np.arange(len(curve.mean)) + loop_number(0) + shift, curve, color, style, label)


def _chart_metrics(result: Measurements, title: str) -> list[str]:
    """Returns the chart's metrics that have a value."""
    return [name for name in CHARTS[title] if name in result.metrics and _defined(result.metrics[name])]


def _draw_chart(axes: Axes, result: Measurements, title: str) -> None:
    names = _chart_metrics(result, title)
    for index, name in enumerate(names):
        branch = name.rsplit("_", 1)[-1]
        color, style = BRANCHES.get(branch, (GAIN, "o-"))
        label = branch if branch in BRANCHES else None
        _draw_curve(axes, result.metrics[name], color, style, label, shift=0.07 * (index - (len(names) - 1) / 2))
    unit = METRICS[names[0]].unit
    axes.set_title(f"{title} ({unit})" if unit else title)
    if names[0].rsplit("_", 1)[-1] in BRANCHES:
        axes.legend(fontsize=8)
    _loop_axis(axes, result.max_loops)


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, np.ndarray]:
    """Returns a figure and its axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).flatten()


def _loop_axis(axes: Axes, loops: int) -> None:
    axes.set(xlabel="loop r", xlim=(loop_number(0) - 0.4, loop_number(loops - 1) + 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def _defined(curve: Curve) -> bool:
    return any(value is not None for value in curve.mean)


def _top(curve: Curve) -> float | None:
    """Returns a limit a little above the highest bar, for a curve without negative values."""
    values = [value for value in (*curve.mean, *curve.high) if value is not None]
    return 1.1 * max(values) or None if values and math.isfinite(max(values)) else None


def _below(result: Measurements, text: str = "") -> str:
    if len(result.documents) == 1:
        return f"{text} One document: no intervals.".strip()
    share = f"{100 * result.settings['confidence']:g} %"
    return f"{text} Bars: {share} bootstrap intervals over {len(result.documents)} documents.".strip()
