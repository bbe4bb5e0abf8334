"""Pictures of the energy by band over the steps: `Spectrogram` as a heat map, `BandDecay` as one line a band."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from lightning_cx.figures.sheet import (
    LETTERS,
    NOTE,
    PALE,
    Array,
    draw_scale,
    label_steps,
    numbers,
    open_sheet,
    say_nothing_to_show,
    shares_of_first,
    thin_out,
)
from lightning_cx.instruments import BandDecay, Spectrogram

FLOOR, CEILING = -4.0, 1.0
"""Colours span at most these decades of the first energy; the small print of a spectrum is rounding."""

_LONGEST_LABEL = 22
_NO_READING = "#d9d9d9"


def draw_spectrogram(picture: Spectrogram) -> Figure:
    """Draw energies relative to each band's own first one, so that bands of any size can be compared.

    A column begins at its step and lasts until the next one. Each band's first energy is its first that is positive
    and finite; a black bar marks where half of it is gone, so that bars leaning to the right mean that simple bands
    are learned first.
    """
    labels = [band if len(band) <= _LONGEST_LABEL else band[: _LONGEST_LABEL - 1] + "…" for band in picture.bands]
    left = 0.55 + 0.075 * max((len(label) for label in labels), default=0)
    height = float(np.clip(0.36 * len(labels), 1.5, 4.0))
    figure, axes = open_sheet(picture.title, picture.reading, height, left=left, right=1.15)
    if not picture.steps or not labels:
        say_nothing_to_show(axes, "nothing measured yet")
        return figure
    steps = np.asarray(picture.steps, dtype=np.float64)
    shares = shares_of_first(numbers(picture.values))
    mesh = _draw_cells(axes, *thin_out(steps, shares))
    _mark_halves(axes, steps, shares)
    _label_cells(axes, labels, has_gaps=bool(np.isnan(shares).any()))
    _draw_colour_bar(axes, mesh)
    return figure


def _draw_cells(axes: Axes, steps: Array, shares: Array) -> QuadMesh:
    last = max(1.0, float(np.median(np.diff(steps)))) if len(steps) > 1 else 1.0
    edges = np.append(steps, steps[-1] + last)
    rows = np.arange(shares.shape[1] + 1) - 0.5
    decades = np.log10(np.clip(shares, 10.0 ** (2 * FLOOR), 10.0 ** (2 * CEILING)))
    low, high = (np.nanmin(decades), np.nanmax(decades)) if np.isfinite(decades).any() else (0.0, 0.0)
    axes.set_facecolor(_NO_READING)
    mesh = axes.pcolormesh(
        edges,
        rows,
        np.ma.masked_invalid(decades.T),
        cmap=colormaps["viridis"],
        vmin=np.clip(low, FLOOR, -1.0),
        vmax=np.clip(high, 0.0, CEILING),
        shading="flat",
        edgecolors="none",
        antialiased=False,
    )
    axes.hlines(rows[1:-1], edges[0], edges[-1], colors="white", linewidth=1.0, linestyles="solid")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(rows[0], rows[-1])
    return mesh


def _mark_halves(axes: Axes, steps: Array, shares: Array) -> None:
    is_half_gone = np.nan_to_num(shares, nan=np.inf) <= 0.5
    bands = np.flatnonzero(is_half_gone.any(0))
    at = steps[is_half_gone.argmax(0)[bands]]
    for colour, width in (("white", 4.0), ("black", 2.0)):
        axes.vlines(at, bands - 0.42, bands + 0.42, colors=colour, linewidth=width, linestyles="solid")


def _label_cells(axes: Axes, labels: list[str], has_gaps: bool) -> None:
    label_steps(axes, *axes.get_xlim())
    axes.set_yticks(range(len(labels)), labels, **LETTERS)
    axes.set_ylabel("simple → complex", labelpad=6, **LETTERS)
    note = "black bar: half of the band's energy is gone" + ("; grey: no energy was measured" if has_gaps else "")
    axes.text(0.0, 1.015, note, transform=axes.transAxes, ha="left", va="bottom", **NOTE)


def _draw_colour_bar(axes: Axes, mesh: QuadMesh) -> None:
    low, high = mesh.get_clim()
    fractions = (1.0,) if high - low > 2 else (1.0, 2.0, 5.0)
    ticks = [d + np.log10(f) for d in range(int(FLOOR), int(CEILING) + 1) for f in fractions]
    words = {float(tick): f"{100 * 10**tick:.3g}%" for tick in ticks if low - 1e-9 <= tick <= high + 1e-9}
    draw_scale(axes, low, high, mesh.get_cmap(), words, "energy left, % of the band's\nfirst one (log scale)")


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
    """
    labels = [_name(band, half_life) for band, half_life in zip(picture.bands, picture.half_lives, strict=True)]
    right = 0.55 + _CHARACTER * max((len(label) for label in labels), default=0)
    figure, axes = open_sheet(picture.title, picture.reading, _HEIGHT, left=0.95, right=min(right, 3.2))
    steps = np.asarray(picture.steps, dtype=np.float64)
    values = numbers(picture.values)
    shares = shares_of_first(values) if values.size else values
    is_shown = np.isfinite(shares) & (shares > 0)
    if not is_shown.any():
        say_nothing_to_show(axes, "nothing measured yet")
        return figure
    steps, shares = thin_out(steps, np.where(is_shown, shares, np.nan))
    _scale_shares(axes, steps, shares)
    colours = colormaps["viridis"](np.linspace(0, LIGHTEST, len(labels)))
    for band, colour in enumerate(colours):
        axes.plot(steps, shares[:, band], color=colour, linewidth=1.8, linestyle="-", marker=_marker(shares[:, band]))
    _write_labels(axes, steps, shares, labels, colours)
    return figure


def _name(band: str, half_life: float) -> str:
    if math.isnan(half_life):
        return band
    if math.isinf(half_life):
        return f"{band}: no certain fall"
    return f"{band}: half in {half_life:,.0f} steps" if half_life >= 10 else f"{band}: half in {half_life:.2g} steps"


def _marker(line: Array) -> str:
    return "o" if np.isfinite(line).sum() == 1 else ""


def _scale_shares(axes: Axes, steps: Array, shares: Array) -> None:
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
    label_steps(axes, steps[0], last)
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
