"""The step size against the edge of stability, as a card that explains it."""

from __future__ import annotations

import math

from lightning_cx.functional import step_size

AT_EDGE = (0.9, 1.1)
"""Ratios that count as the edge. Of the full-batch runs in docs/step_size.md that had come to it, SGD then read .98 to
1.11, RMSprop 1.01 to 1.10, Adam .90 to .96; with Nesterov momentum one fell back to .78 first."""

OF = {
    "unknown": "distance to the edge of stability",
    "below": "the edge of stability",
    "at the edge": "of stability",
    "beyond": "the edge of stability",
}

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


def verdict(value: float, low: float) -> str:
    """Word for a ratio and the lower end of its interval, if it has one.

    Example:
        >>> [verdict(*ratio) for ratio in ((0.3, 0.2), (0.97, 0.9), (1.4, 1.0), (1.4, 1.3), (1.4, math.nan))]
        ['below', 'at the edge', 'at the edge', 'beyond', 'beyond']
    """
    if math.isnan(value):
        return "unknown"
    if value < AT_EDGE[0]:
        return "below"
    return "beyond" if (value if math.isnan(low) else low) > AT_EDGE[1] else "at the edge"


def card(ratio: tuple[float, float, float], gains: step_size.StepGains | None, details: list[str]) -> str:
    """Explain a ratio in markdown.

    Args:
        ratio: Value, lower and upper end; nan where unknown.
        gains: Of the optimizer, where they are known.
        details: Further lines.

    Example:
        >>> print(card((0.25, 0.2, 0.3), None, []).splitlines()[0])
        **below** the edge of stability: ratio 0.25 (95% 0.2 to 0.3), 1 is the edge
        >>> print(card((0.25, -0.5, 1.0), None, []).splitlines()[0])
        **below** the edge of stability: ratio 0.25 (95% -0.5 to 1), 1 is the edge and not ruled out
    """
    value, low, high = ratio
    word = verdict(value, low)
    number = "" if word == "unknown" else f": {_words(ratio)}, 1 is the edge"
    doubt = " and not ruled out" if word == "below" and high >= 1 else ""
    room = 1 / value if value > 0 else math.inf
    lines = [f"**{word}** {OF[word]}{number}{doubt}", "", MEANING[word].format(room=room, excess=value)]
    if gains is not None:
        details = [str(gains), *details]
    return "\n".join([*lines, "", *(f"    {line}" for line in details)])


def warning(ratio: tuple[float, float, float], step: int) -> str | None:
    """What to tell the user once, or None where there is nothing to tell.

    Args:
        ratio: Value, lower and upper end; nan where unknown.
        step: Of the reading.
    """
    word = verdict(*ratio[:2])
    if word not in ("at the edge", "beyond"):
        return None
    return (
        f"step {step}: training runs {word} {OF[word]}, {_words(ratio)}, 1 is the edge. A larger learning rate will "
        "not settle; if the loss rises, or swings without falling, lower it, let it decay or warm it up."
    )


def _words(ratio: tuple[float, float, float]) -> str:
    value, low, high = ratio
    return f"ratio {value:.3g}" + ("" if math.isnan(low) else f" (95% {low:.3g} to {high:.3g})")
