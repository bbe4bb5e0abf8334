"""The sheet every picture is drawn on: a title above, one sentence under it that says how to read it.

Only objects are used, never pyplot, and every property that a user's rcParams could change is set on the object:
the pictures look the same in every project and leave its matplotlib as it was.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK = "#262626"
PALE = "#767676"
WIDTH = 8.0  # inches; 800 px, what TensorBoard shows of a picture that was clicked on
DPI = 100

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

_TITLE_LINE, _TITLE_COLUMNS = 0.23, 78
_READING_LINE, _READING_COLUMNS = 0.185, 116
_BORDER, _NOTES, _TICKS = 0.16, 0.30, 0.62


def open_sheet(title: str, reading: str, height: float, left: float = 0.8, right: float = 0.3) -> tuple[Figure, Axes]:
    """Lay out a figure whose axes are `height` inches high; it grows with the words around them.

    Args:
        title: Goes above, wrapped.
        reading: Goes below, wrapped.
        height: Height of the axes in inches.
        left: Room for tick labels to the left of the axes, in inches.
        right: Room to the right of them.

    Returns:
        The figure, which already has an Agg canvas, and its empty axes.

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


def say_nothing_to_show(axes: Axes, why: str) -> None:
    """Write into empty axes why they are empty."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", **{**LETTERS, "color": PALE})


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure without pyplot.

    Args:
        figure: Figure with an Agg canvas, as `draw` returns it.

    Returns:
        ``[height, width, 3]`` RGB, 0 to 255.

    Example:
        >>> pixels(open_sheet("Title", "Read it so.", height=2.0)[0]).shape[1:]
        (800, 3)
    """
    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
