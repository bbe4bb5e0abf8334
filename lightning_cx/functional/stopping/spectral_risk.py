"""Stop where fitting more adds more noise than it takes away of the target: an unbiased estimate of the risk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.complexity.basis import octave_bands
from lightning_cx.functional.complexity.residuals import fitted_fraction
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.stopping.target import degrees_of_freedom, noise_floor


@dataclass(frozen=True)
class Decision:
    """What a stopping rule says at one check.

    Attributes:
        stop: Whether training should end; the weights of `best_check` are then the ones to keep.
        best_check: Number of the check with the lowest value so far, from 0.
        reason: Why, in words.
        value: The value that the rule watches, at this check; nan where it could not be read.
        standard_error: Standard error of the difference between this value and the best; nan likewise.
    """

    stop: bool
    best_check: int
    reason: str
    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{'stop' if self.stop else 'go on'}: {self.reason}"


ONE_SIDED_95 = 1.645
_STATE = (
    "sigma2",
    "least_sigma2",
    "checks",
    "best_check",
    "lowest_step",
    "lowest_risk",
    "fitted",
    "_initial",
    "_lowest_fitted",
    "_lowest_spent",
    "_lowest_energy",
    "certainly_past",
    "_above",
)


class RiskTracker:
    """Follows the risk of a fit from check to check and says when it has certainly passed its minimum.

    The residual falls for ever while noise is fitted; the risk does not. With the fitted fraction s_b of each octave b
    of n_b functions and noise energy sigma^2 per function, Stein's unbiased estimate of the squared error against the
    noiseless target is ``R = (sum_k e_k + 2 sigma^2 sum_b n_b s_b) / L`` up to a constant. The rule fires when R has
    exceeded its minimum by more than z standard errors for `patience` checks in a row, while the residual itself is
    smaller than there.

    What a basis does not capture of a target looks like noise. With `least_sigma2`, a noise energy that is certainly
    there, R must exceed its minimum on that assumption as well: where noise is in doubt, training goes on.

    Only the initial coefficients and a few numbers are kept, however long the run.

    Args:
        sigma2: Noise energy per basis function, added over outputs; None estimates it from the first check
            (`noise_floor`).
        z: Standard errors by which the risk must exceed its minimum.
        patience: Checks in a row for which it must do so.
        min_checks: Checks before which nothing fires.
        doubling: Whether to wait, besides, until twice as many steps have passed as up to the minimum: a run that was
            still learning at step t deserves as long again.
        least_sigma2: Noise energy that is certainly there, at most `sigma2`; None takes `sigma2` itself.
        tie: Standard errors within which a risk is as good as the lowest; of such checks with a smaller residual the
            last is the best one. 0 takes the lowest.

    Raises:
        ValueError: If a number is out of range.

    References:
        Stein 1981, "Estimation of the mean of a multivariate normal distribution"; THEORY section 5.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> noise = 0.5 * torch.randn(256, 1, generator=draw, dtype=torch.float64)
        >>> target = 30.0 / (1 + torch.arange(256.0, dtype=torch.float64)[:, None]) ** 2
        >>> rates = 1 / (1 + torch.arange(256.0, dtype=torch.float64)[:, None])  # simple functions first
        >>> tracker = RiskTracker()
        >>> for check in range(400):
        ...     decision = tracker.check((target + noise) * torch.exp(-rates * check))
        ...     if decision.stop:
        ...         break
        >>> decision.stop, decision.best_check, check
        (True, 7, 18)
        >>> round(tracker.sigma2, 2)
        0.23
    """

    def __init__(
        self,
        sigma2: float | None = None,
        z: float = ONE_SIDED_95,
        patience: int = 3,
        min_checks: int = 3,
        doubling: bool = False,
        least_sigma2: float | None = None,
        tie: float = 0.0,
    ) -> None:
        if sigma2 is not None and not sigma2 >= 0:
            raise ValueError(f"noise energy is not negative, got sigma2={sigma2}.")
        if least_sigma2 is not None and not least_sigma2 >= 0:
            raise ValueError(f"noise energy is not negative, got least_sigma2={least_sigma2}.")
        if not z >= 0:
            raise ValueError(f"z counts standard errors, got z={z}.")
        if not tie >= 0:
            raise ValueError(f"tie counts standard errors, got tie={tie}.")
        if patience < 1 or min_checks < 0:
            raise ValueError(f"patience is positive and min_checks not negative, got {patience} and {min_checks}.")
        self.z, self.patience, self.min_checks, self.doubling, self.tie = z, patience, min_checks, doubling, tie
        self.sigma2 = math.nan if sigma2 is None else float(sigma2)
        self.least_sigma2 = math.nan if least_sigma2 is None else float(least_sigma2)
        self.checks = 0
        self.best_check = 0
        self.lowest_step = 0.0
        self.lowest_risk = math.inf
        self.fitted: Tensor | None = None
        self.certainly_past = False
        self._lowest_spent = self._lowest_energy = self._energy = 0.0
        self._initial: Tensor | None = None
        self._lowest_fitted: Tensor | None = None
        self._above = 0

    def check(self, coefficients: Any, step: float | None = None) -> Decision:
        """Process the residual of one check: ``[L, C]`` or ``[L]`` coefficients in order of complexity.

        Those of the first check are the target, and set the shape of all (else ValueError). `step` is the training
        step, for `doubling`; None takes the number of the check. The Decision's `value` is the risk; coefficients that
        are not finite are passed over.
        """
        coefficients = _matrix(coefficients)
        if self._initial is None:
            self._begin(coefficients)
        assert self._initial is not None
        if coefficients.shape != self._initial.shape:
            before = list(self._initial.shape)
            raise ValueError(f"coefficients of shape {list(coefficients.shape)}, where the first check had {before}.")
        number = self.checks
        self._unit = "check" if step is None else "step"
        step = number if step is None else step
        self.checks += 1
        if not bool(coefficients.isfinite().all()) or math.isnan(self.sigma2):
            self.certainly_past = self._lowest_fitted is not None  # a run that diverged was better before
            return Decision(False, self.best_check, "the residual is not finite", math.nan, math.nan)
        risk, spent, self.fitted = self._risk(coefficients)
        if risk < self.lowest_risk or self._lowest_fitted is None:
            self.best_check, self.lowest_step, self.lowest_risk = number, step, risk
            self._lowest_fitted, self._lowest_spent, self._lowest_energy = self.fitted, spent, self._energy
            self._above, self.certainly_past = 0, False
            return Decision(False, number, f"the estimated risk is at its lowest, {risk:.4g}", risk, 0.0)
        error = self._standard_error(self.fitted)
        doubt = 2 * (self.sigma2 - self.least_sigma2) * (spent - self._lowest_spent) / len(coefficients)
        self.certainly_past = risk - self.lowest_risk - max(0.0, doubt) > self.z * error
        # A residual that grew again is a step that went wrong, as large steps do; noise is fitted where it shrinks.
        fits_more = self._energy < self._lowest_energy
        if fits_more and risk - self.lowest_risk <= self.tie * error:
            self.best_check = number
        counts = self.certainly_past and fits_more and number >= self.min_checks
        self._above = self._above + 1 if counts else 0
        stop = self._above >= self.patience and not (self.doubling and step < 2 * self.lowest_step)
        return Decision(stop, self.best_check, self._words(risk, error), risk, error)

    def rebase(self, initial: Any) -> None:
        """Replace the initial coefficients where the basis was made again: its functions may have changed sign."""
        self._initial = _matrix(initial)

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in _STATE:
            setattr(self, name, state[name])
        if self._initial is not None:
            self._lay_bands(len(self._initial))

    def _begin(self, coefficients: Tensor) -> None:
        self._initial = coefficients
        self._lay_bands(len(coefficients))
        if math.isnan(self.sigma2):
            self.sigma2 = noise_floor(coefficients).sigma2
        if not self.least_sigma2 <= self.sigma2:
            self.least_sigma2 = self.sigma2

    def _lay_bands(self, functions: int) -> None:
        self._bands = octave_bands(functions)
        self._level_of = torch.arange(functions)
        self._sizes = torch.tensor([stop - start for start, stop in self._bands], dtype=torch.float64)

    def _risk(self, coefficients: Tensor) -> tuple[float, float, Tensor]:
        assert self._initial is not None
        # A band that was empty at the start has nothing to fit.
        fitted = fitted_fraction(self._initial, coefficients, self._level_of, self._bands).nan_to_num(0.0)
        spent = float((self._sizes * fitted).sum())
        self._energy = float(coefficients.square().sum())
        return (self._energy + 2 * self.sigma2 * spent) / len(coefficients), spent, fitted

    def _standard_error(self, fitted: Tensor) -> float:
        """Return the standard error of the difference in risk to the best check, under noise alone."""
        assert self._initial is not None
        assert self._lowest_fitted is not None
        freedom = degrees_of_freedom(self._initial.shape[1])
        change = (1 - self._lowest_fitted).square() - (1 - fitted).square()
        variance = 2 * freedom * (self._sizes * change.square()).sum() * (self.sigma2 / freedom) ** 2
        return math.sqrt(float(variance)) / len(self._initial)

    def _words(self, risk: float, error: float) -> str:
        over = risk - self.lowest_risk
        if self.certainly_past and self._energy >= self._lowest_energy:
            return f"the estimated risk {risk:.4g} is above its lowest, {self.lowest_risk:.4g}, but so is the residual"
        if not self._above:
            return f"the estimated risk {risk:.4g} is not certainly above its lowest, {self.lowest_risk:.4g}"
        times = f"{over / error:.1f} standard errors" if error > 0 else f"{over:.2g}"
        where = f"{self._unit} {self.lowest_step:.0f}"
        return (
            f"the estimated risk {risk:.4g} lies {times} above that of {where}, {self.lowest_risk:.4g}, "
            f"for {self._above} checks in a row: what is fitted now brings more noise than it takes away of the target"
        )


@dataclass(frozen=True, eq=False)
class RiskCurve:
    """The estimated risk over all checks of a run, and where the rule would have stopped.

    Attributes:
        risk: ``[T]`` float64, estimated squared error per example against the noiseless target, up to a constant.
        standard_error: ``[T]`` float64, of the difference to the best check so far.
        best_check: The check whose weights are kept: the best one seen when the rule fires, or of all if it never does.
        stop_check: The check at which the rule fires; None if it never does.
        sigma2: Noise energy per basis function, added over outputs.
        reason: Why it stops, or why not.
    """

    risk: Tensor
    standard_error: Tensor
    best_check: int
    stop_check: int | None
    sigma2: float
    reason: str


def spectral_risk(
    coefficients: Any,
    sigma2: float | None = None,
    z: float = ONE_SIDED_95,
    patience: int = 3,
    min_checks: int = 3,
) -> RiskCurve:
    """Find where training should have stopped, from the residuals of all its checks, without validation data.

    `RiskTracker` over the whole run; see there for the formula.

    Args:
        coefficients: ``[T, L, C]`` or ``[T, L]`` coefficients of the residual at each check in a basis, in order of
            complexity, from before training on.
        sigma2: Noise energy per basis function, added over outputs; None estimates it.
        z: Standard errors by which the risk must exceed its minimum.
        patience: Checks in a row for which it must do so.
        min_checks: Checks before which nothing fires.

    Returns:
        RiskCurve. If the rule never fires, `stop_check` is None and `best_check` the best of all.

    Raises:
        ValueError: If the shape is another, there is no check, or a number is out of range.

    References:
        THEORY section 5.

    Example:
        >>> steps = torch.arange(60.0, dtype=torch.float64)[:, None]
        >>> clean = torch.exp(-steps / (1 + torch.arange(128.0))) / (1 + torch.arange(128.0)) ** 2
        >>> print(spectral_risk(clean).stop_check)  # nothing but target: it never pays to stop
        None
    """
    coefficients = as_tensor(coefficients)
    if coefficients.ndim not in (2, 3) or not len(coefficients):
        raise ValueError(f"coefficients are [T, L] or [T, L, C] with a check at least, got {list(coefficients.shape)}.")
    tracker = RiskTracker(sigma2, z, patience, min_checks)
    fired: tuple[int, Decision] | None = None
    decisions = []
    for number, at_check in enumerate(coefficients):
        decisions.append(tracker.check(at_check))
        if fired is None and decisions[-1].stop:
            fired = number, decisions[-1]
    last = decisions[-1] if fired is None else fired[1]
    numbers = torch.tensor([(d.value, d.standard_error) for d in decisions], dtype=torch.float64).to(
        coefficients.device
    )
    return RiskCurve(
        risk=numbers[:, 0],
        standard_error=numbers[:, 1],
        best_check=last.best_check,
        stop_check=None if fired is None else fired[0],
        sigma2=tracker.sigma2,
        reason=last.reason,
    )


def _matrix(coefficients: Any) -> Tensor:
    coefficients = as_tensor(coefficients).detach().double().cpu()
    if coefficients.ndim not in (1, 2) or not coefficients.numel():
        raise ValueError(f"coefficients of one check are [L] or [L, C], got shape {list(coefficients.shape)}.")
    return coefficients.reshape(len(coefficients), -1)
