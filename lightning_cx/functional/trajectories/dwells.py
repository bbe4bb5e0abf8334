"""Dwelling: episodes in which the path of the parameters stays in one place, and escapes from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.trajectories.blocks import MOST_UNCONFINED, Blocks, PathBlocks, widths
from lightning_cx.functional.trajectories.diffusion import (
    MIN_BLOCKS,
    NULL_ERROR,
    Array,
    DiffusionExponent,
    diffusion_exponent,
    growth_exponent,
    is_confined,
    points,
)
from lightning_cx.functional.trajectories.segments import Span, Stay, place, segments, with_visits


@dataclass(frozen=True)
class Episode:
    """A time in which the path stayed in one place.

    Attributes:
        start: First sampled step.
        end: Last sampled step.
        center: Mean position, [k] float64.
        distance: Distance of the centre from that of the episode before; nan for the first.
        from_start: Distance of the centre from where the path began.
        exponent: Growth exponent of the mean squared displacement within, about 0; nan for fewer than 5 blocks.
        escaped: Whether it ended with a jump to another episode; False where it goes on or where the path drifted off.
    """

    start: int
    end: int
    center: Tensor
    distance: float
    from_start: float
    exponent: float
    escaped: bool

    @property
    def length(self) -> int:
        """Steps from its first to its last sample."""
        return self.end - self.start

    def __str__(self) -> str:
        moved = "" if math.isnan(self.distance) else f", {self.distance:.3g} from the one before"
        return f"steps {self.start} to {self.end} ({self.length} steps{moved}){': escaped' if self.escaped else ''}"


MIN_PATH = 16
"""Blocks of a path, at least: two dwells of the shortest length."""

LISTED = 20
"""Newest dwells that are listed in words."""


@dataclass(frozen=True)
class DwellReport:
    """Where a path dwelt.

    Attributes:
        episodes: Dwells in order of time; empty where the path wanders or drifts, or where too little is known.
        exponent: Growth exponent since the last jump (within the present dwell where there is one).
        blocks: Number of blocks of the path that were judged.
        width: Steps that a block spans. A dwell in a new place is seen from about 8 of these on, a visit to one that is
            known from 2 on. A single escape takes more: the dwell that was left must be told from a walk.
        end: Last sampled step.
        steps: Middle step of each block, [blocks].
        distances: Distance of each block from where the path began, [blocks] float64.
        reason: Why there is no episode; empty where there is one.
    """

    episodes: tuple[Episode, ...]
    exponent: DiffusionExponent
    blocks: int
    width: int
    end: int
    steps: Tensor
    distances: Tensor
    reason: str = ""

    @property
    def is_too_short(self) -> bool:
        """Whether there are fewer blocks than a judgement takes."""
        return self.blocks < MIN_PATH

    @property
    def escapes(self) -> int:
        """Jumps from one dwell to the next."""
        return sum(episode.escaped for episode in self.episodes)

    @property
    def present(self) -> Episode | None:
        """The dwell that goes on at the end of the path, or None."""
        return self.episodes[-1] if self.episodes and self.episodes[-1].end >= self.end else None

    def __str__(self) -> str:
        if not self.episodes:
            return f"no dwell: {self.reason}"
        count = f"{len(self.episodes)} dwell{'s' if len(self.episodes) > 1 else ''}, {self.escapes} escaped"
        listed = [f"  {episode}" for episode in self.episodes[-LISTED:]]
        earlier = [f"  {len(self.episodes) - LISTED} earlier"] if len(self.episodes) > LISTED else []
        return "\n".join([f"{count} (blocks of {self.width} steps)", *earlier, *listed])


FINEST = 16384
"""Blocks at most into which a path is divided at first."""


def dwell(sketches: Any, steps: Any = None, block: int | None = None) -> DwellReport:
    """Find the times in which training stays in one place, and the jumps by which it leaves for another.

    Means over blocks of steps are cut where two in a row lie beyond ``median + 6 MAD`` of the distances from the
    centre, and stretches that return, drift apart or lie no further from each other than free diffusion would carry
    them are put together again. A stretch is a dwell where its mean squared displacement grows with an exponent below
    .5, and all dwells together must be told from a random walk: a walk, a drift towards a minimum, and noise around
    one minimum have no escapes. Where a dwell was left for another, both places are known, and visits of two blocks to
    them are found too.

    Args:
        sketches: ``[T, k]`` positions, or ``[T]``; real. Distances are Euclidean: divide sketches of k random
            directions by sqrt(k). Rows that are not finite are left out.
        steps: ``[T]`` integer step numbers, strictly ascending; None counts from 0.
        block: Steps that a block spans, longer than the path takes to forget where it was within one place, and shorter
            than an eighth of a dwell. None: the finest that forget (the median squared displacement grows with an
            exponent below .5 from one block to four), of at most 16384; or wider ones, down to 256, where more escapes
            are seen in these: they average noise that hides a jump. At most 512 where none forget.

    Returns:
        DwellReport; without episodes, and with the reason, where there are fewer than 16 blocks.

    Raises:
        ValueError: If shapes do not fit, steps do not ascend, or `block` is below 1.

    References:
        Kramers 1940 for the time between escapes; THEORY, section 7, for the rule.

    Example:
        >>> noise = 0.1 * np.random.default_rng(0).standard_normal(300)
        >>> print(dwell(noise + (np.arange(300) >= 200)))
        2 dwells, 1 escaped (blocks of 1 steps)
          steps 0 to 199 (199 steps): escaped
          steps 200 to 299 (99 steps, 0.985 from the one before)
    """
    path = torch.from_numpy(points(sketches))
    numbers = torch.arange(len(path)) if steps is None else as_tensor(steps).detach().cpu().long()
    if numbers.shape != (len(path),) or bool((numbers.diff() <= 0).any()):
        raise ValueError(f"{len(path)} positions need as many ascending steps, got {list(numbers.shape)}.")
    collected = PathBlocks(limit=FINEST) if block is None else PathBlocks(block, limit=None)
    for step, position in zip(numbers.tolist(), path, strict=True):
        if bool(position.isfinite().all()):
            collected.add(step, position)
    return dwell_blocks(collected.blocks()) if block is None else _judged(collected.blocks())


def dwell_blocks(blocks: Blocks) -> DwellReport:
    """Find the dwells of a path of which block means are known, in these or wider blocks; `dwell` says how."""
    return max(map(_judged, widths(blocks)), key=lambda report: report.escapes)  # the first, and finest, of equal ones


def _judged(blocks: Blocks) -> DwellReport:
    """Find the dwells in blocks of this width."""
    n = len(blocks.means)
    if n < MIN_PATH:
        exponent = diffusion_exponent(blocks.means)
        return _report(blocks, (), exponent, f"{n} blocks of the path so far, {MIN_PATH} are needed")
    means = blocks.means / (float(np.abs(blocks.means).max()) or 1.0)  # squares of huge numbers are none any more
    spans = segments(means)
    found = _confirmed(means, spans)
    is_inside = bool(found) and found[-1].number == len(spans) - 1
    exponent = found[-1].exponent if is_inside else diffusion_exponent(_condensed(means[slice(*spans[-1])], n))
    if reason := _doubt(n, found):
        return _report(blocks, (), exponent, reason)
    left = _escapes(means, spans, found)
    stays = with_visits(means, [(dwell.span, gone) for dwell, gone in zip(found, left, strict=True)])
    if (newest := stays[-1][0]) != found[-1].span and newest[1] == n:
        exponent = diffusion_exponent(_condensed(means[slice(*newest)], n))
    return _report(blocks, _episodes(blocks, stays), exponent, "")


def _report(blocks: Blocks, episodes: tuple[Episode, ...], exponent: DiffusionExponent, reason: str) -> DwellReport:
    distances = np.linalg.norm(blocks.means - blocks.origin, axis=1)
    return DwellReport(
        episodes=episodes,
        exponent=exponent,
        blocks=len(blocks.means),
        width=blocks.width,
        end=int(blocks.last[-1]) if len(blocks.last) else 0,
        steps=torch.from_numpy((blocks.first + blocks.last) // 2),
        distances=torch.from_numpy(distances),
        reason=reason,
    )


_LATEST = (0.0, 0.5, 0.75)  # for the present one
_LATER = (0.0, 0.5)  # a stretch may have to settle before it is one: shares of it that are left out
_EDGE = 1  # blocks next to a jump belong to the way


def _confirmed(means: Array, spans: list[Span]) -> list[_Found]:
    """Select the stretches that are confined, from their beginning or from later on."""
    found: list[_Found] = []
    last = len(spans) - 1
    for number, (start, end) in enumerate(spans):
        for share in _LATEST if number == last else _LATER:
            begin = start + int(share * (end - start))
            if end - begin < MIN_BLOCKS:
                break
            inner = means[begin + (_EDGE if begin else 0) : end - (0 if number == last else _EDGE)]
            inner = _condensed(inner, len(means))
            exponent = growth_exponent(inner)
            if is_confined(exponent, len(inner)):
                found.append(_Found(number, (begin, end), exponent, len(inner)))
                break
    return found


class _Found(NamedTuple):
    number: int  # of the stretch
    span: Span  # where in it the dwell is
    exponent: DiffusionExponent
    points: int  # from which the exponent is


ENOUGH = 128
"""Points of which the exponent of a stretch is taken at least, where it has so many blocks: those of fewer say less."""


def _condensed(path: Array, of: int) -> Array:
    """Average part of a path over several blocks where it is long: less noise hides less drift."""
    each = max(1, min(-(-of // MOST_UNCONFINED), len(path) // ENOUGH))
    return path[: len(path) // each * each].reshape(-1, each, path.shape[1]).mean(1)


SHARE = 0.5
"""Of the path since the first dwell, so much lies within dwells at least: a walk that seems to stay now and then does
not."""


def _doubt(n: int, found: list[_Found]) -> str:
    """Return why what was found may be a walk; empty if it is none."""
    if not found:
        return "no stretch of the path stays in one place"
    if _is_like_a_walk(found):
        return "the path is too short to tell dwelling from wandering"
    if sum(dwell.span[1] - dwell.span[0] for dwell in found) < SHARE * (n - found[0].span[0]):
        return "most of the path lies in no place where it stays"
    return ""


SURE = 3.1
"""Standard errors of free diffusion that the exponent of all dwells together lies below 1: one walk in 1000."""


def _is_like_a_walk(found: list[_Found]) -> bool:
    """Test whether the exponents of some stretches, weighted by their points, are not too low for a random walk."""
    points = [dwell.points for dwell in found]
    exponent = np.average([dwell.exponent.value for dwell in found], weights=points)
    directions = np.average([dwell.exponent.directions for dwell in found], weights=points)
    return bool(exponent > 1 - SURE * NULL_ERROR / math.sqrt(sum(points) * directions))


def _escapes(means: Array, spans: list[Span], found: list[_Found]) -> list[bool]:
    """Decide which dwells were left for the next one by a jump.

    Not those after which the path drifted, nor where both dwells are some only after a time to settle, nor where the
    path wandered all the time along the line between them, hidden by the noise of other directions. And the dwells
    that were left must be told from a walk by themselves: the fall from the initial weights, too, seems to stay
    somewhere for a few blocks now and then, and what follows, however long, is no evidence that it did.
    """
    left = []
    for here, there in pairwise(found):
        is_late = [dwell.span[0] > spans[dwell.number][0] for dwell in (here, there)]
        is_next = there.number == here.number + 1
        left.append(is_next and not all(is_late) and _stay_apart(means, here.span, there.span))
    departures = [here for here, gone in zip(found, left, strict=False) if gone]
    if departures and _is_like_a_walk(departures):
        left = [False] * len(left)
    return [*left, False]


WITHIN_DEVIATIONS = 3.0
"""The centre of a dwell that lies no further from that of another than the median distance of its blocks along the line
between them, and so many median absolute deviations, is in the same place."""


def _stay_apart(means: Array, here: Span, there: Span) -> bool:
    """Test whether two dwells lie apart, and each is confined, along the line between their centres.

    A sixteenth of each is left out on either side: in many directions noise hides where the way begins and ends.
    """
    line = means[slice(*there)].mean(0) - means[slice(*here)].mean(0)
    along = means @ (line / (np.linalg.norm(line) or 1.0))
    edges = (max(_EDGE, (end - begin) // 16) for begin, end in (here, there))
    inner = [along[begin + edge : end - edge, None] for (begin, end), edge in zip((here, there), edges, strict=True)]
    if not np.linalg.norm(line) > max(place(path, WITHIN_DEVIATIONS)[1] for path in inner):
        return False  # as where weights freeze amid the noise and thaw again
    inner = [_condensed(path, len(means)) for path in inner]
    return all(is_confined(growth_exponent(path), len(path)) for path in inner)


def _episodes(blocks: Blocks, stays: list[Stay]) -> tuple[Episode, ...]:
    centers = [torch.from_numpy(blocks.means[slice(*span)].mean(0)) for span, _ in stays]
    distances = [math.nan, *(float((there - here).norm()) for here, there in pairwise(centers))]
    return tuple(
        Episode(
            start=int(blocks.first[begin]),
            end=int(blocks.last[end - 1]),
            center=center,
            distance=distance,
            from_start=float(np.linalg.norm(center.numpy() - blocks.origin)),
            exponent=growth_exponent(_condensed(blocks.means[begin:end], len(blocks.means))).value,
            escaped=gone,
        )
        for ((begin, end), gone), center, distance in zip(stays, centers, distances, strict=True)
    )
