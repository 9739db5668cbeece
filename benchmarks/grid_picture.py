# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Draws how a decode fills the grid of loops and tokens: `docs/grid.svg`, and the moving `docs/grid-animated.svg`.

    python -m iquest_plt.benchmarks.grid_picture

Each lane of the picture is one schedule, a list of passes over the weights. The passes are those of the model, taken
from `plan`. A new lane needs only its list of passes. The pictures contain no script and load nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from ..grid_plt import GridShape, Run, plan
from ..staircase_plt import advance, plan_staircase


DOCS = Path(__file__).resolve().parents[1] / "docs"
NUM_LOOPS = 3
PICTURES = {"grid.svg": False, "grid-animated.svg": True}  # whether it moves; the still leaves out the staircase
TOKENS = ("def", "add", "(", "a", ",", "b")  # the input of each column
CAPTION = (
    "The number in a cell is the pass over the weights that computes it.",
    "The arrows: a loop needs the state of the loop before it, at the token before.",
)

SECONDS_PER_PASS, SECONDS_AT_THE_END = 0.45, 3.0
WIDTH, HEADER = 480, 58
LEFT, CELL_WIDTH, CELL_HEIGHT, GAP = 76, 33, 25, 11  # the grid begins at x = LEFT
WEIGHTS = 376  # x of the stack that stands for the weights

STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: var(--text); }
  svg { --card: #ffffff; --line: #d0d7de; --text: #1f2328; --soft: #59636e; --empty: #eef1f4; }
  .lane0 { --strong: #c2570c; --tint: #ffd8b5; } .lane1 { --strong: #0969da; --tint: #b6dcff; }
  .lane2 { --strong: #1a7f37; --tint: #b4e8c1; }
  @media (prefers-color-scheme: dark) {
    svg { --card: #161b22; --line: #3d444d; --text: #f0f6fc; --soft: #a3adb8; --empty: #2a313b; }
    .lane0 { --strong: #f0883e; --tint: #70401c; } .lane1 { --strong: #4493f8; --tint: #1f4779; }
    .lane2 { --strong: #3fb950; --tint: #1d5a2b; }
  }
  .card { fill: var(--card); stroke: var(--line); } .rule { stroke: var(--line); }
  .arrow { stroke: var(--soft); stroke-width: 1.2; opacity: .8; marker-end: url(#head); } .head { fill: var(--soft); }
  .empty { fill: var(--empty); } .done rect { fill: var(--tint); } .flash rect, .weights { fill: var(--strong); }
  .soft { fill: var(--soft); font-size: 12px; } .title { font-weight: 600; font-size: 15px; }
  .count { font-weight: 700; font-size: 34px; fill: var(--strong); }
  .middle { text-anchor: middle; } .end { text-anchor: end; }
  .flash text { fill: var(--card); font-weight: 700; }
  .flash, .before { opacity: 0; } .weights { opacity: .3; }
"""


class Lane(NamedTuple):
    """One schedule: its name, what a pass computes, and the cells of each pass over the weights."""

    title: str
    note: str
    passes: Sequence[Sequence[Run]]

    @property
    def num_loops(self) -> int:
        return 1 + max(run.loop for runs in self.passes for run in runs)


def decode_passes(num_loops: int, num_tokens: int, together: bool) -> list[list[Run]]:
    """Returns the passes of `num_tokens` decode steps, as the model plans them. Runs count tokens from the first."""
    shape = GridShape(num_layers=1, num_loops=num_loops, window=64)
    steps = (plan(shape, 1, together=together) for _ in range(num_tokens))
    return [
        [run._replace(start=run.start + token, stop=run.stop + token) for run in block.runs]
        for token, blocks in enumerate(steps)
        for block in blocks
    ]


def staircase_passes(num_loops: int, num_tokens: int, num_drafts: int) -> list[list[Run]]:
    """Returns the passes over `num_tokens` tokens if each pass drafts `num_drafts` more, all of them right."""
    passes, leads, known = [], (0,) * num_loops, 0
    while known < num_tokens:
        block = plan_staircase(leads, min((leads[0] or 1) + num_drafts, num_tokens - known))
        passes.append([run._replace(start=run.start + known, stop=run.stop + known) for run in block.runs])
        settled = block.runs[-1].stop
        leads, known = advance(block, settled, keep_ahead=True), known + settled
    return passes


def lanes() -> list[Lane]:
    """Returns the lanes of the picture in the documentation."""
    return [
        Lane(
            "Loops in sequence",
            "each pass computes one loop of a token",
            decode_passes(NUM_LOOPS, len(TOKENS), together=False),
        ),
        Lane(
            "Loops together",
            "each pass computes all loops of a token",
            decode_passes(NUM_LOOPS, len(TOKENS), together=True),
        ),
        Lane(
            "Drafts on a staircase",
            "each pass runs ahead on guessed tokens",
            staircase_passes(NUM_LOOPS, len(TOKENS), num_drafts=3),
        ),
    ]


class Clock(NamedTuple):
    """Times of an animation that repeats, one pass per tick, in percent of its length."""

    num_passes: int

    @property
    def seconds(self) -> float:
        return (self.num_passes + 1) * SECONDS_PER_PASS + SECONDS_AT_THE_END

    def percent(self, ticks: float) -> str:
        """Returns when `ticks` have passed. The first pass begins after one tick."""
        return f"{100 * (ticks + 1) * SECONDS_PER_PASS / self.seconds:.2f}%"

    def css(self, counts: Sequence[int]) -> str:
        """Returns the animations: `appear` and stay, `flash`, `count` (show until the next), `weights` of each lane."""
        # Values jump from one keyframe to the next, except where `linear` fades them.
        rules = [
            f".appear, .flash, .before, .weights {{ animation: {self.seconds:.2f}s step-end infinite; }}",
            ".weights { animation-timing-function: linear; }",
        ]
        for tick in range(self.num_passes):
            start, stop, fade = self.percent(tick), self.percent(tick + 1), self.percent(tick + 1.8)
            rules += [
                f"@keyframes a{tick} {{ 0% {{ opacity: 0 }} {start}, 100% {{ opacity: 1 }} }}",
                f"@keyframes c{tick} {{ 0% {{ opacity: 0 }} {start} {{ opacity: 1 }} {stop}, 100% {{ opacity: 0 }} }}",
                f"@keyframes f{tick} {{ 0% {{ opacity: 0 }} {start} {{ opacity: 1 }}"
                f" {stop} {{ opacity: 1; animation-timing-function: linear }} {fade}, 100% {{ opacity: 0 }} }}",
                *(f".{kind}{tick} {{ animation-name: {kind}{tick} }}" for kind in "acf"),
            ]
        for lane, count in enumerate(counts):
            beats = (
                f"{self.percent(tick - 0.05)} {{ opacity: .3 }} {self.percent(tick)} {{ opacity: 1 }}"
                for tick in range(count)
            )
            end = self.percent(count - 0.05)
            rules.append(
                f"@keyframes w{lane} {{ 0% {{ opacity: .3 }} {' '.join(beats)} {end}, 100% {{ opacity: .3 }} }}"
            )
            rules.append(f".lane{lane} .weights {{ animation-name: w{lane} }}")
        rules.append("@media (prefers-reduced-motion: reduce) { * { animation: none !important; } }")
        return "\n".join(f"  {rule}" for rule in rules)


def column_x(token: int) -> int:
    return LEFT + token * (CELL_WIDTH + GAP)


def row_y(loop: int) -> int:
    return 52 + loop * (CELL_HEIGHT + GAP)


def lane_height(num_loops: int) -> int:
    return row_y(num_loops) + 38


def add(parent: Element, tag: str, kind: str = "", content: object = "", **attributes: float | str) -> Element:
    """Appends an element with a CSS class, a text, and attributes."""
    names = {"class": kind} if kind else {}
    element = SubElement(parent, tag, names | {name: str(value) for name, value in attributes.items()})
    element.text = str(content) or None
    return element


def add_pass(group: Element, runs: Sequence[Run], tick: int, bottom: float, step: float) -> None:
    """Draws the cells of a pass, each with the number of the pass, and its block on the time axis."""
    for run in runs:
        for token in range(run.start, run.stop):
            x, y = column_x(token), row_y(run.loop)
            add(group, "rect", x=x, y=y, width=CELL_WIDTH, height=CELL_HEIGHT, rx=5)
            add(group, "text", "middle", tick + 1, x=x + CELL_WIDTH / 2, y=y + 18)
    add(group, "rect", x=LEFT + tick * step, y=bottom, width=step - 3, height=12, rx=3)


def add_empty_grid(group: Element, num_loops: int, num_tokens: int) -> None:
    """Draws the cells before any pass, and the arrows from each loop to the next loop of the next token."""
    for loop in range(num_loops):
        add(group, "text", "soft end", f"loop {loop}", x=LEFT - 12, y=row_y(loop) + 18)
        for token in range(num_tokens):
            x, y = column_x(token), row_y(loop)
            add(group, "rect", "empty", x=x, y=y, width=CELL_WIDTH, height=CELL_HEIGHT, rx=5)
            if loop and token:
                add(group, "line", "arrow", x1=x - GAP, y1=y - GAP, x2=x, y2=y)


def add_lane(svg: Element, index: int, lane: Lane, tokens: Sequence[str], longest: int, animated: bool) -> None:
    """Draws a lane. `longest` is the largest number of passes of a lane: all lanes share one time axis."""
    num_loops = lane.num_loops
    bottom, step = row_y(num_loops) + 6, (WIDTH - 16 - LEFT) / longest
    middle, top = WEIGHTS + 44, row_y(0)  # of the stack that stands for the weights, and of the count
    group = SubElement(
        svg, "g", {"class": f"lane{index}", "transform": f"translate(0 {HEADER + index * lane_height(num_loops)})"}
    )
    add(group, "line", "rule", x1=16, y1=0, x2=WIDTH - 16, y2=0)
    title = add(group, "text", x=16, y=26)
    add(title, "tspan", "title", lane.title)
    add(title, "tspan", "soft", lane.note, dx=10)
    add_empty_grid(group, num_loops, len(tokens))
    add(group, "text", "soft end", "time", x=LEFT - 12, y=bottom + 11)
    add(group, "text", "soft middle", "weights", x=middle, y=top)
    for layer in range(3):
        add(group, "rect", "weights", x=middle - 36, y=top + 8 + 9 * layer, width=72, height=6, rx=3)
    add(group, "text", "soft middle", "passes", x=middle, y=top + 86)
    last = f"appear a{len(lane.passes) - 1}"
    add(group, "text", f"soft middle {last}", f"for {len(tokens)} tokens", x=middle, y=top + 102)

    seen: set[int] = set()
    for tick, runs in enumerate(lane.passes):
        done = add(group, "g", f"done appear a{tick}")
        add_pass(done, runs, tick, bottom, step)
        columns = {token for run in runs for token in range(run.start, run.stop)} - seen
        seen |= columns
        for token in sorted(columns):
            add(done, "text", "middle", tokens[token], x=column_x(token) + CELL_WIDTH / 2, y=46)
        if animated:
            add_pass(add(group, "g", f"flash f{tick}"), runs, tick, bottom, step)
        is_last = tick == len(lane.passes) - 1
        if animated or is_last:
            when = last if is_last else f"before c{tick}"
            add(group, "text", f"count middle {when}", tick + 1, x=middle, y=top + 70)


def draw(lanes: Sequence[Lane], tokens: Sequence[str], animated: bool) -> str:
    """Returns the picture as SVG. Without animation it is the last frame, as it is for readers who reduce motion."""
    counts = [len(lane.passes) for lane in lanes]
    height = HEADER + sum(lane_height(lane.num_loops) for lane in lanes)
    size = {"viewBox": f"0 0 {WIDTH} {height}", "width": f"{1.4 * WIDTH:g}", "height": f"{1.4 * height:g}"}
    svg = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size})
    passes = "; ".join(
        f"{lane.title}: {count} passes over the weights" for lane, count in zip(lanes, counts, strict=True)
    )
    add(svg, "title", content=f"{len(tokens)} tokens. {passes}.")
    add(svg, "style", content=STYLE + (Clock(max(counts)).css(counts) if animated else ""))
    add(svg, "rect", "card", x=0.5, y=0.5, width=WIDTH - 1, height=height - 1, rx=10)
    head = add(add(svg, "defs"), "marker", id="head", viewBox="0 0 6 6", refX=5, refY=3, markerWidth=5, orient="auto")
    add(head, "path", "head", d="M0 0 6 3 0 6z")
    for line, sentence in enumerate(CAPTION):
        add(svg, "text", "soft", sentence, x=16, y=25 + 18 * line)
    for index, lane in enumerate(lanes):
        add_lane(svg, index, lane, tokens, max(counts), animated)
    indent(svg)
    return tostring(svg, encoding="unicode") + "\n"


def picture(name: str) -> str:
    """Returns one of `PICTURES`."""
    animated = PICTURES[name]
    return draw(lanes() if animated else lanes()[:2], TOKENS, animated)


def main() -> None:
    for name in PICTURES:
        (DOCS / name).write_text(picture(name))


if __name__ == "__main__":
    main()
