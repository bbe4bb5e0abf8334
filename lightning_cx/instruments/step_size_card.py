"""The step size against the edge of stability, as a card that explains it."""

from __future__ import annotations

import math

from lightning_cx.functional import StepGains

AT_EDGE_FROM = 0.9
"""Ratio from which an interval that reaches 1 counts as the edge: full-batch runs hover within a tenth of 1 there
(Cohen et al. 2021, figure 1), and a wide interval around a small ratio is no alarm."""

MEANING = {
    "unknown": "The reason is in the log.",
    "below": "Steps settle in every direction. As far as the curvature goes, the learning rate could be {room:.3g} "
    "times as large; the noise of small batches may ask for less.",
    "at the edge": "The step size is as large as the steepest direction lets it be. Training often goes on well here, "
    "with a loss that swings while it falls: the swings keep the curvature from growing further. A larger learning "
    "rate brings spikes or divergence. Where the loss no longer falls, lower it or let it decay.",
    "beyond": "Along the steepest direction each step overshoots by more than the last. For a few steps that is how a "
    "run finds flatter ground; if the loss rises and stays up, divide the learning rate by {excess:.3g} or more, warm "
    "it up, or clip gradients.",
}


def verdict(value: float, low: float, high: float) -> str:
    """Word for a ratio and its 95% interval; one without an interval counts for itself."""
    low, high = (value if math.isnan(end) else end for end in (low, high))
    if math.isnan(value):
        return "unknown"
    if low > 1:
        return "beyond"
    return "at the edge" if high >= 1 and value >= AT_EDGE_FROM else "below"


def card(ratio: tuple[float, float, float], gains: StepGains | None, details: list[str]) -> str:
    """Explain a ratio in markdown.

    Args:
        ratio: Value, lower and upper end; nan where unknown.
        gains: Of the optimizer, where they are known.
        details: Further lines.

    Example:
        >>> print(card((0.25, 0.2, 0.3), None, []).splitlines()[0])
        **below** the edge of stability: ratio 0.25 (95% 0.2 to 0.3)
    """
    word = verdict(*ratio)
    value, low, high = ratio
    interval = "" if math.isnan(low) else f" (95% {low:.3g} to {high:.3g})"
    heading = {"below": "**below** the edge of stability", "beyond": "**beyond** the edge of stability"}
    heading |= {
        "at the edge": "**at the edge** of stability",
        "unknown": "**unknown** distance to the edge of stability",
    }
    number = "" if math.isnan(value) else f": ratio {value:.3g}{interval}"
    room = 1 / value if value > 0 else math.inf
    lines = [heading[word] + number, "", MEANING[word].format(room=room, excess=value)]
    if gains is not None:
        details = [str(gains), *details]
    return "\n".join([*lines, "", *(f"    {line}" for line in details)])


def warning(ratio: tuple[float, float, float], step: int) -> str | None:
    """What to tell the user once, or None where there is nothing to tell."""
    if verdict(*ratio) not in ("at the edge", "beyond"):
        return None
    value, low, high = ratio
    interval = "" if math.isnan(low) else f" (95% {low:.3g} to {high:.3g})"
    return (
        f"step {step}: training runs at the edge of stability, ratio {value:.3g}{interval} of 1. A larger learning "
        "rate will not settle; if the loss rises or swings without falling, lower it, let it decay or warm it up."
    )
