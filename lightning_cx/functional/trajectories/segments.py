"""Where a path jumps: exits from the place where it is, as far as free diffusion would not explain them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from scipy.special import gammaincinv, ndtr

from lightning_cx.functional.trajectories.diffusion import MIN_BLOCKS, Array, effective_directions

Span: TypeAlias = tuple[int, int]  # of blocks: the first, and the one after the last
Stretch: TypeAlias = tuple[Span, ...]  # what was put together, and perhaps left in between

EXIT_DEVIATIONS = 6.0
"""Median absolute deviations beyond the median distance from the centre; THEORY, section 7."""

EXIT_BLOCKS = 2
"""So many blocks in a row have to be beyond it; THEORY, section 7."""

WARM_UP = 4
"""Blocks whose mean is the first centre of a stretch; shorter stretches are travel."""

JUMP_DEVIATIONS = 5.0
"""A jump is larger than free diffusion over the same time is but once in 1.7 million. Among 2000 random walks of 64 and
512 blocks in one dimension 258 and 80 of 1000 had a jump at 5, not one at 6 and among 400; none had a dwell
on both sides of it."""

_LONGEST_MEAN = 8  # blocks on each side of a jump that are averaged at most
_EDGE = 1  # blocks next to a jump belong to the way, not to the place


def segments(blocks: Array) -> list[Span]:
    """Cut a path where it jumps.

    A stretch ends where two blocks in a row lie further from its centre than the median distance and 6 median absolute
    deviations; the path is read forwards and backwards, for a stretch that begins on the way has no centre. Then
    neighbours are put together, the least distinct first, as long as what lies between them is no jump: returns, and
    what noise, drift and free diffusion do.

    Args:
        blocks: ``[n, k]`` block means, finite and of a size whose squares are normal doubles.

    Returns:
        Spans of blocks in order, at least one if there are any blocks; what lies between two of them is travel.
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


def _merged(stretches: list[Stretch], ratio_of: Callable[[Stretch, Stretch], float]) -> list[Stretch]:
    """Put neighbours together, the least distinct first, until only jumps are left between them."""
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


def _exits(blocks: Array) -> list[int]:
    """First block of each new stretch, by the rule of THEORY."""
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


def place(members: Array, deviations: float) -> tuple[Array, float]:
    """Centre of a stretch, and the distance from it beyond which another block lies outside."""
    center = members.mean(0)
    distances = np.linalg.norm(members - center, axis=1)
    median, n = np.median(distances), len(members)
    # A new block lies further from a mean that it is no part of, by 29% for 4 members: in many directions, where
    # distances hardly vary, that alone would be an exit.
    outside = median * np.sqrt((n + 1) / (n - 1))
    return center, float(outside + deviations * np.median(np.abs(distances - median)))


def _jump_ratio(blocks: Array, before: Stretch, after: Stretch) -> float:
    """Squared jump from one stretch to the next, over the largest that free diffusion explains.

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
    """Centre of the nearest part that is long enough: a mean over several places would lie between them."""
    long = (span for span in nearest_first if span[1] - span[0] >= MIN_BLOCKS)
    return blocks[slice(*next(long, (stretch[0][0], stretch[-1][1])))].mean(0)


def _moves(blocks: Array, stretch: Stretch, wide: int, lag: int) -> tuple[Array, int] | None:
    """How means of so many blocks move over the lag, or over the longest there is, within the parts of a stretch."""
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


def _largest_square(moves: Array) -> float:
    """Square of a move that normal ones exceed as rarely as one number exceeds `JUMP_DEVIATIONS`.

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
