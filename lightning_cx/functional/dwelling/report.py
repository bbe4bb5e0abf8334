"""What is known of a path: the places where it dwelt, and the jumps between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_cx.functional.dwelling.diffusion import DiffusionExponent

LISTED = 20
"""Newest dwells that are listed in words."""

MIN_PATH = 16
"""Blocks of a path, at least: two dwells of the shortest length."""


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
