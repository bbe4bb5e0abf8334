"""Pictures of how heavy a tail is: quantiles against normal ones, and the share of magnitudes that exceeds each value.

Magnitudes of any size can be drawn: quantiles are clipped before a double overflows, and survival is computed in
decimal logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_cx.figures.sheet import (
    BLUE,
    DOTS,
    LARGEST,
    LETTERS,
    MARKERS,
    ORANGE,
    PALE,
    Array,
    numbers,
    open_sheet,
    say_nothing_to_show,
    stride,
    thin,
    write_key,
    write_note,
)
from lightning_cx.instruments import QuantilePlot, SurvivalPlot

LINEAR, FAR = 3.0, 8.0
"""Beyond `LINEAR` standard deviations the axis is logarithmic, where values further out than `FAR` need it."""

_NORMAL_QUARTILE = 0.6745  # upper quartile of a standard normal value, and median of its magnitude
_LOOKS = ((BLUE, "o"), (ORANGE, "^"), ("#009e73", "s"), ("#cc79a7", "D"))  # Okabe and Ito
_LONGEST = 44  # characters of a label that fit into the left half


def draw_quantile_plot(picture: QuantilePlot) -> Figure:
    """Draw each sample, with its median and spread taken out, against the quantiles of a normal distribution.

    The spread is half the interquartile range over that of a normal distribution: heavy tails do not change it. A
    sample without one is left out; a note says which and why.

    Example:
        >>> figure = draw_quantile_plot(QuantilePlot(5, {"noise": torch.randn(99)}, "Title", "Read it so."))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['step 5', 'normal', 'noise: n = 99']
    """
    figure, axes = open_sheet(picture.title, picture.reading, height=3.6, left=0.95, right=0.75)
    points = {label: _standardise(sample) for label, sample in picture.samples.items()}
    refused = {label: found for label, found in points.items() if isinstance(found, str)}
    drawn = {label: found for label, found in points.items() if not isinstance(found, str)}
    write_note(axes, f"step {picture.step:,}" + "".join(f"; {name} left out: {why}" for name, why in refused.items()))
    if not drawn:
        say_nothing_to_show(axes, "\n".join(dict.fromkeys(refused.values())) or "nothing measured yet")
        return figure
    reach = 1.06 * max(LINEAR, *(float(x[-1]) for x, _ in drawn.values()))
    _scale_quantiles(axes, reach, np.concatenate([y for _, y in drawn.values()]))
    _draw_diagonal(axes, reach)
    entries = []
    for (label, (x, y)), (colour, marker) in zip(drawn.items(), _LOOKS * len(drawn), strict=False):
        kept, lost = thin(x, MARKERS), picture.samples[label].numel() - len(x)
        look = {"color": colour, "marker": marker, "linestyle": "none", **DOTS}
        axes.plot(x[kept], y[kept], **look)
        entries.append((look, f"{label[:_LONGEST]}: n = {len(x):,}" + (f", {lost:,} not finite" if lost else "")))
    write_key(axes, 0.02, 0.95, entries)  # left of the median a sorted sample lies below it: always free
    return figure


def _standardise(sample: Tensor) -> tuple[Array, Array] | str:
    """Normal quantiles and the values that lie there, both ascending, or the reason why there are none."""
    values = numbers(sample).ravel()
    values = np.sort(values[np.isfinite(values)]) / 2  # a difference of halves cannot overflow
    if len(values) < 3:
        return "fewer than 3 finite values"
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    spread = (high - low) / 2 / _NORMAL_QUARTILE
    if not spread > 0:
        return "half of its values are equal"
    share = (torch.arange(1, len(values) + 1, dtype=torch.float64) - 0.5) / len(values)
    with np.errstate(over="ignore"):
        standard = (values - middle) / spread
    return torch.special.ndtri(share).numpy(), np.clip(standard, -LARGEST, LARGEST)


def _scale_quantiles(axes: Axes, reach: float, values: Array) -> None:
    low, high = min(-reach, float(values.min())), max(reach, float(values.max()))
    axes.set_xlim(-reach, reach)
    across = range(-math.floor(reach), math.floor(reach) + 1)
    axes.set_xticks(across, [f"{tick}" for tick in across], **LETTERS)
    axes.set_xlabel("quantile of a normal distribution, standard deviations", labelpad=3, **LETTERS)
    if max(-low, high) > FAR:
        ticks, words = _scale_far(axes, low, high), f"standardised value (logarithmic beyond {LINEAR:g})"
    else:
        axes.set_ylim(1.04 * low, 1.04 * high)
        ticks, words = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(low, high), "standardised value"
    ticks = [tick for tick in ticks if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], **LETTERS)
    axes.minorticks_off()
    axes.set_ylabel(words, labelpad=6, **LETTERS)


def _scale_far(axes: Axes, low: float, high: float) -> list[float]:
    """Give the middle a third of the height, however far the values lie; return places for ticks."""
    decades = math.log10(max(-low, high) / LINEAR)
    axes.set_yscale("symlog", linthresh=LINEAR, linscale=max(1.0, decades / 2))
    room = 10.0 ** (0.04 * decades)
    axes.set_ylim(room * low, room * high)
    every, digits = stride(decades, 4), (1, 3) if decades < 1.5 else (1,)
    powers = [digit * 10.0**power for power in range(every, math.ceil(decades) + 2, every) for digit in digits]
    return [*(-power for power in reversed(powers)), -LINEAR, 0.0, LINEAR, *powers]


def _draw_diagonal(axes: Axes, reach: float) -> None:
    line = np.linspace(-reach, reach, 201)  # bends where the axis turns logarithmic
    axes.plot(line, line, color=PALE, linestyle="--", linewidth=1.4, marker="", zorder=1)
    axes.text(1.01, reach, "normal", transform=axes.get_yaxis_transform(), va="center", **{**LETTERS, "color": PALE})


SMALLEST = 0.01
"""The smallest hundredth may lie left of the picture: towards zero it can be decades wide, and tells nothing."""

_DATA = {"color": BLUE, "marker": "o", "linestyle": "none", **DOTS}
_LAW = {"color": ORANGE, "linestyle": "-", "linewidth": 1.8, "marker": ""}
_NORMAL = {"color": PALE, "linestyle": "--", "linewidth": 1.4, "marker": ""}


def draw_survival_plot(picture: SurvivalPlot) -> Figure:
    """Draw the share of the magnitudes that reach each value, both logarithmic, with two lines to compare.

    One is the power law fitted to the tail, if any; the other is what normal values whose magnitudes have the same
    median would give. Magnitudes that are zero or not finite are left out; a note says how many.

    Example:
        >>> picture = SurvivalPlot(5, torch.linspace(1, 2, 99), 2.34, 10, "Title", "Read it so.")
        >>> [text.get_text() for text in draw_survival_plot(picture).axes[0].texts]
        ['step 5: n = 99', 'measured', 'power law, index 2.3', 'normal with the same median']
    """
    figure, axes = open_sheet(picture.title, picture.reading, height=3.6, left=0.95)
    values = numbers(picture.magnitudes).ravel()
    places = np.log10(np.sort(values[np.isfinite(values) & (values > 0)]))
    count = len(places)
    note = f"step {picture.step:,}: n = {count:,}"
    note += f", {len(values) - count:,} left out: zero or not finite" if count < len(values) else ""
    if not count or places[0] == places[-1]:
        write_note(axes, note)
        say_nothing_to_show(axes, "all magnitudes are equal" if count else "no positive finite magnitude")
        return figure
    shares = np.log10(np.arange(count, 0, -1) / count)
    outside = _scale_survival(axes, places, shares)
    write_note(axes, note + (f"; {outside:,} smaller ones left of the picture" if outside else ""))
    kept = np.union1d(thin(places, MARKERS // 2), thin(-shares, MARKERS // 2))
    entries = [(_DATA, "measured", places[kept], shares[kept])]
    if math.isfinite(picture.index) and 0 < picture.tail < count:
        entries.append((_LAW, f"power law, index {_index(picture.index)}", *_power_law(picture, places)))
    entries.append((_NORMAL, "normal with the same median", *_normal(axes, float(np.median(places)))))
    for look, _, x, y in entries:
        axes.plot(x, y, **look)
    write_key(axes, *_free_corner(axes, entries), [(look, words) for look, words, _, _ in entries])
    return figure


def _index(index: float) -> str:
    return f"{index:.1f}" if abs(index) >= 0.1 else f"{index:.2g}"


def _power_law(picture: SurvivalPlot, places: Array) -> tuple[Array, Array]:
    """From the threshold, where the share of the tail is left, to the largest value."""
    x = np.linspace(places[-picture.tail - 1], places[-1], 50)
    return x, math.log10(picture.tail / len(places)) - picture.index * (x - x[0])


def _normal(axes: Axes, median: float) -> tuple[Array, Array]:
    """P(|Z| > x) for a normal Z whose magnitude has this median, within the axes."""
    left, right = axes.get_xlim()
    scale = median - math.log10(_NORMAL_QUARTILE)
    x = np.concatenate([[left], np.linspace(max(left, scale - 3), scale + 1.5, 1000)])  # 30 deviations are 10^-197
    beyond = torch.special.log_ndtr(-torch.from_numpy(10.0 ** (x - scale))).numpy()
    y = (math.log(2) + beyond) / math.log(10)
    is_inside = (left <= x) & (x <= right) & (axes.get_ylim()[0] <= y)
    return x[is_inside], y[is_inside]


def _scale_survival(axes: Axes, places: Array, shares: Array) -> int:
    """Set limits and ticks; return how many values lie left of them."""
    left = float(places[int(SMALLEST * len(places))])
    width, height = max(float(places[-1]) - left, 0.02), float(-shares[-1])
    axes.set_xlim(left - 0.03 * width, float(places[-1]) + 0.05 * width)
    axes.set_ylim(-1.05 * height, 0.05 * height)
    ticks = _ticks(*axes.get_xlim())
    axes.set_xticks(list(ticks), list(ticks.values()), **LETTERS)
    ticks = {place: words for place, words in _ticks(*axes.get_ylim()).items() if place <= 0}
    axes.set_yticks(list(ticks), list(ticks.values()), **LETTERS)
    axes.set_xlabel("magnitude (log scale)", labelpad=3, **LETTERS)
    axes.set_ylabel("share that exceeds it (log scale)", labelpad=6, **LETTERS)
    return int((places < axes.get_xlim()[0]).sum())


def _ticks(low: float, high: float) -> dict[float, str]:
    """Decimal logarithms between two others, and the words for each: decades, or what lies between them.

    Example:
        >>> _ticks(-0.1, 1.2)
        {0.0: '1', 0.3010299956639812: '2', 0.6989700043360189: '5', 1.0: '10'}
    """
    first, last = math.floor(low), math.ceil(high)
    if high - low > 2.5:
        marks = [(1.0, power) for power in range(first, last + 1) if power % stride(high - low, 7) == 0]
    else:
        marks = [(digit, power) for power in range(first, last + 1) for digit in (1.0, 2.0, 5.0)]
        if sum(low <= math.log10(digit) + power <= high for digit, power in marks) < 3:
            between = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(10 ** (low - first), 10 ** (high - first))
            marks = [(digit, first) for digit in between if digit > 0]
    ticks = {math.log10(digit) + power: _word(digit, power) for digit, power in marks}
    return {place: word for place, word in ticks.items() if low <= place <= high}


def _word(digit: float, power: int) -> str:
    return f"{digit * 10.0**power:g}" if -5 < power < 6 else f"{digit:g}e{power}"


def _free_corner(axes: Axes, entries: Sequence[tuple[object, str, Array, Array]]) -> tuple[float, float]:
    """Left end and top of the key: at the lower left or, where a curve is hollow, at the upper right."""
    points = np.concatenate([np.column_stack([x, y]) for _, _, x, y in entries])
    x, y = axes.transAxes.inverted().transform(axes.transData.transform(points)).T
    lower, upper = ((x < 0.43) & (y < 0.2)).sum(), ((x > 0.57) & (y > 0.8)).sum()
    return (0.02, 0.15) if lower <= upper else (0.62, 0.96)
