"""Tells the full batches from the rest of an epoch."""

from __future__ import annotations

SHORT_BATCH = 0.5  # a batch smaller than this share of the largest seen is passed over


class FullBatches:
    """Passes over a batch much smaller than others: a full one says more, and the next one is near.

    Attributes:
        owed: Whether a batch was passed over, so that the next one is due.
    """

    def __init__(self) -> None:
        self.owed = False
        self._largest = 0

    def take(self, examples: int) -> bool:
        """Whether a batch of so many examples is full; if not, one is owed.

        Example:
            >>> batches = FullBatches()
            >>> [batches.take(32), batches.take(3), batches.owed, batches.take(32), batches.owed]
            [True, False, True, True, False]
        """
        self._largest = max(self._largest, examples)
        self.owed = examples < SHORT_BATCH * self._largest
        return not self.owed

    def state_dict(self) -> dict[str, int]:
        """What has to survive a checkpoint, for a resumed run to sample the batches that an uninterrupted one would."""
        return {"owed": self.owed, "largest": self._largest}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up what `state_dict` gave."""
        self.owed, self._largest = bool(state["owed"]), state["largest"]
