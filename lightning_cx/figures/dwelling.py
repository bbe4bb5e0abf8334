"""The picture of a `DwellTimeline`: how far training came, and where it stayed."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_cx.figures.sheet import (
    BLUE,
    LARGEST,
    LETTERS,
    ORANGE,
    PALE,
    label_steps,
    numbers,
    open_sheet,
    say_nothing_to_show,
    write_note,
)
from lightning_cx.instruments import DwellTimeline


def draw_dwell_timeline(picture: DwellTimeline) -> Figure:
    """Draw the distance from the beginning over the steps, a bar for each dwell, and a dashed line for each escape.

    Example:
        >>> import torch
        >>> path = torch.tensor([0.0, 1.0, 1.0, 3.0])
        >>> picture = DwellTimeline([0, 10, 20, 30], path, [(10, 20, 1.0, True)], "Title", "Read it so.")
        >>> [text.get_text() for text in draw_dwell_timeline(picture).axes[0].texts]
        ['1 dwell, 1 escape']
    """
    figure, axes = open_sheet(picture.title, picture.reading, height=3.2, left=0.95)
    steps = np.asarray(picture.steps, dtype=np.float64)
    distances = numbers(picture.distances).ravel()
    shown = np.abs(distances) < LARGEST
    write_note(axes, _note(picture, int((~shown).sum())))
    if not shown.any():
        say_nothing_to_show(axes, "no point of the path is finite" if len(steps) else "nothing measured yet")
        return figure
    axes.plot(steps[shown], distances[shown], color=BLUE, linestyle="-", linewidth=1.2, marker="", zorder=2)
    if shown.sum() == 1:
        axes.plot(steps[shown], distances[shown], color=BLUE, linestyle="none", marker="o", markersize=4.5)
    for start, end, distance, escaped in picture.dwells:
        axes.hlines(distance, start, end, colors=ORANGE, linewidth=5, alpha=0.75, zorder=3)
        if escaped:
            axes.axvline(end, color=PALE, linestyle="--", linewidth=1.0, zorder=1)
    _scale(axes, steps[shown], distances[shown])
    return figure


def _note(picture: DwellTimeline, lost: int) -> str:
    escapes = sum(escaped for *_, escaped in picture.dwells)
    words = [
        f"{count:,} {name}{'' if count == 1 else 's'}"
        for count, name in ((len(picture.dwells), "dwell"), (escapes, "escape"))
    ]
    return ", ".join(words) + (f"; {lost:,} points left out: not finite" if lost else "")


def _scale(axes: Axes, steps: np.ndarray, distances: np.ndarray) -> None:
    room = 0.015 * (steps[-1] - steps[0]) or 1.0
    axes.set_xlim(steps[0] - room, steps[-1] + room)
    top = 1.06 * float(distances.max()) or 1.0
    axes.set_ylim(0.0, top)
    label_steps(axes, steps[0], max(steps[-1], steps[0] + 1), most=steps[-1])
    ticks = [tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0.0, top) if tick <= top]
    axes.set_yticks(ticks, [f"{tick:.6g}" for tick in ticks], **LETTERS)
    axes.set_ylabel("distance from the beginning", labelpad=6, **LETTERS)
