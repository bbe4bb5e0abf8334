"""Two simpler rules, which keep the weights at the stop."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from lightning_cx.functional import stopping
from lightning_cx.instruments import quantities
from lightning_cx.rules.base import Curve, StoppingRule


class _Simple(StoppingRule):
    """A tracker that needs no more than coefficients, as a rule."""

    keeps_best = False
    _kind: type[stopping.DominanceTracker] | type[stopping.WhitenessTracker]

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(patience={self.patience})"

    def reset(self) -> None:
        self._tracker = self._kind(self.patience)

    def check(self, coefficients: Tensor, step: int) -> stopping.Decision:
        del step
        return self._tracker.check(coefficients)

    def state_dict(self) -> dict[str, Any]:
        return self._tracker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._tracker.load_state_dict(state)


@final
class HighComplexityDominance(_Simple):
    """Stops when most of what is learned is complex, while nothing simple is left to learn.

    Close to what its name says, and blind to how much noise there is (`functional.stopping.DominanceTracker`);
    `SpectralRisk` came nearer to the best test error on most tasks.

    Args:
        patience: Checks in a row.

    Raises:
        ValueError: If `patience` is not positive.

    References:
        THEORY sections 4 and 5.
    """

    _kind = stopping.DominanceTracker

    def __init__(self, patience: int = 3) -> None:
        super().__init__(patience)

    @property
    def curve(self) -> Curve:
        return Curve(
            quantities.STOPPING_DOMINANCE,
            "share of what is learned that is complex",
            "When to stop: is what the network learns now simple or complex?",
            "Below one half mostly simple functions are learned. Above it, once nothing simple is left, it is noise.",
            is_share=True,
        )


@final
class ResidualWhiteness(_Simple):
    """Stops when what is left of the target can no longer be told from white noise.

    The simplest of the rules, which needs no history (`functional.stopping.WhitenessTracker`). Where the target sits in
    a handful of functions it stops early, since their rest drowns among the others.

    Args:
        patience: Checks in a row.

    Raises:
        ValueError: If `patience` is not positive.

    References:
        THEORY section 5; Hansen, Kilmer & Kjeldsen 2006 for the idea.
    """

    _kind = stopping.WhitenessTracker

    def __init__(self, patience: int = 2) -> None:
        super().__init__(patience)

    @property
    def curve(self) -> Curve:
        return Curve(
            quantities.STOPPING_WHITE_P,
            "p-value of a white residual",
            "When to stop: does what is left of the target look like noise?",
            "Near 0 something simple is left to learn. Above .05 what is left is not distinguishable from noise.",
            is_share=True,
        )
