# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The playground's results as HTML. Every text from the model is escaped."""

from html import escape

from ...utils.terminal import printable
from .compare import Completion, Speed, Token


LEGEND = (
    "Each text is what the model writes with that many loops. A <mark>marked token</mark> was changed by the last "
    "loop: with one loop fewer, the model would have written something else there. Point at it or tap it to see what."
)
WAITING = '<p class="plt-note">Write a prompt and press <b>Run</b>.</p>'


def loops_text(count: int) -> str:
    return f"{count} loop{'s' * (count > 1)}"


def visible(text: str) -> str:
    """Returns a text in one line, with signs for spaces and line ends. It is not escaped."""
    return printable(text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")) or "(end)"


def token_html(token: Token, num_loops: int) -> str:
    """Returns the token's text, marked and with an explanation if the last loop changed it."""
    text = printable(token.text, line_ends=True)
    if token.instead is None:
        return escape(text)
    if not text.strip():  # otherwise invisible
        text = text.replace("\n", "⏎\n").replace(" ", "␣") or "∎"
    tip = escape(
        f"{loops_text(num_loops - 1)}: {visible(token.instead)}  →  {loops_text(num_loops)}: {visible(token.text)} "
        f"(its probability: {token.probability_before:.0%} → {token.probability:.0%})"
    )
    return f'<mark tabindex="0" data-tip="{tip}" aria-label="{tip}">{escape(text)}</mark>'


def panel(completion: Completion, trained: int) -> str:
    """Returns one completion with its heading."""
    count, total = completion.num_loops, len(completion.tokens)
    badge = '<span class="plt-badge">as trained</span>' if count == trained else ""
    note = f"{total} tokens" if count == 1 else f"loop {count} changed {completion.changed} of {total} tokens"
    body = "\n" + "".join(token_html(token, count) for token in completion.tokens)  # <pre> drops the first line end
    return (
        f'<section class="plt-panel" data-loops="{count}"><h3>{loops_text(count)}{badge}</h3>'
        f'<p class="plt-note">{note}</p><pre>{body}</pre></section>'
    )


def comparison(completions: list[Completion], waiting: list[int], trained: int) -> str:
    """Returns the legend, the finished completions, and an empty panel for each number of loops still to run."""
    panels = [panel(completion, trained) for completion in completions]
    panels += [
        f'<section class="plt-panel"><h3>{loops_text(count)}</h3><p class="plt-note">writing …</p></section>'
        for count in waiting
    ]
    return f'<p class="plt-legend">{LEGEND}</p><div class="plt-panels">{"".join(panels)}</div>'


def speed_table(speeds: list[Speed], device: str) -> str:
    """Returns a bar chart of tokens per second, as a table."""
    fastest = max(max(speed.together, speed.in_sequence) for speed in speeds)

    def bar(value: float, kind: str) -> str:
        return (
            f'<div class="plt-bar plt-{kind}"><i style="width:{70 * value / fastest:.1f}%"></i>'
            f"<span>{value:.3g}</span></div>"
        )

    rows = ""
    for speed in speeds:
        bars = bar(speed.together, "together")
        if speed.num_loops > 1:
            bars += bar(speed.in_sequence, "sequence")
        rows += f'<tr data-loops="{speed.num_loops}"><th>{loops_text(speed.num_loops)}</th><td>{bars}</td></tr>'
    return (
        '<p class="plt-legend">Tokens per second, with all loops of a token <b class="plt-together">together</b> in '
        'one pass over the weights, or one after the other <b class="plt-sequence">in sequence</b>. Both compute '
        f"the same, up to rounding. The runs took turns token by token on {escape(device)}. In a model of a few "
        f'million parameters, most of the time is overhead.</p><table class="plt-speed">{rows}</table>'
    )


def error(message: object) -> str:
    return f'<p class="plt-error" role="alert">{escape(printable(message))}</p>'
