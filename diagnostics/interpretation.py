# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Describes a result in sentences. A sentence says "rises" or "falls" only where the intervals support it.
"""

import re

from .lens import LoopLens
from .loop_names import SHARED_KEYS, loop_name, loops_text
from .measurements import Curve, Measurements


FEW_DOCUMENTS = 10
SETTLED = 0.1  # states are "at rest" if the gap is below this share of the first step


def number(value: float | None) -> str:
    """Formats a number with three significant digits, for people."""
    if value is None:
        return "–"
    if abs(value) >= 99.95:
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.3g}" if abs(value) >= 0.0001 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
    return text.replace("-", "−")


def parts(curve: Curve, loop: int) -> tuple[str, str]:
    """Formats mean and interval of one loop; the interval is "" if there is none."""
    low, high = curve.low[loop], curve.high[loop]
    return number(curve.mean[loop]), "" if low is None or high is None else f"{number(low)} to {number(high)}"


def estimate(curve: Curve, loop: int) -> str:
    """Formats mean and interval of one loop as one text."""
    mean, between = parts(curve, loop)
    return f"{mean} ({between})" if between else mean


def documents_text(count: int) -> str:
    return "1 document" if count == 1 else f"{count:,} documents"


def percent(share: float) -> str:
    text = f"{100 * share:.0f} %" if 0.095 <= share <= 0.905 or share in (0, 1) else f"{100 * share:.1f} %"
    return text if share in (0, 1) else text.replace("100.0 %", "over 99.9 %").replace("0.0 %", "under 0.1 %", 1)


def direction(curve: Curve, loop: int) -> int | None:
    """
    Returns 1 if a curve of changes is above zero in a loop, −1 if below, 0 if the interval contains zero, and None if
    there is no interval.
    """
    low, high = curve.low[loop], curve.high[loop]
    if low is None or high is None:
        return None
    return 1 if low > 0 else -1 if high < 0 else 0


def known_loops(curve: Curve) -> list[int]:
    """Returns the loops in which the curve has a value."""
    return [loop for loop, value in enumerate(curve.mean) if value is not None]


def changes(result: Measurements, name: str, what: str, unit: str) -> list[str]:
    """Returns a sentence per loop about `name`, a curve of changes."""
    curve, sentences = result.metrics[name], []
    for loop in known_loops(curve):
        value, clear, this = curve.mean[loop], direction(curve, loop), loop_name(loop).capitalize()
        verb = "lowers" if value < 0 else "raises"
        if value == 0 and not curve.low[loop] and not curve.high[loop]:
            note = " There is one document, so no interval." if clear is None else ""
            sentences.append(f"{this} does not change {what}.{note}")
            continue
        if clear == 0:
            sentences.append(
                f"{this} changes {what} by {estimate(curve, loop)}{unit}. The interval contains zero, so this may "
                "be chance."
            )
            continue
        size = Curve(*([None if v is None else abs(v) for v in values] for values in vars(curve).values()))
        if value < 0:
            size.low, size.high = size.high, size.low
        note = " There is one document, so no interval: this may be chance." if clear is None else ""
        sentences.append(f"{this} {verb} {what} by {estimate(size, loop)}{unit}.{note}")
    return sentences


def course(curve: Curve, what: str, unit: str) -> str:
    """Describes how a curve changes from its first loop to its last; "" if it has no value."""
    loops = known_loops(curve)
    if not loops:
        return ""
    first, last = loops[0], loops[-1]
    if first == last:
        return f"{what} is {estimate(curve, first)}{unit} in {loop_name(first)}."
    ends = f"from {estimate(curve, first)}{unit} in {loop_name(first)} to {estimate(curve, last)} in {loop_name(last)}"
    ends += "".join(f", passing {estimate(curve, loop)} in {loop_name(loop)}" for loop in _detour(curve, loops))
    verb = "falls" if curve.mean[last] < curve.mean[first] else "rises"
    bounds = [curve.low[first], curve.high[first], curve.low[last], curve.high[last]]
    if curve.mean[first] == curve.mean[last]:
        return f"{what} is the same in the first and the last loop, {estimate(curve, first)}{unit}."
    if None in bounds:
        return f"{what} {verb} {ends} (one document, so no intervals)."
    if max(bounds[0], bounds[2]) <= min(bounds[1], bounds[3]):
        return f"{what} goes {ends}; the intervals overlap, so there may be no change."
    return f"{what} {verb} {ends}; the intervals do not overlap."


def _detour(curve: Curve, loops: list[int]) -> list[int]:
    """Returns the inner loops with the highest and the lowest value, if clearly above or below both ends."""
    if len(loops) < 3 or curve.low[loops[0]] is None:
        return []
    ends = (loops[0], loops[-1])
    least, most = (choose(loops[1:-1], key=lambda loop: curve.mean[loop]) for choose in (min, max))
    found = {least} if curve.high[least] < min(curve.low[end] for end in ends) else set()
    found |= {most} if curve.low[most] > max(curve.high[end] for end in ends) else set()
    return sorted(found)


def recommendation(result: Measurements) -> list[str]:
    """Explains the recommendation: its reason, how certain it is, and what remains open."""
    advice, sentences = result.recommendation, [re.sub(r"-(?=\d)", "−", result.reason)]
    if advice.loops != advice.loops_by_loss:
        sentences.append(
            f"The two rules disagree: {loops_text(advice.loops)} by effective rank and loss together, "
            f"{loops_text(advice.loops_by_loss)} by the loss alone. The loss measures the predictions themselves. The "
            "effective rank only indicates whether the states still become more varied. If you care about the quality "
            "of the text, follow the loss."
        )
    if advice.loops_by_loss == advice.limit > 1:
        sentences.append(
            f"The loss still falls at {loops_text(advice.limit)}, the largest number measured: measure more loops."
        )
    if advice.limit == 1:
        return sentences
    own = result.model["num_loops"]
    if advice.limit > own:
        sentences.append(
            f"The model is configured for {loops_text(own)}. Beyond that, the picture shows how it copes with extra "
            "loops, not what a model trained with them would reach."
        )
    count = len(result.documents)
    if advice.share is None:
        sentences.append("One document was measured, so the certainty is unknown: measure several.")
    elif count < FEW_DOCUMENTS:
        sentences.append(f"Only {count} documents were measured: intervals and shares are rough.")
    return sentences


def gain_cost(result: Measurements) -> list[str]:
    """Describes the gain–cost picture."""
    metrics = result.metrics
    if not known_loops(metrics["refinement"]):
        return ["One loop was measured, so there is no previous loop to compare with."]
    shares = metrics["refinement_share"]
    best = max(known_loops(shares), key=lambda loop: shares.mean[loop])
    sentences = [
        course(metrics["refinement"], "The refinement Δp", " nats"),
        f"Among the loops after {loop_name(0)}, {loop_name(best)} changes the prediction most for "
        f"{percent(shares.mean[best])} of the tokens.",
        course(metrics["offset_cost"], "The offset cost Ω", ""),
    ]
    if not result.model["cross_loop_shift"]:
        sentences.append("This model has no shift, so it does not pay Ω; it is shown to compare with models that do.")
    return sentences


def loss(result: Measurements) -> list[str]:
    return changes(result, "loss_change", "the held-out loss", " nats per token")


def rank(result: Measurements) -> list[str]:
    return changes(result, "effective_rank_change", "the effective rank", "")


def motion(result: Measurements) -> list[str]:
    """Describes whether the states come to rest, and whether the loops keep their direction."""
    metrics = result.metrics
    steps, gap, angle = metrics["step_size"], metrics["fixed_point_gap"], metrics["angular_change"]
    share = gap.mean[-1] / steps.mean[0] if steps.mean[0] else 0.0
    rest = "they have almost come to rest" if share < SETTLED else "they are still moving"
    sentences = [
        course(steps, "The step size", ""),
        f"One loop beyond the {result.max_loops} measured would move the states by "
        f"{estimate(gap, result.max_loops - 1)}, {percent(share) if share <= 1 else f'{100 * share:,.0f} %'} of the "
        f"first step: {rest}.",
    ]
    for loop in known_loops(angle):
        turn = direction(angle, loop)
        sign = (angle.mean[loop] > 0) - (angle.mean[loop] < 0) if turn is None else turn
        meaning = {
            1: "it continues in the direction of the previous loop",
            0: "the interval does not show whether it continues or turns back",
            -1: "it partly undoes the previous loop",
        }[sign]
        sentences.append(f"The cosine of {loop_name(loop)} is {estimate(angle, loop)}: {meaning}.")
    return [sentence for sentence in sentences if sentence]


def attention(result: Measurements) -> list[str]:
    """Describes whether later loops attend to other tokens."""
    metrics = result.metrics
    both = " (both branches together)" if result.model["loop_attention"] == "gated" else ""
    sentences = [
        course(metrics["attention_change_mixture"], f"The change of attention{both}", " nats"),
        course(metrics["attention_entropy_mixture"], "The entropy of attention", " nats"),
    ]
    if result.model["loop_attention"] != "gated":
        kind = {"shared": f"only {SHARED_KEYS}", "own": "only each loop's own keys"}[result.model["loop_attention"]]
        sentences.append(f"This model's loops read {kind}: there is one branch and no gate.")
    return [sentence for sentence in sentences if sentence]


def gates(result: Measurements) -> list[str]:
    """Describes the gates; [] for a model without gates."""
    curve, histogram = result.metrics["gate"], result.gate_histogram
    if histogram is None:
        return []
    loop = known_loops(curve)[0]
    layers = result.layers["gate"][loop]
    high, low = (choose(range(len(layers)), key=layers.__getitem__) for choose in (max, min))
    counts = [sum(bins) for bins in zip(*histogram["counts"][loop], strict=True)]
    ends = [
        count
        for count, left, right in zip(counts, histogram["edges"], histogram["edges"][1:], strict=False)
        if right <= 0.1 + 1e-9 or left >= 0.9 - 1e-9
    ]
    share = sum(ends) / sum(counts)
    sentences = [
        f"In {loop_name(loop)}, the gates give {estimate(curve, loop)} of the weight to {SHARED_KEYS} and the rest to "
        "the window."
    ]
    if high != low:
        sentences.append(
            f"Layer {high} reads {SHARED_KEYS} most ({number(layers[high])}), layer {low} least ({number(layers[low])})"
            "; layers are counted from 0."
        )
    habit = "most gates choose one of the two branches" if share > 0.5 else "most gates mix the two branches"
    sentences.append(f"{percent(share)} of the gates are within 0.1 of 0 or 1: {habit}.")
    return sentences


def lens(found: LoopLens) -> list[str]:
    """Describes what each loop does to the tokens of one text."""
    sentences = []
    for loop in range(1, found.max_loops):
        changed = [token.loss[loop] - token.loss[loop - 1] for token in found.tokens]
        falls = sorted((-change for change in changed if change < 0), reverse=True)
        rises = sum(change > 0 for change in changed)
        total = len(changed)
        sentence = (
            f"{loop_name(loop).capitalize()} lowers the loss of {percent(len(falls) / total)} of them and raises it "
            f"for {percent(rises / total)}; the mean change is {number(sum(changed) / total)} nats"
        )
        if falls:
            tenth = falls[: max(1, round(total / 10))]
            sentence += f", and the 10 % that improve most make up {percent(sum(tenth) / sum(falls))} of the decrease"
        sentences.append(sentence + ".")
    return sentences
