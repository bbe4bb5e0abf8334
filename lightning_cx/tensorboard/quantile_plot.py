"""The picture of a `QuantilePlot`: do the values lie as far out as normal ones would, or further?"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_cx.instruments import QuantilePlot
from lightning_cx.tensorboard.marks import DOTS, MARKERS, thin, write_key, write_note
from lightning_cx.tensorboard.shares import Array
from lightning_cx.tensorboard.sheet import LETTERS, PALE, open_sheet, say_nothing_to_show

LINEAR, FAR = 3.0, 8.0
"""Beyond `LINEAR` standard deviations the axis is logarithmic, where values further out than `FAR` need it."""

_NORMAL_QUARTILE = 0.6745
_CEILING = 1e290  # leaves the axis room before a double overflows
_LOOKS = (("#0072b2", "o"), ("#d55e00", "^"), ("#009e73", "s"), ("#cc79a7", "D"))  # Okabe and Ito
_LONGEST = 44  # characters of a label that fit into the left half


def draw_quantile_plot(picture: QuantilePlot) -> Figure:
    """Draw each sample, with its median and spread taken out, against the quantiles of a normal distribution.

    The spread is half the interquartile range over that of a normal distribution: heavy tails do not change it. A
    sample without one is left out; a note says which and why.

    Args:
        picture: The samples.

    Returns:
        The figure.

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
    _scale(axes, reach, np.concatenate([y for _, y in drawn.values()]))
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
    values = sample.detach().double().cpu().numpy().ravel()
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
    return torch.special.ndtri(share).numpy(), np.clip(standard, -_CEILING, _CEILING)


def _scale(axes: Axes, reach: float, values: Array) -> None:
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
    stride = next(stride for stride in (1, 2, 5, 10, 20, 50, 100) if decades <= 4 * stride)
    digits = (1, 3) if decades < 1.5 else (1,)
    powers = [digit * 10.0**power for power in range(stride, math.ceil(decades) + 2, stride) for digit in digits]
    return [*(-power for power in reversed(powers)), -LINEAR, 0.0, LINEAR, *powers]


def _draw_diagonal(axes: Axes, reach: float) -> None:
    line = np.linspace(-reach, reach, 201)  # bends where the axis turns logarithmic
    axes.plot(line, line, color=PALE, linestyle="--", linewidth=1.4, marker="", zorder=1)
    axes.text(1.01, reach, "normal", transform=axes.get_yaxis_transform(), va="center", **{**LETTERS, "color": PALE})
