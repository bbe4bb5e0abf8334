"""When to stop without a validation set: rules on the residual of fixed training examples, in order of complexity."""

from lightning_cx.functional.stopping.decision import Decision, RiskCurve
from lightning_cx.functional.stopping.noise_floor import NoiseFloor, noise_floor, target_is_ordered
from lightning_cx.functional.stopping.order import (
    TargetOrder,
    basis_by_name,
    calm_noise,
    description_length,
    gaussian_basis,
    order_of_target,
)
from lightning_cx.functional.stopping.simple_rules import (
    WINDOW,
    DominanceTracker,
    WhitenessTracker,
    dominance,
    residual_whiteness,
)
from lightning_cx.functional.stopping.spectral_risk import RiskTracker, spectral_risk

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
    "calm_noise",
    "description_length",
    "dominance",
    "gaussian_basis",
    "noise_floor",
    "order_of_target",
    "residual_whiteness",
    "spectral_risk",
    "target_is_ordered",
]
