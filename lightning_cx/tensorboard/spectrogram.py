"""The picture of a `Spectrogram`: how much of each band is left, step by step."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_cx.instruments import Spectrogram
from lightning_cx.tensorboard.shares import Array, shares_of_first, thin_out
from lightning_cx.tensorboard.sheet import INK, LETTERS, NOTE, WIDTH, open_sheet, plain, say_nothing_to_show

FLOOR, CEILING = -4.0, 1.0
"""Colours span at most these decades of the first energy; the small print of a spectrum is rounding."""

_LONGEST_LABEL = 22
_NO_READING = "#d9d9d9"


def draw_spectrogram(picture: Spectrogram) -> Figure:
    """Draw energies relative to each band's own first one, so that bands of any size can be compared.

    A column begins at its step and lasts until the next one. Each band's first energy is its first that is positive
    and finite; a black bar marks where half of it is gone, so that bars leaning to the right mean that simple bands
    are learned first.

    Args:
        picture: The energies.

    Returns:
        The figure.
    """
    labels = [band if len(band) <= _LONGEST_LABEL else band[: _LONGEST_LABEL - 1] + "…" for band in picture.bands]
    left = 0.55 + 0.075 * max((len(label) for label in labels), default=0)
    height = float(np.clip(0.36 * len(labels), 1.5, 4.0))
    figure, axes = open_sheet(picture.title, picture.reading, height, left=left, right=1.15)
    if not picture.steps or not labels:
        say_nothing_to_show(axes, "nothing measured yet")
        return figure
    steps = np.asarray(picture.steps, dtype=np.float64)
    shares = shares_of_first(picture.values.detach().double().cpu().numpy())
    mesh = _draw_cells(axes, *thin_out(steps, shares))
    _mark_halves(axes, steps, shares)
    _label(axes, labels, has_gaps=bool(np.isnan(shares).any()))
    _draw_colour_bar(figure, axes, mesh)
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


def _label(axes: Axes, labels: list[str], has_gaps: bool) -> None:
    low, high = axes.get_xlim()
    ticks = MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], **LETTERS)
    axes.set_yticks(range(len(labels)), labels, **LETTERS)
    axes.set_xlabel("step", labelpad=3, **LETTERS)
    axes.set_ylabel("simple → complex", labelpad=6, **LETTERS)
    note = "black bar: half of the band's energy is gone" + ("; grey: no energy was measured" if has_gaps else "")
    axes.text(0.0, 1.015, note, transform=axes.transAxes, ha="left", va="bottom", **NOTE)


def _draw_colour_bar(figure: Figure, axes: Axes, mesh: QuadMesh) -> None:
    box = axes.get_position()
    scale = figure.add_axes((box.x1 + 0.15 / WIDTH, box.y0, 0.16 / WIDTH, box.height))
    low, high = mesh.get_clim()
    fractions = (1.0,) if high - low > 2 else (1.0, 2.0, 5.0)
    ticks = [d + np.log10(f) for d in range(int(FLOOR), int(CEILING) + 1) for f in fractions]
    ticks = [tick for tick in ticks if low - 1e-9 <= tick <= high + 1e-9]
    scale.pcolormesh([0, 1], np.linspace(low, high, 129), np.linspace(low, high, 128)[:, None], cmap=mesh.get_cmap())
    scale.set_ylim(low, high)
    plain(scale)
    scale.tick_params(left=False, labelleft=False, right=True, labelright=True)
    scale.set_xticks([])
    scale.set_yticks(ticks, [f"{100 * 10**tick:.3g}%" for tick in ticks], **LETTERS)
    scale.yaxis.set_label_position("right")
    scale.set_ylabel("energy left, % of the band's\nfirst one (log scale)", labelpad=5, **{**LETTERS, "color": INK})
