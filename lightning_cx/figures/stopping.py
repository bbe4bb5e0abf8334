"""The picture of a `StoppingCurve`: what the rule watched, which weights are kept, and where training stopped."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_cx.figures.sheet import (
    BLUE,
    LARGEST,
    LETTERS,
    MAX_COLUMNS,
    ORANGE,
    PALE,
    WIDTH,
    Array,
    label_steps,
    name_ticks,
    numbers,
    open_sheet,
    say_nothing_to_show,
    stride,
    write_note,
)
from lightning_cx.instruments import StoppingCurve

Mask = NDArray[np.bool_]
Mark = tuple[float, str, dict[str, Any]]  # step, words, look of the line

LONG = 50
"""Checks lie denser at the start: runs longer than this many steps need a logarithmic axis to show it."""

FLAT = 1e-6
"""Values that differ by less, relative to their size, are drawn as a constant: tick labels have eight digits."""

_LOWEST, _HIGHEST = 0.06, 0.84  # what is drawn stays between these heights; above it, only words
_ROWS = (0.955, 0.895)  # heights of the words
_BEFORE_FIRST = 0.06  # share of a logarithmic axis for the way from step 0 to the first check after it
_CHARACTER = 0.075  # inches
_GAP = 0.007  # from a mark to its words
_KEPT = {"color": ORANGE, "linestyle": "-", "linewidth": 1.6, "marker": ""}
_DOT = {**_KEPT, "marker": "o", "markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
_STOPPED = {"color": PALE, "linestyle": "--", "linewidth": 1.6, "marker": ""}


def draw_stopping_curve(picture: StoppingCurve) -> Figure:
    """Draw what the rule watched over the steps, with its error band and marks for the kept and the last weights.

    The curve breaks where a check could not be read; infinite values are left out. A note counts both. The axis of the
    steps is logarithmic, with step 0 at its left end, where they exceed `LONG` and span a decade; that of the values
    where all are positive and span more than one.

    Example:
        >>> import torch
        >>> risk, none = torch.tensor([3.0, 1.0, 2.0]), torch.full((3,), torch.nan)
        >>> picture = StoppingCurve([0, 10, 20], risk, none, none, 10, 20, "risk", "Title", "Read it so.")
        >>> [text.get_text() for text in draw_stopping_curve(picture).axes[0].texts]
        ['3 checks', 'kept: step 10', 'stopped: step 20']
    """
    figure, axes = open_sheet(picture.title, picture.reading, height=3.6)
    steps = np.asarray(picture.steps, dtype=np.float64)
    values, low, high = (numbers(of).ravel() for of in (picture.values, picture.low, picture.high))
    is_shown = np.abs(values) < LARGEST
    has_band = is_shown & ~np.isnan(low) & ~np.isnan(high)
    marks = _marks(picture)
    note = _note(values, is_shown, is_shaded=bool((low < high)[has_band].any()))
    if not is_shown.any():
        write_note(axes, "; ".join([note, *(words for _, words, _ in marks)]))
        say_nothing_to_show(axes, "no check gave a finite value" if len(steps) else "nothing checked yet")
        return figure
    write_note(axes, note)
    _scale_steps(axes, np.concatenate([steps, [step for step, _, _ in marks]]))
    ceiling = _scale_values(axes, values[is_shown], low[has_band], high[has_band], picture.label, picture.is_share)
    low, high = (np.clip(np.where(has_band, end, np.nan), axes.get_ylim()[0], ceiling) for end in (low, high))
    values = np.where(is_shown, values, np.nan)
    kept = _thin(_places(axes, steps), values)
    _draw_curve(axes, steps[kept], values[kept], low[kept], high[kept])
    _draw_marks(axes, marks)
    if picture.kept != picture.stopped:
        best = steps == picture.kept
        axes.plot(steps[best], values[best], **_DOT, zorder=4)
    return figure


def _marks(picture: StoppingCurve) -> list[Mark]:
    """Step, words and look of each mark, from left to right; rules that keep the last weights need only one."""
    marks = []
    if picture.kept is not None and picture.kept != picture.stopped:
        marks.append((float(picture.kept), f"kept: step {picture.kept:,}", _KEPT))
    if picture.stopped is not None:
        marks.append((float(picture.stopped), f"stopped: step {picture.stopped:,}", _STOPPED))
    return sorted(marks, key=lambda mark: mark[0])


def _note(values: Array, is_shown: Mask, is_shaded: bool) -> str:
    unread = int(np.isnan(values).sum())
    infinite = len(values) - unread - int(is_shown.sum())
    words = [f"{len(values):,} check{'' if len(values) == 1 else 's'}"]
    words += ["shaded: error band"] if is_shaded else []
    words += [f"{unread:,} could not be read"] if unread else []
    words += [f"{infinite:,} left out: infinite"] if infinite else []
    return "; ".join(words)


def _scale_steps(axes: Axes, steps: Array) -> None:
    start, last = float(steps.min()), float(steps.max())
    first = float(steps[steps > 0].min(initial=math.inf))
    if last > LONG and last >= 10 * first:
        decades = math.log10(last / first)
        share = _BEFORE_FIRST / (1 - _BEFORE_FIRST)
        axes.set_xscale("symlog", linthresh=first, linscale=0.9 * share * decades)  # 0.9: a decade's own linear part
        axes.set_xlim(start - 0.2 * first, last * 10 ** (0.015 * decades))
        ticks = [0.0, *(tick for tick in _powers(first, last) if tick >= first)]
        name_ticks(axes, [tick for tick in ticks if start <= tick <= last], "step (log scale)")
    else:
        room = 0.015 * (last - start) or 1.0
        axes.set_xlim(start - room, last + room)
        label_steps(axes, start, max(last, start + 1), most=last)


def _scale_values(axes: Axes, values: Array, low: Array, high: Array, label: str, is_share: bool) -> float:
    """Set limits and ticks; return the value above which nothing but words is drawn."""
    smallest, largest = float(values.min()), float(values.max())
    if smallest > 0 and largest / 10 > smallest and not is_share:
        logs = (np.log10(end, where=end > 0, out=np.full_like(end, np.nan)) for end in (low, high))
        bottom, ceiling, top = 10.0 ** _span(np.log10(values), *logs).clip(-300, 300)
        axes.set_yscale("log")
        ticks, label = _powers(bottom, ceiling), f"{label} (log scale)"
    else:
        bottom, ceiling, top = _span(values, low, high)
        ticks = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(bottom, ceiling)
    axes.set_ylim(bottom, top)
    ticks = [tick for tick in ticks if bottom <= tick <= ceiling + 1e-9 * abs(ceiling)]  # 1 may be 1 + 2e-16
    digits = [f"{tick:.8g}" for tick in ticks]
    axes.set_yticks(ticks, digits, **LETTERS)
    axes.minorticks_off()
    lines = textwrap.wrap(label, 48, max_lines=2, placeholder=" ...")
    axes.set_ylabel("\n".join(lines), labelpad=6, **LETTERS)
    _make_room(axes, left=0.3 + _CHARACTER * max(map(len, digits), default=0) + 0.18 * len(lines))
    return float(ceiling)


def _make_room(axes: Axes, left: float) -> None:
    """Move the left end of the axes to so many inches, or to where the other pictures have theirs."""
    box = axes.get_position()
    start = max(left, 0.95) / WIDTH
    axes.set_position((start, box.y0, box.x1 - start, box.height))


def _span(values: Array, low: Array, high: Array) -> Array:
    """Where the axis begins, where what is drawn ends, and where the axis ends.

    All values lie between the first two. The band may widen them by as much as they span or as it is wide itself: one
    check with a band of another size must not flatten the curve.
    """
    smallest, largest = float(values.min()), float(values.max())
    usual = np.isfinite(low) & np.isfinite(high) & (np.abs(low) < LARGEST) & (np.abs(high) < LARGEST)
    if usual.any():
        room = max(largest - smallest, float(np.median(high[usual] - low[usual])))
        smallest = max(smallest - room, min(smallest, float(low[usual].min())))
        largest = min(largest + room, max(largest, float(high[usual].max())))
    size = max(abs(smallest), abs(largest))
    if largest - smallest <= FLAT * size or size == 0:
        smallest, largest = smallest - (0.05 * size or 0.5), largest + (0.05 * size or 0.5)
    whole = (largest - smallest) / (_HIGHEST - _LOWEST)
    bottom = smallest - _LOWEST * whole
    return np.array([bottom, largest, bottom + whole])


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten from one positive number to another at least, and what lies between where they are few.

    Example:
        >>> _powers(1, 100), _powers(1e-4, 100)
        ([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0], [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high) - math.log10(low)
    digits = (1, 2, 5) if decades < 2.5 else (1,)
    powers = [power for power in range(first, last + 1) if power % stride(decades, 7) == 0]
    return [float(f"{digit}e{power}") for power in powers for digit in digits]


def _places(axes: Axes, steps: Array) -> Array:
    """Shares of the width."""
    points = np.column_stack([steps, np.full_like(steps, axes.get_ylim()[0])])
    return axes.transAxes.inverted().transform(axes.transData.transform(points))[:, 0]


def _thin(places: Array, values: Array) -> np.ndarray:
    """Choose what is seen of very many checks: the lowest and the highest of each column of the picture.

    Example:
        >>> values = np.where(np.arange(10_000) == 5_000, -1.0, 0.0)
        >>> chosen = _thin(np.linspace(0, 1, 10_000), values)
        >>> len(chosen) <= 2 * (MAX_COLUMNS + 1), 5_000 in chosen
        (True, True)
    """
    if len(places) <= 2 * MAX_COLUMNS:
        return np.arange(len(places))
    columns = np.floor(places * MAX_COLUMNS)
    begins = np.unique(columns, return_index=True)[1]
    # nan sorts last: a column breaks the curve only where it holds nothing else.
    ends = [np.lexsort((values * sign, columns))[begins] for sign in (1, -1)]
    return np.unique(np.concatenate(ends))


def _draw_curve(axes: Axes, steps: Array, values: Array, low: Array, high: Array) -> None:
    band = {"color": BLUE, "alpha": 0.2}
    axes.fill_between(steps, low, high, **band, linewidth=0, antialiased=True, zorder=1)
    lone = _is_alone(low + high)
    axes.vlines(steps[lone], low[lone], high[lone], **band, linewidth=10, linestyles="solid", zorder=1)
    axes.plot(steps, values, color=BLUE, linestyle="-", linewidth=1.8, marker="", zorder=3)
    lone = _is_alone(values)
    axes.plot(steps[lone], values[lone], color=BLUE, linestyle="none", marker="o", markersize=4.5, zorder=3)


def _is_alone(line: Array) -> Mask:
    """Points that no line reaches, because both neighbours are nan or none."""
    known = np.pad(np.isfinite(line), 1)
    return known[1:-1] & ~known[:-2] & ~known[2:]


def _draw_marks(axes: Axes, marks: list[Mark]) -> None:
    """Draw lines and words; where the words of two would meet, one line ends below the other's words."""
    places = _places(axes, np.array([step for step, _, _ in marks], dtype=np.float64))
    inches = WIDTH * axes.get_position().width
    widths = [_GAP + _CHARACTER * len(words) / inches for _, words, _ in marks]
    to_left = [bool(place + width > 1) for place, width in zip(places, widths, strict=True)]
    rows = [_ROWS[0]] * len(marks)
    if len(marks) == 2:
        to_left[0] = bool(places[0] >= widths[0])  # away from the other
        end = places[0] + (0 if to_left[0] else widths[0])
        begin = places[1] - (widths[1] if to_left[1] else 0)
        if begin < end:
            rows[0 if to_left[1] else 1] = _ROWS[1]
    for (step, words, look), place, leftwards, row in zip(marks, places, to_left, rows, strict=True):
        axes.plot([step, step], [0, row + 0.02], transform=axes.get_xaxis_transform(), **look, zorder=2)
        at, side = (place - _GAP, "right") if leftwards else (place + _GAP, "left")
        letters = {**LETTERS, "color": look["color"]}
        axes.text(at, row, words, transform=axes.transAxes, ha=side, va="center_baseline", **letters)
