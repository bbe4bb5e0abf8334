"""When to stop without a validation set: rules on the residual of fixed training examples."""

from lightning_cx.functional.stopping.effective_rates import Preconditioner, preconditioner
from lightning_cx.functional.stopping.gradient_sketch import WIDTH as GRADIENT_WIDTH
from lightning_cx.functional.stopping.gradient_sketch import GradientSketch
from lightning_cx.functional.stopping.leave_one_out_rule import LeaveOneOutTracker, left_out_errors
from lightning_cx.functional.stopping.path_leave_one_out import (
    LeaveOneOut,
    LeaveOneOutCurve,
    LeaveOneOutPath,
    path_leave_one_out,
)
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
    "GRADIENT_WIDTH",
    "WINDOW",
    "Decision",
    "DominanceTracker",
    "GradientSketch",
    "LeaveOneOut",
    "LeaveOneOutCurve",
    "LeaveOneOutPath",
    "LeaveOneOutTracker",
    "NoiseFloor",
    "Preconditioner",
    "RiskCurve",
    "RiskTracker",
    "TargetOrder",
    "WhitenessTracker",
    "basis_by_name",
    "dominance",
    "left_out_errors",
    "noise_floor",
    "order_of_target",
    "path_leave_one_out",
    "preconditioner",
    "residual_whiteness",
    "spectral_risk",
    "target_is_ordered",
]
