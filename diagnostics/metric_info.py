# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Descriptions of the metrics, for readers who do not know the papers."""

from dataclasses import dataclass

from .loop_names import SHARED_KEYS, loop_name


@dataclass(frozen=True)
class Metric:
    """
    Attributes:
        title: title on an axis.
        unit: "" for a pure number, "states" for the arbitrary scale of the model's states.
        meaning: description in one or two sentences.
        first_loop: index of the first loop that has a value, from 0.
    """

    title: str
    unit: str
    meaning: str
    first_loop: int = 0


_BRANCHES = {
    "global": ("global branch", f"the branch on {SHARED_KEYS}"),
    "window": ("window branch", f"the branch on the loop's own keys, from {loop_name(1)} on"),
    "mixture": ("mixture", "both branches together, weighted by the gate"),
}
BOTH_BRANCHES = f", in {_BRANCHES['mixture'][1]}"  # part of a meaning; removed for models with one branch

STATE_METRICS = {
    "step_size": Metric(
        "Step size δ",
        "states",
        f"How far the loop moves a token's state. {loop_name(0).capitalize()} moves it from the embedding.",
    ),
    "angular_change": Metric(
        "Angular change cos θ",
        "",
        "Cosine between a loop's step and the previous step. Near 1 the loops keep their direction, below 0 they turn "
        "back.",
        1,
    ),
    "aligned_step": Metric(
        "Aligned step",
        "states",
        "How far the loop moves away from the state it received: the step without the effect of the shift.",
        1,
    ),
    "effective_rank": Metric(
        "Effective rank",
        "",
        "The number of directions in which the states of a text's tokens spread. It grows with the length of the text, "
        "so compare it between loops, not between lengths.",
    ),
    "fixed_point_gap": Metric(
        "Fixed-point gap",
        "states",
        "How far one more loop, including the shift, would move a token's state: the step size of the next loop.",
    ),
    "offset_cost": Metric(
        "Offset cost Ω",
        "states",
        "Distance between the states of neighbouring tokens that are fed back: the error of giving a loop the previous "
        "token's state instead of the token's own.",
        1,
    ),
    "offset_cost_per_sqrt_d": Metric("Offset cost Ω / √d", "states", "The offset cost divided by √hidden_size.", 1),
}
ATTENTION_METRICS = {
    f"{name}_{branch}": Metric(f"{title}, {short}", unit, meaning.format(long), first + (branch == "window") * late)
    for name, title, unit, meaning, first, late in (
        (
            "attention_change",
            "Attention change",
            "nats",
            "KL divergence of a query's attention from the previous loop's, in {}. Near 0 the loop attends to the same "
            "tokens as the previous loop.",
            1,
            1,
        ),
        (
            "attention_entropy",
            "Attention entropy",
            "nats",
            "How widely a query's attention spreads (exp of the entropy is the effective number of keys), in {}.",
            0,
            1,
        ),
        (
            "head_similarity",
            "Head similarity",
            "",
            "Mean cosine between two heads' attention, in {}. It is 1 where all heads attend to the same keys.",
            0,
            1,
        ),
        (
            "head_rank",
            "Effective rank of heads",
            "",
            "The number of different attention patterns among the heads of a layer, in {}.",
            0,
            1,
        ),
    )
    for branch, (short, long) in _BRANCHES.items()
}
GATE_METRICS = {
    "gate": Metric("Gate", "", f"Mean weight of the branch on {SHARED_KEYS}. The window gets the rest.", 1),
}
LENS_METRICS = {
    "loss": Metric("Loss", "nats/token", "Held-out loss if the model stopped after this loop."),
    "bits_per_byte": Metric("Bits per byte", "bits/byte", "The loss in bits, divided by the bytes of the text."),
    "true_rank": Metric("Rank of the true token", "", "Its mean rank among the predictions; 1 is the likeliest."),
    "top1_accuracy": Metric("Top-1 accuracy", "", "Share of tokens where the true token is the likeliest."),
    "entropy": Metric("Prediction entropy", "nats", "How undecided the prediction is."),
    "agreement": Metric("Agreement", "", "Share of tokens where the likeliest token equals the last loop's."),
    "refinement": Metric(
        "Refinement Δp",
        "nats",
        "How much the loop changed the prediction: KL divergence from the previous loop's prediction.",
        1,
    ),
    "refinement_share": Metric(
        "Share of tokens refined most", "", "Share of tokens whose prediction this loop changed most (r*).", 1
    ),
}
CHANGE_METRICS = {
    "loss_change": Metric(
        "Change of the loss", "nats/token", "Loss minus the previous loop's loss, on the same documents.", 1
    ),
    "effective_rank_change": Metric(
        "Change of the effective rank", "", "Effective rank minus the previous loop's, on the same documents.", 1
    ),
}
METRICS = STATE_METRICS | ATTENTION_METRICS | GATE_METRICS | LENS_METRICS | CHANGE_METRICS
LAYER_METRICS = tuple(ATTENTION_METRICS | GATE_METRICS)
