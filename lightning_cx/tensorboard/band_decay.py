"""The picture of a `BandDecay`: one falling line for each band, with its half-life beside it."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_cx.instruments import BandDecay
from lightning_cx.tensorboard.shares import Array, shares_of_first, thin_out
from lightning_cx.tensorboard.sheet import LETTERS, PALE, open_sheet, say_nothing_to_show

DECADES = 6
"""Shares below a millionth of the first energy are rounding of a float32 pass."""

LIGHTEST = 0.88
"""The end of the colour map that can still be read on white."""

_HEIGHT = 3.6  # inches
_LINE = 0.165  # inches from one label to the next
_CHARACTER = 0.072  # inches


def draw_band_decay(picture: BandDecay) -> Figure:
    """Draw what is left of each band over the steps, on a logarithmic axis, from simple (dark) to complex (light).

    A label at the end of each line names the band and the steps in which it loses half of its energy at present.

    Args:
        picture: The energies.

    Returns:
        The figure.
    """
    labels = [_label(band, half_life) for band, half_life in zip(picture.bands, picture.half_lives, strict=True)]
    right = 0.55 + _CHARACTER * max((len(label) for label in labels), default=0)
    figure, axes = open_sheet(picture.title, picture.reading, _HEIGHT, left=0.95, right=min(right, 3.2))
    steps = np.asarray(picture.steps, dtype=np.float64)
    values = picture.values.detach().double().cpu().numpy()
    shares = shares_of_first(values) if values.size else values
    is_shown = np.isfinite(shares) & (shares > 0)
    if not is_shown.any():
        say_nothing_to_show(axes, "nothing measured yet")
        return figure
    steps, shares = thin_out(steps, np.where(is_shown, shares, np.nan))
    _scale(axes, steps, shares)
    colours = colormaps["viridis"](np.linspace(0, LIGHTEST, len(labels)))
    for band, colour in enumerate(colours):
        axes.plot(steps, shares[:, band], color=colour, linewidth=1.8, linestyle="-", marker=_marker(shares[:, band]))
    _write_labels(axes, steps, shares, labels, colours)
    return figure


def _label(band: str, half_life: float) -> str:
    if math.isnan(half_life):
        return band
    if math.isinf(half_life):
        return f"{band}: no certain fall"
    return f"{band}: half in {half_life:,.0f} steps" if half_life >= 10 else f"{band}: half in {half_life:.2g} steps"


def _marker(line: Array) -> str:
    return "o" if np.isfinite(line).sum() == 1 else ""


def _scale(axes: Axes, steps: Array, shares: Array) -> None:
    top = min(max(1.0, float(np.nanmax(shares))), 10.0**DECADES)
    bottom = 10.0 ** math.floor(math.log10(max(float(np.nanmin(shares)), 10.0**-DECADES)))
    bottom = min(bottom, 0.1)
    axes.set_yscale("log")
    axes.set_ylim(bottom * 0.8, top * 1.25)
    decades = [10.0**d for d in range(round(math.log10(bottom)), math.floor(math.log10(top)) + 1)]
    axes.set_yticks(decades, [f"{100 * decade:g}%" for decade in decades], **LETTERS)
    axes.minorticks_off()
    last = max(steps[-1], steps[0] + 1)
    axes.set_xlim(steps[0], last)
    ticks = MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]).tick_values(steps[0], last)
    ticks = [tick for tick in ticks if steps[0] <= tick <= last]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], **LETTERS)
    axes.set_xlabel("step", labelpad=3, **LETTERS)
    axes.set_ylabel("energy left, % of the band's first one", labelpad=6, **LETTERS)


def _write_labels(axes: Axes, steps: Array, shares: Array, labels: list[str], colours: Array) -> None:
    """Put a label where each line ends, moved apart where lines end together."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    ends = [_end(shares[:, band], low, high) for band in range(len(labels))]
    shown = [band for band in range(len(labels)) if not math.isnan(ends[band])]
    shown.sort(key=lambda band: ends[band])
    places = _spread([ends[band] for band in shown], gap=_LINE / _HEIGHT)
    for band, place in zip(shown, places, strict=True):
        look = {"color": colours[band], "linewidth": 0.8, "clip_on": False, "transform": axes.transAxes}
        axes.plot([1.0, 1.02], [ends[band], place], linestyle="-", marker="", **look)
        axes.text(1.027, place, labels[band], transform=axes.transAxes, ha="left", va="center", **LETTERS)
    missing = [labels[band] for band in range(len(labels)) if math.isnan(ends[band])]
    if missing:
        words = f"no energy: {', '.join(missing)}"
        axes.text(0.01, 1.02, words, transform=axes.transAxes, ha="left", **{**LETTERS, "color": PALE, "fontsize": 8})


def _end(line: Array, low: float, high: float) -> float:
    """Height of a line's last point as a share of the axis; nan for a band without any."""
    known = line[np.isfinite(line)]
    if not known.size:
        return math.nan
    return min(max((math.log10(known[-1]) - low) / (high - low), 0.0), 1.0)


def _spread(heights: list[float], gap: float) -> list[float]:
    """Move ascending heights apart to at least `gap`, as little as possible: neighbours that meet share their middle.

    Example:
        >>> _spread([0.5, 0.5, 0.9], gap=0.1)
        [0.45, 0.55, 0.9]
    """
    groups: list[tuple[float, int]] = []  # middle and number of each run of labels that touch
    for height in heights:
        middle, count = height, 1
        while groups and groups[-1][0] + gap * (groups[-1][1] + count) / 2 > middle:
            other, more = groups.pop()
            middle, count = (other * more + middle * count) / (more + count), more + count
        half = gap * (count - 1) / 2
        middle = min(max(middle, half), max(1.0 - half, half))
        groups.append((middle, count))
    return [round(middle + gap * (i - (count - 1) / 2), 9) for middle, count in groups for i in range(count)]
