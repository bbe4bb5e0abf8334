"""The picture of a `ModeScatter`: are the strong singular functions of the gradients the simple ones?"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_cx.instruments.base import ModeScatter
from lightning_cx.tensorboard.sheet import LETTERS, NOTE, PALE, open_sheet, say_nothing_to_show

NO_ORDER = 0.5
"""Where the median complexity of white noise lies."""

DECADES = 6
"""Singular values further than this below the largest are rounding of a Gram matrix, whose eigenvalues square them."""

_BLUE, _ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito: told apart by colour-blind readers


def draw_mode_scatter(picture: ModeScatter) -> Figure:
    """Draw strength against complexity, with the lines that say what noise would give and where the whole lies.

    Modes without energy, with no median, or too weak to be more than rounding are left out; a note says how many.

    Args:
        picture: The modes.

    Returns:
        The figure.
    """
    figure, axes = open_sheet(picture.title, picture.reading, height=3.6, left=0.95)
    strength = picture.singular_values.detach().double().cpu().numpy()
    median = picture.medians.detach().double().cpu().numpy()
    is_shown = np.isfinite(strength) & np.isfinite(median) & (strength > 0)
    if not is_shown.any():
        say_nothing_to_show(axes, "no gradient mode to show at this step")
        return figure
    is_shown &= strength >= strength[is_shown].max() * 10.0**-DECADES
    axes.set_yscale("log")
    axes.plot(
        median[is_shown],
        strength[is_shown],
        linestyle="none",
        marker="o",
        markersize=6,
        markerfacecolor=_BLUE,
        markeredgecolor="white",
        markeredgewidth=0.6,
        alpha=0.8,
    )
    _label(axes, strength[is_shown], n_left_out=int((~is_shown).sum()), step=picture.step)
    _draw_lines(axes, picture.whole_median)
    return figure


def _label(axes: Axes, strength: NDArray[np.float64], n_left_out: int, step: int) -> None:
    low = max(math.floor(math.log10(strength.min()) - 0.05), -300)
    high = min(math.ceil(math.log10(strength.max()) + 0.05), 300)
    decades = [10.0**exponent for exponent in range(low, high + 1)]
    axes.set_ylim(10.0**low, 10.0**high)
    axes.set_yticks(decades, [f"{decade:g}" for decade in decades], **LETTERS)
    axes.minorticks_off()
    axes.set_xlim(-0.02, 1.02)
    places = (0.0, 0.25, 0.5, 0.75, 1.0)
    axes.set_xticks(places, [f"{place:g}" for place in places], **LETTERS)
    axes.set_xlabel("median complexity of the singular function (0 simplest, 1 most complex)", labelpad=3, **LETTERS)
    axes.set_ylabel("singular value (log scale)", labelpad=6, **LETTERS)
    left_out = f", {n_left_out} left out: no energy" if n_left_out else ""
    note = f"step {step:,}: {len(strength)} modes{left_out}"
    axes.text(0.99, 0.975, note, transform=axes.transAxes, ha="right", va="top", **NOTE)


def _draw_lines(axes: Axes, whole: float) -> None:
    """Label the two lines above the axes, to the sides on which the labels cannot meet."""
    is_simple = not whole >= NO_ORDER
    _draw_line(axes, NO_ORDER, "no order: what noise would give", PALE, "--", label_rightwards=is_simple)
    if math.isfinite(whole):
        rightwards = whole < 0.25 or 0.5 <= whole < 0.75
        _draw_line(axes, whole, f"whole gradient {whole:.2f}", _ORANGE, "-", rightwards)


def _draw_line(axes: Axes, at: float, label: str, colour: str, dashes: str, label_rightwards: bool) -> None:
    axes.axvline(at, color=colour, linestyle=dashes, linewidth=1.6, zorder=1)
    side = "left" if label_rightwards else "right"
    look = {**LETTERS, "color": colour}
    axes.text(at, 1.015, label, transform=axes.get_xaxis_transform(), ha=side, va="bottom", **look)
