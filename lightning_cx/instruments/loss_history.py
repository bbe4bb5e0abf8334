"""Losses on the probe since the start, thinned out as they become many."""

from __future__ import annotations

from typing import Any

KEPT = 512
"""Readings that are remembered at most; then every second one goes, and of the new ones every second is taken."""

READINGS_PER_TAIL = 8
"""A tail that is nearly the same gives nearly the same law: it is fitted again when an eighth is new."""


class LossHistory:
    """Remembers steps and losses, evenly spaced."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._stride, self._skipped, self._new = 1, 0, 0

    def add(self, step: int, loss: float) -> bool:
        """Take in one reading, and say whether there is enough new to look again."""
        if self._steps and step <= self._steps[-1]:  # a loop of one's own that counts anew
            self.__init__()
        self._skipped += 1
        if self._skipped < self._stride:
            return False
        self._skipped = 0
        self._steps.append(step)
        self._losses.append(loss)
        if len(self._steps) > KEPT:
            del self._steps[1::2], self._losses[1::2]
            self._stride *= 2
        self._new += 1
        if self._new * READINGS_PER_TAIL < len(self._steps):
            return False
        self._new = 0
        return True

    def latest(self, share: float) -> tuple[list[int], list[float]]:
        """Steps and losses of the latest share of the steps."""
        if not self._steps:
            return [], []
        begin = self._steps[-1] - share * (self._steps[-1] - self._steps[0])
        first = next(i for i, step in enumerate(self._steps) if step >= begin)
        return self._steps[first:], self._losses[first:]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        counts = [self._stride, self._skipped, self._new]
        return {"steps": list(self._steps), "losses": list(self._losses), "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._steps, self._losses = list(state["steps"]), list(state["losses"])
        self._stride, self._skipped, self._new = state["counts"]
