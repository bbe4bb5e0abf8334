"""The data of the picture of a trajectory with its dwells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DwellTimeline:
    """How far training was from where it began, and when it dwelt in one place.

    Attributes:
        steps: Step of each point of the path, length S, ascending.
        distances: Distance from where the path began, [S]; non-finite ones are left out.
        dwells: First and last step of each dwell, distance of its centre from the beginning, and whether it was left by
            a jump.
        title: One line for the picture.
        reading: One sentence that says how to read it.
    """

    steps: Sequence[int]
    distances: Tensor
    dwells: Sequence[tuple[int, int, float, bool]]
    title: str
    reading: str
