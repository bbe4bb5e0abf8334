"""What instruments want of a training batch beside its gradients: features that order it, its targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_cx.batch import targets_of
from lightning_cx.callbacks.failures import Failures
from lightning_cx.instruments import Needs
from lightning_cx.probe import ProbeSet


class BatchPart:
    """Finds one row for each example in a batch, where an instrument needs it.

    Args:
        name: What is looked for.
        wanted: Whether anybody needs it.
        read: Finds it in a batch of so many examples; a `ValueError` says why it cannot be had.
        refusal: What is lost without it, in words.
        failures: Where refusals are told.
    """

    def __init__(
        self, name: str, wanted: bool, read: Callable[[Any, int], Tensor], refusal: str, failures: Failures
    ) -> None:
        self._name, self._wanted, self._read, self._refusal, self._failures = name, wanted, read, refusal, failures

    def read(self, batch: Any, examples: int) -> Tensor | None:
        """[N, d], or None where nothing needs it or it cannot be had; the reason was told."""
        if not self._wanted or self._failures.off(self._name):
            return None
        with self._failures.guard(self._name):  # the user's own code may run here
            try:
                return self._read(batch, examples)
            except ValueError as refusal:
                self._failures.tell(f"{self._refusal}: {refusal}", self._name)
        return None


def features_and_targets(probe: ProbeSet, needs: Sequence[Needs], failures: Failures) -> tuple[BatchPart, BatchPart]:
    """What is read of batches: features by the probe's rule, and targets by name or place."""
    unordered = "the examples of a batch cannot be ordered by their inputs"
    unknown = "the targets of a batch are not known"
    return (
        BatchPart("features of a batch", any(n.features for n in needs), probe.features_of, unordered, failures),
        BatchPart("targets of a batch", any(n.targets for n in needs), targets_of, unknown, failures),
    )
