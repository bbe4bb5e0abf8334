"""The sheet every picture is drawn on: a title above, one sentence under it that says how to read it.

Only objects are used, never pyplot, and every property that a user's rcParams could change is set on the object:
the pictures look the same in every project and leave its matplotlib as it was.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

INK = "#262626"
PALE = "#767676"
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito: told apart by colour-blind readers
WIDTH = 8.0  # inches; 800 px, what TensorBoard shows of a picture that was clicked on
DPI = 100

MAX_COLUMNS = 400
"""More columns than this would be narrower than two pixels."""

LARGEST = 1e290
"""Leaves the axis room before a double overflows; larger values are left out as infinite ones are."""

MARKERS, EXTREMES = 400, 60
"""More markers than the first would only cover each other; that many at each end, where a tail is read, all stay."""

LETTERS: dict[str, Any] = {
    "color": INK,
    "fontfamily": "DejaVu Sans",  # comes with matplotlib
    "fontsize": 9,
    "fontstyle": "normal",
    "parse_math": False,  # a user's label may hold a dollar sign
    "usetex": False,
}
TITLE = {**LETTERS, "fontsize": 12, "fontweight": "bold"}
NOTE = {**LETTERS, "fontsize": 8, "color": PALE}
DOTS: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.4, "alpha": 0.8}

_TITLE_LINE, _TITLE_COLUMNS = 0.23, 78
_READING_LINE, _READING_COLUMNS = 0.185, 116
_BORDER, _NOTES, _TICKS = 0.16, 0.30, 0.62


def open_sheet(title: str, reading: str, height: float, left: float = 0.8, right: float = 0.3) -> tuple[Figure, Axes]:
    """Lay out a figure, which already has an Agg canvas, whose empty axes are `height` inches high.

    It grows with the words around them: the title above and the reading below. `left` and `right` are the inches
    beside the axes.

    Example:
        >>> figure, axes = open_sheet("Title", "Read it so.", height=2.0)
        >>> [text.get_text() for text in figure.texts]
        ['Title', 'Read it so.']
    """
    above, below = textwrap.wrap(title, _TITLE_COLUMNS), textwrap.wrap(reading, _READING_COLUMNS)
    bottom = _BORDER + _READING_LINE * len(below) + _TICKS
    total = bottom + height + _NOTES + _TITLE_LINE * len(above) + _BORDER
    figure = Figure(figsize=(WIDTH, total), dpi=DPI, facecolor="white", edgecolor="white")
    figure.set_layout_engine("none")  # a user's rcParams may name one
    FigureCanvasAgg(figure)
    figure.text(_BORDER / WIDTH, 1 - _BORDER / total, "\n".join(above), va="top", **TITLE)
    figure.text(_BORDER / WIDTH, _BORDER / total, "\n".join(below), va="bottom", linespacing=1.35, **LETTERS)
    box = (left / WIDTH, bottom / total, 1 - (left + right) / WIDTH, height / total)
    axes = figure.add_axes(box, facecolor="white", axisbelow=True)
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Give axes the house's frame: thin, no grid, ticks outside on the left and at the bottom."""
    axes.grid(False, which="both")
    axes.minorticks_off()
    sides = {"left": True, "bottom": True, "top": False, "right": False}
    labels = {f"label{side}": shown for side, shown in sides.items()}
    axes.tick_params("both", direction="out", length=3, width=0.8, color=INK, pad=3, **sides, **labels)
    for spine in axes.spines.values():
        spine.set(visible=True, edgecolor=PALE, linewidth=0.8)


def numbers(values: Tensor) -> Array:
    """Return the values of a tensor on the host."""
    return values.detach().double().cpu().numpy()


def label_steps(axes: Axes, low: float, high: float, most: float = math.inf) -> None:
    """Put ticks at whole steps from `low` to `high`, or to `most` where that is less."""
    ticks = MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]).tick_values(low, high)
    name_ticks(axes, [tick for tick in ticks if low <= tick <= min(high, most)])


def name_ticks(axes: Axes, ticks: Sequence[float], words: str = "step") -> None:
    """Put these steps under the axes, and what they are."""
    axes.set_xticks(ticks, [f"{tick:,.0f}" if tick < 1e8 else f"{tick:g}" for tick in ticks], **LETTERS)
    axes.minorticks_off()
    axes.set_xlabel(words, labelpad=3, **LETTERS)


def stride(decades: float, most: int) -> int:
    """Return the smallest round number of decades between ticks that needs at most so many ticks."""
    return next(stride for stride in (1, 2, 5, 10, 20, 50, 100) if decades <= most * stride)


def draw_scale(axes: Axes, low: float, high: float, colours: Colormap, ticks: Mapping[float, str], words: str) -> None:
    """Draw a scale of colours to the right of the axes."""
    box = axes.get_position()
    scale = axes.get_figure().add_axes((box.x1 + 0.15 / WIDTH, box.y0, 0.16 / WIDTH, box.height))  # type: ignore[union-attr]
    scale.pcolormesh([0, 1], np.linspace(low, high, 129), np.linspace(0, 1, 128)[:, None], cmap=colours)
    plain(scale)
    scale.set_ylim(low, high)
    scale.tick_params(left=False, labelleft=False, right=True, labelright=True)
    scale.set_xticks([])
    scale.set_yticks(list(ticks), list(ticks.values()), **LETTERS)
    scale.yaxis.set_label_position("right")
    scale.set_ylabel(words, labelpad=5, **LETTERS)


def say_nothing_to_show(axes: Axes, why: str) -> None:
    """Write into empty axes why they are empty."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", **{**LETTERS, "color": PALE})


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure without pyplot, as ``[height, width, 3]`` RGB, 0 to 255.

    Args:
        figure: Figure, as `draw` returns it.

    Example:
        >>> pixels(open_sheet("Title", "Read it so.", height=2.0)[0]).shape[1:]
        (800, 3)
    """
    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def thin(places: Array, most: int) -> np.ndarray:
    """Choose at most `most` of ascending places: all at the ends, and between them some that lie evenly.

    Example:
        >>> chosen = thin(np.linspace(0, 1, 10_000) ** 2, most=400)
        >>> len(chosen) <= 400, chosen[:3].tolist(), chosen[-2:].tolist()
        (True, [0, 1, 2], [9998, 9999])
    """
    count = len(places)
    if count <= most:
        return np.arange(count)
    even = np.searchsorted(places, np.linspace(places[0], places[-1], most - 2 * EXTREMES))
    return np.unique(np.concatenate([np.arange(EXTREMES), even, np.arange(count - EXTREMES, count)]))


def write_note(axes: Axes, words: str) -> None:
    """Write above the axes, where there is room for two lines."""
    lines = textwrap.wrap(words, 110, max_lines=2, placeholder=" ...")
    axes.text(1.0, 1.015, "\n".join(lines), transform=axes.transAxes, ha="right", va="bottom", **NOTE)


def write_key(axes: Axes, left: float, top: float, entries: Sequence[tuple[dict[str, Any], str]]) -> None:
    """Write what each look means, one under the other; places are shares of the axes."""
    for row, (look, words) in enumerate(entries):
        height = top - 0.05 * row
        axes.plot([left, left + 0.02, left + 0.04], [height] * 3, transform=axes.transAxes, markevery=[1], **look)
        axes.text(left + 0.052, height, words, transform=axes.transAxes, ha="left", va="center_baseline", **LETTERS)


def shares_of_first(values: Array) -> Array:
    """Divide each band's energies ``[S, B]`` by its first positive finite one; nan where that or an energy is none.

    Example:
        >>> shares_of_first(np.array([[0.0, 4.0], [2.0, 1.0], [1.0, np.nan]])).tolist()
        [[0.0, 1.0], [1.0, 0.25], [0.5, nan]]
    """
    usable = np.isfinite(values) & (values > 0)
    first = values[usable.argmax(0), np.arange(values.shape[1])]
    first = np.where(usable.any(0), first, np.nan)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        shares = values / first
    return np.where(np.isfinite(values) & (values >= 0), shares, np.nan)


def thin_out(steps: Array, shares: Array) -> tuple[Array, Array]:
    """Keep at most `MAX_COLUMNS` steps, evenly and with both ends."""
    if len(steps) <= MAX_COLUMNS:
        return steps, shares
    kept = np.linspace(0, len(steps) - 1, MAX_COLUMNS).round().astype(int)
    return steps[kept], shares[kept]
