"""Short visits: a place in which the path dwelt for long is known again when the path comes by for a few blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from lightning_cx.functional.dwelling.diffusion import MIN_BLOCKS, Array
from lightning_cx.functional.dwelling.segments import EXIT_BLOCKS, EXIT_DEVIATIONS, Span, place

VISIT = EXIT_BLOCKS
"""So many blocks in a place that is known are a visit, if one of them lies in its core."""

CORE_DEVIATIONS = 1.0
"""The core of a place holds three quarters of its own blocks: an excursion may come as near as its border."""

KNOWN = 2 * MIN_BLOCKS
"""A place is known from a dwell of so many blocks. From shorter ones, and some are no more than a halt on the way, 20
visits were made up beside 660 passages of a double well that are none; from these 8."""

TRAVEL = 2 * MIN_BLOCKS
"""A path that needs longer from one known place to another has drifted off, unless the dwells there show a jump."""

HELD = 0.5
"""A dwell of which so much lies in known places is divided among them."""

Stay: TypeAlias = tuple[Span, bool]  # where, and whether it ended with a jump to the next


class _Run(NamedTuple):
    label: int
    first: int
    last: int  # the block after it


def with_visits(blocks: Array, stays: Sequence[Stay]) -> list[Stay]:
    """Add the times for which the path was in the place of one of its dwells, too short for a dwell of their own.

    A few blocks alone cannot be told from an excursion. In a place in which the path is known to dwell they can: each
    block belongs to the nearest place within whose limit it lies (median and 6 median absolute deviations of the
    distances of its own blocks), and the path goes from place to place as its blocks do.

    Args:
        blocks: ``[n, k]`` block means, finite.
        stays: Dwells in order of time, and whether each was left for the next.

    Returns:
        Dwells and visits in order of time. The dwells alone where no two places can be told block by block.
    """
    dwells = [span for span, _ in stays]
    labels, places = _places(blocks, stays)
    if len(places) < 2:
        return list(stays)
    where, is_core = _of_blocks(blocks, places)
    for number, (start, end) in enumerate(dwells):
        if np.mean(where[start:end] >= 0) < HELD:  # it stays what it is
            where[start:end], is_core[start:end] = len(places) + number, True
        else:
            is_core[start:end] |= where[start:end] == labels[number]
    runs = _runs(where, is_core)
    spans, left = [list(run[1:]) for run in runs], [False] * len(runs)
    for (start, end), gone in stays:
        held = [number for number, run in enumerate(runs) if start < run.last and run.first < end]
        if held:
            spans[held[0]][0], spans[held[-1]][1] = min(spans[held[0]][0], start), max(spans[held[-1]][1], end)
            left[held[-1]] = gone
    for number, (here, there) in enumerate(pairwise(runs)):
        if max(here.label, there.label) < len(places):
            left[number] |= there.first - here.last <= TRAVEL
    return [((first, last), gone) for (first, last), gone in zip(spans, [*left[:-1], False], strict=True)]


def _places(blocks: Array, stays: Sequence[Stay]) -> tuple[list[int], list[Array]]:
    """Number of the place of each dwell, -1 where it is not known, and the blocks from which each place is known."""
    left = [gone for _, gone in stays]
    known = [here or before for here, before in zip(left, [False, *left], strict=False)]
    order = sorted(range(len(stays)), key=lambda n: stays[n][0][0] - stays[n][0][1])
    places: list[Array] = []
    labels = [-1] * len(stays)
    for number in order:
        members = blocks[slice(*stays[number][0])]
        near = [n for n, other in enumerate(places) if _is_within(members, other) or _is_within(other, members)]
        if near:
            labels[number] = near[0]
        elif known[number] and len(members) >= KNOWN:
            labels[number] = len(places)
            places.append(members)
    # Noise in many directions may hide from single blocks what long means tell apart.
    hops = zip(pairwise(labels), pairwise(span for span, _ in stays), left, strict=False)
    blurred = {a for (a, b), (here, there), gone in hops if gone and a == b and there[0] - here[1] <= TRAVEL}
    kept = [n for n in range(len(places)) if n not in blurred]
    return [kept.index(n) if n in kept else -1 for n in labels], [places[n] for n in kept]


def _is_within(members: Array, other: Array) -> bool:
    center, limit = place(other, EXIT_DEVIATIONS)
    return bool(np.linalg.norm(members.mean(0) - center) <= limit)


def _of_blocks(blocks: Array, places: Sequence[Array]) -> tuple[np.ndarray, np.ndarray]:
    """The place of each block, -1 for none, and whether it lies in the core of that place."""
    centers, limits = zip(*(place(members, EXIT_DEVIATIONS) for members in places), strict=True)
    cores = [place(members, CORE_DEVIATIONS)[1] for members in places]
    distances = np.stack([np.linalg.norm(blocks - center, axis=1) for center in centers])
    within = np.where(distances <= np.array(limits)[:, None], distances, np.inf)
    where = within.argmin(0)
    is_core = distances[where, np.arange(len(blocks))] <= np.array(cores)[where]
    return np.where(np.isfinite(within.min(0)), where, -1), is_core


def _runs(where: np.ndarray, is_core: np.ndarray) -> list[_Run]:
    """Times in one place, from the first to the last block there."""
    known = np.flatnonzero(where >= 0)
    runs: list[_Run] = []
    for members in np.split(known, np.flatnonzero(np.diff(where[known])) + 1):
        if len(members) >= VISIT and is_core[members].any():
            label, first, last = int(where[members[0]]), int(members[0]), int(members[-1]) + 1
            if runs and runs[-1].label == label:
                first = runs.pop().first
            runs.append(_Run(label, first, last))
    return runs
