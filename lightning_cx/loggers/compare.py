"""Compare runs where they have learned equally much: at the same training loss, never at the same step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lightning_cx.instruments import quantities
from lightning_cx.loggers.run_logs import Array, Curve, folder_of, read_curves

QUANTITIES: tuple[str, ...] = (
    quantities.TRAJECTORY_DISTANCE,
    quantities.TRAJECTORY_GROWTH,
    quantities.TRAJECTORY_TREE,
    quantities.TRAJECTORY_MAGNITUDE,
    quantities.TAIL_TRAJECTORY_XI,
)
"""What is compared where no tags are given, as far as a run has it."""


@dataclass(frozen=True)
class ComparedValue:
    """One quantity of one run at one training loss.

    Attributes:
        run: Log directory as it was given.
        loss: The training loss.
        step: Step at which the smoothed loss of the run first reached it, between two logged ones.
        tag: The quantity.
        value: Its value there, between two logged ones; nan where it was not logged that early or that late, or never.
        low: Lowest value while the loss was within its own noise (a standard error) of the level.
        high: Highest value meanwhile.
    """

    run: str
    loss: float
    step: float
    tag: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RunComparison:
    """Quantities of several runs at equal training loss; print it for a table.

    Attributes:
        loss_tag: Which loss was matched.
        losses: The training losses, falling.
        runs: The runs that reached all of them.
        tags: What is compared.
        rows: One value for each loss, quantity and run, in this order.
        left_out: Runs that are not compared, and why.
    """

    loss_tag: str
    losses: tuple[float, ...]
    runs: tuple[str, ...]
    tags: tuple[str, ...]
    rows: tuple[ComparedValue, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    def at(self, run: str, loss: float, tag: str) -> ComparedValue:
        """The value of one run, at one of `losses`.

        Raises:
            KeyError: If there is none.
        """
        for row in self.rows:
            if (row.run, row.loss, row.tag) == (run, loss, tag):
                return row
        raise KeyError(f"nothing of {run!r} at {self.loss_tag} {loss:g} under {tag!r}")

    def __str__(self) -> str:
        lines = [
            f"at equal {self.loss_tag}, never at equal step; in brackets: while the loss was that, within its noise"
        ]
        names = _short(self.runs)
        for loss in self.losses:
            here = [row for row in self.rows if row.loss == loss]
            steps = [f"{next(row.step for row in here if row.run == run):,.0f}" for run in self.runs if here]
            table = [(f"loss {loss:.4g}", *names), ("step", *steps)]
            table += [(tag, *(_cell(row) for row in here if row.tag == tag)) for tag in self.tags]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines.append("")
            for name, *cells in table:
                padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
                lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
        lines += [""] if self.left_out else []
        return "\n".join([*lines, *(f"left out: {run}: {why}" for run, why in self.left_out.items())])


def compare_runs(
    logdirs: Sequence[Path | str],
    tags: Sequence[str] | None = None,
    losses: Sequence[float] | None = None,
    loss_tag: str = quantities.TRAJECTORY_LOSS,
) -> RunComparison:
    r"""Compare runs where they fit their training data equally well: what differs then is not how far they have got.

    A run that trains faster is further along at every step, and all that grows with training looks larger in it. So
    runs are compared at levels of the training loss: each at the step where its loss, smoothed by a running median and
    a fit that never rises, first reaches the level. Step and quantity are interpolated linearly between what was
    logged.

    Args:
        logdirs: Folders of two or more runs, with TensorBoard event files or the `metrics.csv` of a CSVLogger.
        tags: What to compare; None takes the trajectory's quantities that any of the runs logged.
        losses: Levels of the training loss; None takes 3 within the range that all runs went through, down to the
            lowest, in equal ratios. A run that does not reach a level that is given is left out.
        loss_tag: The training loss to match. It has to be the same loss on comparable examples in all runs:
            `trajectory/training_loss` of the same probe, or your own.

    Returns:
        RunComparison. Runs that never reach a loss common with the others are named in `left_out`; the one that learned
        least goes first. A quantity is nan where a run did not log it before and after the crossing.

    Raises:
        ValueError: If there are fewer than two runs, one is named twice, a folder holds no log or several, none of the
            tags or no such loss was logged, a level is not finite, or fewer than two runs are left to compare.
        ImportError: If there are event files and tensorboard is not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, speed in (("slow", 1), ("fast", 2)):
        ...     (folder / name).mkdir()
        ...     lines = [f"{t},{2.0 ** -(speed * t)},{speed * t}" for t in range(9)]
        ...     _ = (folder / name / "metrics.csv").write_text("\n".join(["step,loss,length", *lines]))
        >>> found = compare_runs([folder / "slow", folder / "fast"], ["length"], [0.25], loss_tag="loss")
        >>> [round(row.value, 6) for row in found.rows]
        [2.0, 2.0]
    """
    names = [str(logdir) for logdir in logdirs]
    if len(names) < 2 or len({folder_of(Path(name)).resolve() for name in names}) < len(names):  # "a" and "a/" are one
        raise ValueError(f"a comparison takes two or more different runs, got {names}.")
    if losses is not None and (not len(losses) or not all(math.isfinite(level) for level in losses)):
        raise ValueError(f"levels of the loss are one or more finite numbers, got {list(losses)}.")
    curves = {name: read_curves(name) for name in names}
    wanted = _wanted(curves, tags)
    falls = {name: fall_of(_loss_of(name, curves, loss_tag)) for name in names}
    levels, left_out = common_levels(falls, losses)
    kept = [name for name in names if name not in left_out]
    if len(kept) < 2:
        reasons = "; ".join(f"{run}: {why}" for run, why in left_out.items())
        raise ValueError(f"fewer than two runs can be compared at equal {loss_tag}: {reasons}.")
    every = [(level, tag, name) for level in levels for tag in wanted for name in kept]
    rows = tuple(_compared(name, level, falls[name], tag, curves[name].get(tag)) for level, tag, name in every)
    return RunComparison(loss_tag, tuple(levels), tuple(kept), tuple(wanted), rows, left_out)


def _wanted(curves: dict[str, dict[str, Curve]], wanted: Sequence[str] | None) -> list[str]:
    there = {tag for of_run in curves.values() for tag in of_run}
    found = [tag for tag in (QUANTITIES if wanted is None else wanted) if tag in there]
    missing = [] if wanted is None else [tag for tag in wanted if tag not in there]
    if missing or not found:
        sought = f"logged {missing}" if missing else "logged a quantity of TrajectoryGeometry"
        raise ValueError(f"no run {sought}; give tags that are there: {', '.join(sorted(there))}.")
    return found


def _loss_of(name: str, curves: dict[str, dict[str, Curve]], loss_tag: str) -> Curve:
    if loss_tag not in curves[name]:
        shared = sorted(set.intersection(*(set(of_run) for of_run in curves.values())))
        raise ValueError(f"{name} did not log {loss_tag}; give a loss_tag, of those in all runs: {', '.join(shared)}.")
    return curves[name][loss_tag]


def _compared(name: str, level: float, fall: Fall, tag: str, curve: Curve | None) -> ComparedValue:
    step = fall.crossing(level)
    steps, values = curve or (np.zeros(1), np.full(1, math.nan))
    value = float(np.interp(step, steps, values, left=math.nan, right=math.nan))
    if math.isnan(value):
        return ComparedValue(name, level, step, tag, math.nan, math.nan, math.nan)
    early, late = fall.while_at(level)
    early, late = max(early, steps[0]), min(late, steps[-1])
    ends = np.interp([early, late], steps, values)
    meanwhile = np.concatenate([ends, [value], values[(steps >= early) & (steps <= late)]])
    return ComparedValue(name, level, step, tag, value, float(meanwhile.min()), float(meanwhile.max()))


def _cell(row: ComparedValue) -> str:
    if math.isnan(row.value):
        return "-"
    value, low, high = (f"{number:.4g}" for number in (row.value, row.low, row.high))
    return value if low == high == value else f"{value} ({low} to {high})"


def _short(runs: Sequence[str]) -> list[str]:
    """Names without the folders that all runs lie in."""
    parts = [Path(run).parts for run in runs]
    shared = 0
    while all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    return [str(Path(*own[shared:])) for own in parts]


SMOOTHING = 5
"""Logged losses whose running median is followed: one batch that is easy by chance is no crossing."""

LEVELS = 3
"""Training losses at which runs are compared where none are given."""

_SPREAD = 1.4826  # of a normal law's standard deviation over its median absolute deviation


@dataclass(frozen=True)
class Fall:
    """How a training loss fell."""

    steps: Array
    values: Array  # without noise, never rising, as far as the lowest point
    noise: float  # standard error of a running median of 5, from how far the logged values lie from it

    @property
    def start(self) -> float:
        return float(self.values[0])

    @property
    def best(self) -> float:
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
    """Choose levels of the loss, falling, that all runs went through, and say why other runs are left out.

    Without given ones, 3 in equal ratios down to the lowest that all runs reached. Where the runs have no range in
    common, the one whose best loss is the highest is left out, and so on.
    """
    if given is not None:
        levels = sorted({float(level) for level in given}, reverse=True)
        left: dict[str, str] = {}
        for name, fall in falls.items():
            missed = [level for level in levels if not fall.best <= level <= fall.start]
            if missed:
                left[name] = f"its loss went from {fall.start:.4g} to {fall.best:.4g} and never through {missed[0]:.4g}"
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
