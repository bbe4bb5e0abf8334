"""How heavy the tail of the steps is that the parameters take."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional import hill, tails, xi_dedh

STEPS_KEPT = 1024
"""Tails are slow to show: 128 steps are the least, and the newest thousand narrow the interval threefold."""

STEPS_OF_A_SCALE = 33
"""Neighbouring steps that share a scale: a schedule may drop the step size at once, and each sketch of 64 numbers
tells its own within a tenth."""

EVERY = 16
"""New steps between two readings; fewer change nothing."""


class TrajectoryTail:
    """Remembers sketches of the newest parameter steps."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all steps."""
        self._increments: deque[Tensor] = deque(maxlen=STEPS_KEPT)
        self._new = 0

    def add(self, increment: Tensor) -> bool:
        """Take in one step and say whether a reading is due; a step that changed nothing was none."""
        increment = increment.detach().cpu()
        if bool((increment != 0).any()) and bool(increment.isfinite().all()):
            self._increments.append(increment)
            self._new += 1
        if self._new < EVERY or not self.ready:
            return False
        self._new = 0
        return True

    @property
    def ready(self) -> bool:
        """Whether there are enough steps to show a tail."""
        return len(self._increments) >= tails.MIN_SAMPLES

    def fits(self) -> tuple[tails.TailFit, tails.TailFit]:
        """Return xi and Hill's index of the steps held."""
        return tail_of_steps(torch.stack(list(self._increments)))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"increments": list(self._increments), "new": self._new}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.reset()
        self._increments.extend(state["increments"])
        self._new = state["new"]


def tail_of_steps(increments: Tensor) -> tuple[tails.TailFit, tails.TailFit]:
    """Return xi and Hill's index of the norms of steps [n, k], less their mean and the drift of their scale."""
    level = tails.without_drift(increments, torch.arange(len(increments)), STEPS_OF_A_SCALE)
    norms = (level - level.mean(0)).norm(dim=1)
    return xi_dedh(norms), hill(norms)
