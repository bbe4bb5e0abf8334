"""When a noisy training loss first reaches a level, and which levels several runs have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_cx.tensorboard.run_logs import Curve
from lightning_cx.tensorboard.shares import Array

SMOOTHING = 5
"""Logged losses whose running median is followed: one batch that is easy by chance is no crossing."""

LEVELS = 3
"""Training losses at which runs are compared where none are given."""

_SPREAD = 1.4826  # of a normal law's standard deviation over its median absolute deviation


@dataclass(frozen=True)
class Fall:
    """How a training loss fell.

    Attributes:
        steps: Step numbers, ascending.
        values: The loss without its noise, never rising, as far as its lowest point.
        noise: Standard error of a running median of 5, from how far the logged values lie from it.
    """

    steps: Array
    values: Array
    noise: float

    @property
    def start(self) -> float:
        """The first value."""
        return float(self.values[0])

    @property
    def best(self) -> float:
        """The lowest value."""
        return float(self.values[-1])

    def crossing(self, level: float) -> float:
        """Step at which the loss first is at or below a level, between two logged ones; nan if it never is."""
        below = np.flatnonzero(self.values <= level)
        if not len(below):
            return math.nan
        after = int(below[0])
        if after == 0:
            return float(self.steps[0])
        high, low = self.values[after - 1], self.values[after]
        share = (high - level) / (high - low)
        return float(self.steps[after - 1] + share * (self.steps[after] - self.steps[after - 1]))

    def while_at(self, level: float) -> tuple[float, float]:
        """First steps at which the loss is a standard error above a level, and one below; inf if it never is."""
        late = self.crossing(level - self.noise)
        return self.crossing(level + self.noise), late if math.isfinite(late) else math.inf


def fall_of(loss: Curve) -> Fall:
    """Take the noise out of a logged loss: a running median, and the falling curve that is nearest to it.

    The median is of 5 values, of fewer towards the ends so that it does not lag, and takes single outliers out. Where
    noise makes it cross a level many times, the first crossing would come too early, so it is fitted by least squares
    under the condition that it never rises.
    """
    steps, values = loss
    last = len(values) - 1
    reach = [min(SMOOTHING // 2, i, last - i) for i in range(last + 1)]  # as far back as ahead
    smooth = np.array([np.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)])
    noise = _SPREAD * float(np.median(np.abs(values - smooth))) / math.sqrt(SMOOTHING)
    end = int(smooth.argmin()) + 1
    return Fall(steps[:end], _never_rising(smooth[:end]), noise)


def _never_rising(values: Array) -> Array:
    """Least squares under monotonicity: neighbours that rise are pooled into their mean until none does."""
    means: list[float] = []
    counts: list[int] = []
    for value in map(float, values):
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-2] < means[-1]:
            mean, count = means.pop(), counts.pop()
            means[-1] += (mean - means[-1]) * count / (count + counts[-1])
            counts[-1] += count
    return np.repeat(means, counts)


def common_levels(
    falls: Mapping[str, Fall], given: Sequence[float] | None = None
) -> tuple[list[float], dict[str, str]]:
    """Choose levels of the loss that all runs went through, and say which runs are left out.

    Args:
        falls: The loss of each run.
        given: Levels to compare at; None takes 3 in equal ratios down to the lowest that all runs reached. Where the
            runs have no range in common, the one whose best loss is the highest is left out, and so on.

    Returns:
        Levels, falling, and for each run that is left out the reason.
    """
    if given is not None:
        levels = sorted({float(level) for level in given}, reverse=True)
        missed = {
            name: [level for level in levels if not fall.best <= level <= fall.start] for name, fall in falls.items()
        }
        why = "its loss went from {:.4g} to {:.4g} and never through {:.4g}"
        left = {name: why.format(falls[name].start, falls[name].best, of[0]) for name, of in missed.items() if of}
        return levels, left
    ranges, left = dict(falls), {}
    while len(ranges) > 1:
        start, best = min(fall.start for fall in ranges.values()), max(fall.best for fall in ranges.values())
        if best < start:
            return _between(start, best), left
        worst = max(ranges, key=lambda name: ranges[name].best)
        left[worst] = f"its loss never fell below {ranges.pop(worst).best:.4g}, and another run began no higher"
    return [], left | dict.fromkeys(ranges, "no other run is left to compare it with")


def _between(start: float, best: float) -> list[float]:
    shares = np.arange(1, LEVELS + 1) / LEVELS
    levels = start * (best / start) ** shares if best > 0 else start + (best - start) * shares
    return [*map(float, levels[:-1]), best]  # the last one exactly: a rounding error lower, and no run would reach it
