"""The rules: the estimated risk, which is the default, and two simpler ones, which keep the weights at the stop."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from lightning_cx.functional import stopping
from lightning_cx.instruments import quantities
from lightning_cx.rules.base import Curve, StoppingRule

TIE = 0.5
"""Risks closer than half a standard error cannot be told apart. Of two such checks the later decides labels better, the
earlier fits a regression better. Kept over best error with 0, .5 and 1, means of 6 to 10 seeds: spiral with flipped
labels 1.41, 1.20, 1.16; breast cancer 1.33, 1.39, 1.61; torus 1.11, 1.14, 1.21; plane 1.07, 1.09, 1.21."""


@final
class SpectralRisk(StoppingRule):
    """Stops when what is being fitted brings more noise than it takes away of the target; keeps the best weights.

    The complex functions of the target say how much noise it holds, the fitted fraction of each octave of complexity
    how much of that noise the network has taken up. Together they give an unbiased estimate of the squared error
    on fresh targets, without any data held out (`functional.stopping.RiskTracker`).

    Args:
        patience: Checks in a row at which the risk must lie above its minimum.
        z: Standard errors by which it must.
        doubling: Wait, besides, until twice as many steps have passed as up to the minimum.
        sigma2: Noise energy per example, added over outputs, where you know it; None estimates it.

    Raises:
        ValueError: If a number is out of range.

    References:
        THEORY section 5; Stein 1981.

    Example:
        >>> SpectralRisk(patience=5)
        SpectralRisk(patience=5, z=1.645, doubling=True, sigma2=None)
    """

    def __init__(
        self, patience: int = 10, z: float = 1.645, doubling: bool = True, sigma2: float | None = None
    ) -> None:
        self.patience, self.z, self.doubling, self.sigma2 = patience, z, doubling, sigma2
        self.reset()

    def __repr__(self) -> str:
        settings = f"patience={self.patience}, z={self.z}, doubling={self.doubling}, sigma2={self.sigma2}"
        return f"{type(self).__name__}({settings})"

    def reset(self) -> None:
        self._tracker = self._new_tracker(None)

    def begin(self, initial: Tensor, least_noise: float) -> None:
        self._tracker = self._new_tracker(least_noise if self.sigma2 is None else None)

    def _new_tracker(self, least_noise: float | None) -> stopping.RiskTracker:
        return stopping.RiskTracker(
            self.sigma2, self.z, self.patience, doubling=self.doubling, least_sigma2=least_noise, tie=TIE
        )

    def check(self, coefficients: Tensor, step: int) -> stopping.Decision:
        return self._tracker.check(coefficients, step)

    def rebase(self, initial: Tensor) -> None:
        self._tracker.rebase(initial)

    @property
    def past_best(self) -> bool:
        return self._tracker.certainly_past

    @property
    def curve(self) -> Curve:
        return Curve(
            quantities.STOPPING_RISK,
            "estimated squared error on fresh targets",
            "When to stop: estimated error on fresh targets of the same inputs",
            "The network improves as long as the curve falls. Where it rises beyond its band, more noise is fitted "
            "than target; the weights of the lowest point are kept. The noise itself is the least it can reach.",
            has_band=True,
        )

    def band(self, decision: stopping.Decision) -> tuple[float, float]:
        margin = self.z * decision.standard_error
        return decision.value - margin, decision.value + margin

    def state_dict(self) -> dict[str, Any]:
        return self._tracker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._tracker.load_state_dict(state)


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
