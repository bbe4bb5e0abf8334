"""What the end of a loss curve looks like, in words."""

from __future__ import annotations

from lightning_cx.functional import convergence

CODES = {"rising": -1, "flat": 0, "power": 1, "exponential with floor": 2, "exponential": 3}
"""Numbers under which the laws are logged: the higher, the better the end in sight."""

MEANING = {
    "rising": "Not an end: the step size is too large, or the probe's loss and the training loss part ways.",
    "flat": "Nothing falls any more at this step size. Lower it, or stop.",
    "power": "Slower and slower: twice the steps take a constant share off. Usual for cross entropy of classes that "
    "can be told apart, and far from a minimum.",
    "exponential with floor": "The fall ends above zero: what is left is noise in the labels, what the model cannot "
    "express, or noise of the steps at this step size.",
    "exponential": "The model is in the basin of a minimum, and the pace will hold.",
}

AGREE = 1.5
"""Factor up to which two rates are called the same: faster directions fade out slowly."""


def card(law: convergence.LossTail | None, local: convergence.LocalModel | None, predicted: float, why: str) -> str:
    """Put the end of a loss curve in words, in markdown.

    Args:
        law: Of the losses so far, if there is one.
        local: What the Jacobian says, if it was looked at.
        predicted: Rate per step that it predicts, or nan.
        why: Why there is none.

    Example:
        >>> import numpy as np
        >>> from lightning_cx.functional import loss_tail
        >>> steps = np.arange(0, 2000, 20)
        >>> print(card(loss_tail(steps, np.exp(-0.0012 * steps)), None, 0.0013, ""))
        **converging at a linear rate of .0012 per step; the loss would halve every 580 steps (95%: .0012 to .0012)**
        <BLANKLINE>
        The model is in the basin of a minimum, and the pace will hold.
        <BLANKLINE>
        The Jacobian predicts .0013 per step: what is left is the slowest direction.
    """
    lines = [f"**{'waiting for readings of the loss' if law is None else law}**"]
    if law is not None and law.law in MEANING:
        lines.append(MEANING[law.law])
    if local is not None:
        lines.append(f"{local}.")
    if predicted == predicted:
        lines.append(f"The Jacobian predicts {_rate(predicted)}: {_comparison(law, predicted)}.")
    else:
        lines.append(f"No rate is predicted: {why}.")
    return "\n\n".join(lines)


def _rate(predicted: float) -> str:
    if predicted > 0:
        return f"{convergence.short(predicted)} per step"
    return f"a loss that grows by {convergence.short(-predicted)} per step"


def _comparison(law: convergence.LossTail | None, predicted: float) -> str:
    if predicted <= 0:
        return "the step size is over the edge of stability for its largest eigenvalue"
    if law is None or law.law not in ("exponential", "exponential with floor"):
        return "the pace to be expected in the end"
    ratio = law.rate / predicted
    if ratio > AGREE:
        return "faster directions are still under way, and the pace will fall to that"
    if ratio < 1 / AGREE:
        return "the loss falls more slowly, so the model is not in the basin yet, or the learning rate has changed"
    return "what is left is the slowest direction"
