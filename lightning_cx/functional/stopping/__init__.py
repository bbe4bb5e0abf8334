"""When to stop without a validation set: rules on the residual of fixed training examples."""

from lightning_cx.functional.stopping.simple_rules import (
    WINDOW,
    DominanceTracker,
    WhitenessTracker,
    dominance,
    residual_whiteness,
)
from lightning_cx.functional.stopping.spectral_risk import Decision, RiskCurve, RiskTracker, spectral_risk
from lightning_cx.functional.stopping.target import (
    NoiseFloor,
    TargetOrder,
    basis_by_name,
    noise_floor,
    order_of_target,
    target_is_ordered,
)

__all__ = [
    "WINDOW",
    "Decision",
    "DominanceTracker",
    "NoiseFloor",
    "RiskCurve",
    "RiskTracker",
    "TargetOrder",
    "WhitenessTracker",
    "basis_by_name",
    "dominance",
    "noise_floor",
    "order_of_target",
    "residual_whiteness",
    "spectral_risk",
    "target_is_ordered",
]
