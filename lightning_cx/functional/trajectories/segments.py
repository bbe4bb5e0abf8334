"""Where a path jumps beyond what free diffusion explains, and short visits to places where it dwelt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import gammaincinv, ndtr

from lightning_cx.functional.trajectories.diffusion import (
    MIN_BLOCKS,
    Array,
    effective_directions,
    growth_exponent,
    is_confined,
)

Span: TypeAlias = tuple[int, int]  # of blocks: the first, and the one after the last

WARM_UP = 4
"""Blocks whose mean is the first centre of a stretch; shorter stretches are travel."""


def segments(blocks: Array) -> list[Span]:
    """Cut a path where it jumps; what lies between two spans of blocks is travel.

    A stretch ends where two blocks in a row lie further from its centre than the median distance and 6 median absolute
    deviations; the path is read forwards and backwards, for a stretch that begins on the way has no centre. Then
    neighbours are put together, the least distinct first, as long as what lies between them is no jump: returns, and
    what noise, drift and free diffusion do.
    """
    n = len(blocks)
    cuts = {0, *_exits(blocks), *(n - cut for cut in _exits(blocks[::-1]))}
    cuts = {cut for cut in cuts if n - cut >= WARM_UP} | {0, n}  # too short to tell: it may come back yet
    stretches = [(span,) for span in pairwise(sorted(cuts)) if span[1] - span[0] >= WARM_UP]
    if not stretches:
        return [(0, n)] if n else []
    ratio_of = cache(partial(_jump_ratio, blocks))
    stretches = _merged(stretches, ratio_of)
    while short := [stretch for stretch in stretches[1:-1] if stretch[-1][1] - stretch[0][0] < MIN_BLOCKS]:
        stretches.remove(min(short, key=lambda stretch: stretch[-1][1] - stretch[0][0]))
        stretches = _merged(stretches, ratio_of)  # what lay on both sides of an excursion may be one place
    return [(stretch[0][0], stretch[-1][1]) for stretch in stretches]


def place(members: Array, deviations: float) -> tuple[Array, float]:
    """Return the centre of a stretch and the distance from it beyond which another block lies outside."""
    center = members.mean(0)
    distances = np.linalg.norm(members - center, axis=1)
    median, n = np.median(distances), len(members)
    # A new block lies further from a mean that it is no part of, by 29% for 4 members: in many directions, where
    # distances hardly vary, that alone would be an exit.
    outside = median * np.sqrt((n + 1) / (n - 1))
    return center, float(outside + deviations * np.median(np.abs(distances - median)))


EXIT_DEVIATIONS = 6.0
"""Median absolute deviations beyond the median distance from the centre; THEORY, section 7."""

EXIT_BLOCKS = 2
"""So many blocks in a row have to be beyond it; THEORY, section 7."""


def _exits(blocks: Array) -> list[int]:
    """Return the first block of each new stretch, by the rule of THEORY."""
    found: list[int] = []
    start, now, renew, center, limit = 0, WARM_UP, 0, blocks[:1].mean(0), 0.0
    while now + EXIT_BLOCKS <= len(blocks):
        if now >= renew:  # a centre of many blocks hardly changes with one more
            center, limit = place(blocks[start:now], EXIT_DEVIATIONS)
            renew = now + max(1, (now - start) // 8)
        if (np.linalg.norm(blocks[now : now + EXIT_BLOCKS] - center, axis=1) > limit).all():
            found.append(now)
            start, now, renew = now, now + WARM_UP, 0
        else:
            now += 1
    return found


Stretch: TypeAlias = tuple[Span, ...]  # what was put together, and perhaps left in between

_LONGEST_MEAN = 8  # blocks on each side of a jump that are averaged at most
_EDGE = 1  # blocks next to a jump belong to the way, not to the place


def _jump_ratio(blocks: Array, before: Stretch, after: Stretch) -> float:
    """Compute the squared jump from one stretch to the next over the largest that free diffusion explains.

    What counts is the smaller of two: the jump of the means of the nearest blocks, and that of the centres. Free
    diffusion is what either stretch shows within itself over the same lag, whichever shows more; where both are too
    short for that lag, it grows in proportion to it.
    """
    end, start = before[-1][1], after[0][0]
    short = min(end - before[0][0], after[-1][1] - start)
    wide = min(max(short // 2, 2), _LONGEST_MEAN)
    edge = _EDGE if short >= MIN_BLOCKS else 0
    lag = wide + start - end + 2 * edge
    here, there = blocks[end - edge - wide : end - edge].mean(0), blocks[start + edge : start + edge + wide].mean(0)
    centers = _center(blocks, reversed(before), before) - _center(blocks, after, after)
    jump = min(float(np.square(there - here).sum()), float(np.square(centers).sum()))
    moves = [found for stretch in (before, after) if (found := _moves(blocks, stretch, wide, lag)) is not None]
    if not moves:
        return 0.0
    reach = max(reached for _, reached in moves)
    largest = max(_largest_square(move) for move, _ in moves) * lag / reach
    return jump / largest if largest > 0 else np.inf if jump > 0 else 0.0


def _center(blocks: Array, nearest_first: Iterable[Span], stretch: Stretch) -> Array:
    """Return the centre of the nearest part that is long enough: a mean over several places would lie between them."""
    long = (span for span in nearest_first if span[1] - span[0] >= MIN_BLOCKS)
    return blocks[slice(*next(long, (stretch[0][0], stretch[-1][1])))].mean(0)


def _moves(blocks: Array, stretch: Stretch, wide: int, lag: int) -> tuple[Array, int] | None:
    """Return moves of means of so many blocks over the lag, or the longest there is, within the parts of a stretch."""
    parts = [(span, min(lag, (span[1] - span[0] - wide) // 2)) for span in stretch if span[1] - span[0] >= MIN_BLOCKS]
    reach = max((reached for _, reached in parts), default=0)
    if reach < 1:
        return None
    moves = []
    for (start, end), reached in parts:
        if reached == reach:
            sums = np.cumsum(np.vstack([np.zeros((1, blocks.shape[1])), blocks[start:end]]), axis=0)
            means = (sums[wide:] - sums[:-wide]) / wide
            moves.append(means[reach:] - means[:-reach])
    return np.concatenate(moves), reach


JUMP_DEVIATIONS = 5.0
"""A jump is larger than free diffusion over the same time is but once in 1.7 million. Among 2000 random walks of 64 and
512 blocks in one dimension 258 and 80 of 1000 had a jump at 5, not one at 6 and among 400; none had a dwell
on both sides of it."""


def _largest_square(moves: Array) -> float:
    """Return the square of a move that normal ones exceed as rarely as one number exceeds `JUMP_DEVIATIONS`.

    A sum of squares over d equal directions is chi-squared with d degrees of freedom, and nearly so over unequal ones
    with d the effective number of them (Satterthwaite). Where one direction is far wider than the others, it alone
    makes the largest moves: then so many of its deviations on top of what the others add.
    """
    directions = effective_directions(moves)
    share = 1 - 2 * ndtr(-JUMP_DEVIATIONS)
    quantile = 2 * gammaincinv(directions / 2, share) / directions
    mean = float(np.square(moves).sum(1).mean())
    widest = float(np.linalg.norm(moves, 2)) ** 2 / len(moves)
    return max(mean * quantile, mean + (JUMP_DEVIATIONS**2 - 1) * widest)


def _merged(stretches: list[Stretch], ratio_of: Callable[[Stretch, Stretch], float]) -> list[Stretch]:
    """Merge neighbours, the least distinct first, until only jumps are left between them."""
    stretches = list(stretches)
    ratios = [ratio_of(*pair) for pair in pairwise(stretches)]
    while ratios:
        least = int(np.argmin(ratios))
        if ratios[least] > 1:
            break
        stretches[least : least + 2] = [stretches[least] + stretches[least + 1]]
        del ratios[least]
        for number in (least - 1, least):
            if 0 <= number < len(ratios):
                ratios[number] = ratio_of(stretches[number], stretches[number + 1])
    return stretches


Stay: TypeAlias = tuple[Span, bool]  # where, and whether it ended with a jump to the next

HELD = 0.5
"""A dwell of which so much lies in known places is divided among them."""


def with_visits(blocks: Array, stays: Sequence[Stay]) -> list[Stay]:
    """Add the times for which the path was in the place of one of its dwells, too short for a dwell of their own.

    A few blocks alone cannot be told from an excursion. In a place in which the path is known to dwell they can: each
    block belongs to the nearest place within whose limit it lies (median and 6 median absolute deviations of the
    distances of its own blocks). A place that the path passes while it drifts is not visited.
    """
    labels, places = _places(blocks, stays)
    if len(places) < 2:
        return list(stays)
    where, is_core = _of_blocks(blocks, places)
    found: list[_Part] = []
    at = 0
    for number, ((start, end), _) in enumerate(stays):
        if labels[number] >= 0 or np.mean(where[start:end] >= 0) < HELD:  # else it is made of several places
            found += _runs(where, is_core, at, start)
            found += _divided(_Part(labels[number], start, end, number), where, is_core)
            at = end
    found += _runs(where, is_core, at, len(blocks))
    found = _joined(blocks, found)
    left = [_is_left(here, there, stays) for here, there in pairwise(found)]
    return [((stay.first, stay.last), gone) for stay, gone in zip(found, [*left, False], strict=True)]


KNOWN = 2 * MIN_BLOCKS
"""A place is known from a dwell of so many blocks: shorter ones may be a halt on the way. In a first version of this
rule 20 visits beside 674 passages of a double well were made up with these, and 8 without."""

TRAVEL = 2 * MIN_BLOCKS
"""A path that needs longer from one known place to another has drifted off, unless the dwells there show a jump."""


def _places(blocks: Array, stays: Sequence[Stay]) -> tuple[list[int], list[Array]]:
    """Return the place of each dwell, -1 where it is not known, and the blocks from which each place is known."""
    left = [gone for _, gone in stays]
    known = [here or before for here, before in zip(left, [False, *left], strict=False)]
    if not any(known):
        return [-1] * len(stays), []
    centers, limits = _centers([blocks[slice(*span)] for span, _ in stays], EXIT_DEVIATIONS)
    lengths = [end - start for (start, end), _ in stays]
    labels, first_of = [-1] * len(stays), []  # the dwell from which each place is known
    for number in sorted(range(len(stays)), key=lambda n: -lengths[n]):
        apart = np.linalg.norm(centers[first_of] - centers[number], axis=1)
        near = np.flatnonzero(apart <= np.maximum(limits[first_of], limits[number]))
        if len(near):
            labels[number] = int(near[0])
        elif known[number] and lengths[number] >= KNOWN:
            labels[number] = len(first_of)
            first_of.append(number)
    # Noise in many directions may hide from single blocks what long means tell apart.
    hops = zip(pairwise(labels), pairwise(span for span, _ in stays), left, strict=False)
    blurred = {a for (a, b), (here, there), gone in hops if gone and a == b and there[0] - here[1] <= TRAVEL}
    kept = [n for n in range(len(first_of)) if n not in blurred]
    renamed = {n: number for number, n in enumerate(kept)}
    return [renamed.get(n, -1) for n in labels], [blocks[slice(*stays[first_of[n]][0])] for n in kept]


def _centers(places: Sequence[Array], deviations: float) -> tuple[Array, Array]:
    """Return centres and limits of some places."""
    centers, limits = zip(*(place(members, deviations) for members in places), strict=True)
    return np.array(centers), np.array(limits)


CORE_DEVIATIONS = 1.0
"""The core of a place holds three quarters of its own blocks: an excursion may come as near as its border."""


def _of_blocks(blocks: Array, places: Sequence[Array]) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of each block, -1 for none, and whether it lies in the core of that place."""
    centers, limits = _centers(places, EXIT_DEVIATIONS)
    cores = _centers(places, CORE_DEVIATIONS)[1]
    distances = np.stack([np.linalg.norm(blocks - center, axis=1) for center in centers])
    within = np.where(distances <= limits[:, None], distances, np.inf)
    where = within.argmin(0)
    is_core = distances[where, np.arange(len(blocks))] <= cores[where]
    return np.where(np.isfinite(within.min(0)), where, -1), is_core


class _Part(NamedTuple):
    """Of the path, in one place."""

    label: int  # of the place, -1 if it is not known
    first: int
    last: int  # the block after it
    dwell: int = -1  # number of the dwell that it is, or is part of


VISIT = EXIT_BLOCKS
"""So many blocks in a place that is known are a visit, if one of them lies in its core."""


def _runs(where: np.ndarray, is_core: np.ndarray, start: int, end: int) -> list[_Part]:
    """Find visits to one place within a part of the path, each with two blocks in a row there and one in the core."""
    known = start + np.flatnonzero(where[start:end] >= 0)
    runs: list[_Part] = []
    gaps = (np.diff(where[known]) != 0) | (np.diff(known) > MIN_BLOCKS)
    for members in np.split(known, np.flatnonzero(gaps) + 1):
        streak = np.split(members, np.flatnonzero(np.diff(members) > 1) + 1)
        if max(map(len, streak)) >= VISIT and is_core[members].any():
            run = _Part(int(where[members[0]]), int(members[0]), int(members[-1]) + 1)
            if runs and runs[-1].label == run.label and run.first - runs[-1].last < MIN_BLOCKS:
                run = run._replace(first=runs.pop().first)
            runs.append(run)
    return runs


def _divided(dwell: _Part, where: np.ndarray, is_core: np.ndarray) -> list[_Part]:
    """Divide a dwell where the path was in the place of another one."""
    is_own = where == dwell.label
    runs = _runs(where, is_core | is_own, dwell.first, dwell.last) if dwell.label >= 0 else []
    if all(run.label == dwell.label for run in runs):
        return [dwell]
    ends, starts = [dwell.first, *(run.last for run in runs)], [*(run.first for run in runs), dwell.last]
    parts: list[_Part] = []
    for number, run in enumerate(runs):
        before, after = ends[number], starts[number + 1]
        first, last = (before, after) if run.label == dwell.label else (run.first, run.last)
        first = before if number == 0 and first - before < MIN_BLOCKS else first
        last = after if number == len(runs) - 1 and after - last < MIN_BLOCKS else last
        if parts and parts[-1].label == run.label:
            first = parts.pop().first
        parts.append(_Part(run.label, first, last, dwell.dwell))
    return parts


def _joined(blocks: Array, found: Sequence[_Part]) -> list[_Part]:
    """Drop places that the path only passes, and join what goes on in one place."""
    near = [there.first - here.last <= TRAVEL for here, there in pairwise(found)]
    joined: list[_Part] = []
    for stay, *is_near in zip(found, [True, *near], [*near, True], strict=True):
        if stay.dwell < 0 and not all(is_near) and not _stays(blocks[stay.first : stay.last]):
            continue
        last = joined[-1] if joined else stay
        goes_on = last.label == stay.label >= 0 and stay.first - last.last <= TRAVEL
        if joined and goes_on and min(last.dwell, stay.dwell) < 0:
            joined[-1] = _Part(stay.label, last.first, stay.last, max(last.dwell, stay.dwell))
        else:
            joined.append(stay)
    return joined


def _stays(path: Array) -> bool:
    return len(path) >= MIN_BLOCKS and is_confined(growth_exponent(path), len(path))


def _is_left(here: _Part, there: _Part, stays: Sequence[Stay]) -> bool:
    """Test whether the path jumped from one to the next."""
    if here.label == there.label >= 0:
        return False
    is_near = min(here.label, there.label) >= 0 and there.first - here.last <= TRAVEL
    return is_near or (0 <= here.dwell == there.dwell - 1 and stays[here.dwell][1])
