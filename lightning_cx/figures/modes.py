"""The picture of a `ModeScatter`: are the strong singular functions of the gradients the simple ones?"""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_cx.figures.sheet import (
    BLUE,
    LETTERS,
    NOTE,
    ORANGE,
    PALE,
    Array,
    draw_scale,
    numbers,
    open_sheet,
    say_nothing_to_show,
)
from lightning_cx.instruments import ModeScatter

NO_ORDER = 0.5
"""Where the median complexity of white noise lies."""

DECADES = 6
"""Singular values further than this below the largest are rounding of a Gram matrix, whose eigenvalues square them."""

_STEPS = LinearSegmentedColormap.from_list("steps", [colormaps["viridis"](x) for x in (0.95, 0.6, 0.3, 0.0)])


def draw_mode_scatter(picture: ModeScatter) -> Figure:
    """Draw strength against complexity, with the lines that say what noise would give and where the whole lies.

    Modes of earlier steps lie behind, coloured by their step. Modes without energy, with no median, or too weak to be
    more than rounding are left out; a note says how many of the present ones.
    """
    earlier = [(step, *_usable(values, medians)) for step, values, medians in picture.earlier]
    earlier = [(step, strength, median) for step, strength, median in earlier if strength.size]
    right = 1.15 if earlier else 0.3
    figure, axes = open_sheet(picture.title, picture.reading, height=3.6, left=0.95, right=right)
    strength, median = _usable(picture.singular_values, picture.medians)
    if not strength.size:
        say_nothing_to_show(axes, "no gradient mode to show at this step")
        return figure
    axes.set_yscale("log")
    first = earlier[0][0] if earlier else 0
    colour = Normalize(first, max(picture.step, first + 1))
    for step, old_strength, old_median in earlier:
        _draw_dots(axes, old_median, old_strength, _STEPS(colour(step)), size=4.5, alpha=0.7)
    _draw_dots(axes, median, strength, BLUE if not earlier else _STEPS(1.0), size=6, alpha=0.8)
    everything = np.concatenate([strength, *(old for _, old, _ in earlier)])
    _label(axes, everything, len(strength), picture.singular_values.numel() - len(strength), picture.step)
    _draw_lines(axes, picture.whole_median)
    if earlier:
        low, high = float(colour.vmin or 0), float(colour.vmax or 1)
        ticks = [t for t in MaxNLocator(5, integer=True).tick_values(low, high) if low <= t <= high]
        draw_scale(axes, low, high, _STEPS, {tick: f"{tick:,.0f}" for tick in ticks}, "step")
    return figure


def _usable(singular_values: Tensor, medians: Tensor) -> tuple[Array, Array]:
    """Strength and median of the modes that can be shown."""
    strength, median = numbers(singular_values), numbers(medians)
    is_shown = np.isfinite(strength) & np.isfinite(median) & (strength > 0)
    if is_shown.any():
        is_shown &= strength >= strength[is_shown].max() * 10.0**-DECADES
    return strength[is_shown], median[is_shown]


def _draw_dots(axes: Axes, median: Array, strength: Array, colour: object, size: float, alpha: float) -> None:
    axes.plot(
        median,
        strength,
        linestyle="none",
        marker="o",
        markersize=size,
        markerfacecolor=colour,
        markeredgecolor="white",
        markeredgewidth=0.6,
        alpha=alpha,
    )


def _label(axes: Axes, strength: Array, n_shown: int, n_left_out: int, step: int) -> None:
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
    note = f"step {step:,}: {n_shown} modes{left_out}"
    axes.text(0.99, 0.975, note, transform=axes.transAxes, ha="right", va="top", **NOTE)


def _draw_lines(axes: Axes, whole: float) -> None:
    """Label the two lines above the axes, to the sides on which the labels cannot meet."""
    is_simple = not whole >= NO_ORDER
    _draw_line(axes, NO_ORDER, "no order: what noise would give", PALE, "--", label_rightwards=is_simple)
    if math.isfinite(whole):
        rightwards = whole < 0.25 or 0.5 <= whole < 0.75
        _draw_line(axes, whole, f"whole gradient {whole:.2f}", ORANGE, "-", rightwards)


def _draw_line(axes: Axes, at: float, label: str, colour: str, dashes: str, label_rightwards: bool) -> None:
    axes.axvline(at, color=colour, linestyle=dashes, linewidth=1.6, marker="", zorder=1)
    side = "left" if label_rightwards else "right"
    look = {**LETTERS, "color": colour}
    axes.text(at, 1.015, label, transform=axes.get_xaxis_transform(), ha=side, va="bottom", **look)
