"""Dots, notes and keys that pictures of single values share."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lightning_cx.tensorboard.shares import Array
from lightning_cx.tensorboard.sheet import LETTERS, NOTE

MARKERS, EXTREMES = 400, 60
"""More markers than the first would only cover each other; that many at each end, where a tail is read, all stay."""

DOTS: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.4, "alpha": 0.8}


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
