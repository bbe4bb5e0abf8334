"""Short visits: a place in which the path dwelt for long is known again when the path comes by for a few blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from lightning_cx.functional.trajectories.diffusion import MIN_BLOCKS, Array, growth_exponent, is_confined
from lightning_cx.functional.trajectories.segments import EXIT_BLOCKS, EXIT_DEVIATIONS, Span, place

VISIT = EXIT_BLOCKS
"""So many blocks in a place that is known are a visit, if one of them lies in its core."""

CORE_DEVIATIONS = 1.0
"""The core of a place holds three quarters of its own blocks: an excursion may come as near as its border."""

KNOWN = 2 * MIN_BLOCKS
"""A place is known from a dwell of so many blocks: shorter ones may be a halt on the way. In a first version of this
rule 20 visits beside 674 passages of a double well were made up with these, and 8 without."""

TRAVEL = 2 * MIN_BLOCKS
"""A path that needs longer from one known place to another has drifted off, unless the dwells there show a jump."""

HELD = 0.5
"""A dwell of which so much lies in known places is divided among them."""

Stay: TypeAlias = tuple[Span, bool]  # where, and whether it ended with a jump to the next


class _Part(NamedTuple):
    """Of the path, in one place."""

    label: int  # of the place, -1 if it is not known
    first: int
    last: int  # the block after it
    dwell: int = -1  # number of the dwell that it is, or is part of


def with_visits(blocks: Array, stays: Sequence[Stay]) -> list[Stay]:
    """Add the times for which the path was in the place of one of its dwells, too short for a dwell of their own.

    A few blocks alone cannot be told from an excursion. In a place in which the path is known to dwell they can: each
    block belongs to the nearest place within whose limit it lies (median and 6 median absolute deviations of the
    distances of its own blocks). A place that the path passes while it drifts is not visited.

    Args:
        blocks: ``[n, k]`` block means, finite.
        stays: Dwells in order of time, and whether each was left for the next.

    Returns:
        Dwells and visits in order of time. The dwells alone where no two places can be told block by block.
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


def _is_left(here: _Part, there: _Part, stays: Sequence[Stay]) -> bool:
    """Whether the path jumped from one to the next."""
    if here.label == there.label >= 0:
        return False
    is_near = min(here.label, there.label) >= 0 and there.first - here.last <= TRAVEL
    return is_near or (0 <= here.dwell == there.dwell - 1 and stays[here.dwell][1])


def _joined(blocks: Array, found: Sequence[_Part]) -> list[_Part]:
    """Leave out places that the path only passes, and join what goes on in one place."""
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


def _divided(dwell: _Part, where: np.ndarray, is_core: np.ndarray) -> list[_Part]:
    """A dwell, divided where the path was in the place of another one."""
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


def _places(blocks: Array, stays: Sequence[Stay]) -> tuple[list[int], list[Array]]:
    """Number of the place of each dwell, -1 where it is not known, and the blocks from which each place is known."""
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
    """Centres and limits of some places."""
    centers, limits = zip(*(place(members, deviations) for members in places), strict=True)
    return np.array(centers), np.array(limits)


def _of_blocks(blocks: Array, places: Sequence[Array]) -> tuple[np.ndarray, np.ndarray]:
    """The place of each block, -1 for none, and whether it lies in the core of that place."""
    centers, limits = _centers(places, EXIT_DEVIATIONS)
    cores = _centers(places, CORE_DEVIATIONS)[1]
    distances = np.stack([np.linalg.norm(blocks - center, axis=1) for center in centers])
    within = np.where(distances <= limits[:, None], distances, np.inf)
    where = within.argmin(0)
    is_core = distances[where, np.arange(len(blocks))] <= cores[where]
    return np.where(np.isfinite(within.min(0)), where, -1), is_core


def _runs(where: np.ndarray, is_core: np.ndarray, start: int, end: int) -> list[_Part]:
    """Times in one place within a part of the path, each with two blocks in a row there and one in the core."""
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
