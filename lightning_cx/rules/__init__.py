"""When to stop training without a validation set: rules on the residual of a fixed probe.

Rules know nothing of a Trainer. `ComplexityEarlyStopping` runs them in one; in a custom loop `ResidualStopper` shows a
rule what a `ProbeSet` reads:

    >>> import torch
    >>> from lightning_cx.probe import ProbeReading
    >>> from lightning_cx.rules import ResidualStopper, SpectralRisk
    >>> x = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    >>> noise = 0.5 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> target = torch.sin(3 * x) + noise
    >>> stopper = ResidualStopper(SpectralRisk())
    >>> for step in range(100):  # a fit that takes up the target first and then, slowly, the noise
    ...     residual = torch.sin(3 * x) * 0.8**step + noise * 0.98**step
    ...     decision = stopper.check(step, ProbeReading(target - residual, residual, features=x))
    ...     if decision.stop:
    ...         break
    >>> decision.stop, stopper.best_step < 30
    (True, True)
"""

from lightning_cx.rules.base import RefusedError, StoppingRule
from lightning_cx.rules.path_leave_one_out import Elapsed, PathLeaveOneOut, PathStopper
from lightning_cx.rules.residual_stopper import ResidualStopper, why_no_residual
from lightning_cx.rules.stopping_rules import HighComplexityDominance, ResidualWhiteness, SpectralRisk

__all__ = [
    "Elapsed",
    "HighComplexityDominance",
    "PathLeaveOneOut",
    "PathStopper",
    "RefusedError",
    "ResidualStopper",
    "ResidualWhiteness",
    "SpectralRisk",
    "StoppingRule",
    "why_no_residual",
]
