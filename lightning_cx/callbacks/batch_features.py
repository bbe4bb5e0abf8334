"""Features of a training batch, for the instruments that order its examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_cx.callbacks.failures import Failures
from lightning_cx.instruments import Needs
from lightning_cx.probe import ProbeSet

FEATURES = "features of a batch"


class BatchFeatures:
    """Finds the features of a batch where an instrument needs them.

    Args:
        probe: The probe, whose rule for features holds for batches too.
        needs: What the instruments want.
        failures: Where refusals are told.
    """

    def __init__(self, probe: ProbeSet, needs: Sequence[Needs], failures: Failures) -> None:
        self._probe = probe
        self._wanted = any(need.features for need in needs)
        self._failures = failures

    def read(self, batch: Any, examples: int) -> Tensor | None:
        """Features [N, d], or None where nothing needs them or they cannot be had; the reason was told."""
        if not self._wanted or self._failures.off(FEATURES):
            return None
        with self._failures.guard(FEATURES):  # the user's own code may run here
            try:
                return self._probe.features_of(batch, examples)
            except ValueError as refusal:
                self._failures.tell(f"the examples of a batch cannot be ordered by their inputs: {refusal}", FEATURES)
        return None
