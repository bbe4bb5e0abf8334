"""How training ends: the law of the last stretch of the loss, and the rate that the Jacobian predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize_scalar
from scipy.special import stdtrit
from torch import Tensor

from lightning_cx.functional.complexity.residuals import CONFIDENCE, MAX_CORRELATION
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.linalg import eigh

SURE = 2.0
"""Difference of BIC from which on there is evidence to speak of (Kass & Raftery 1995, section 3.2). A law with one
parameter more that brings nothing is log m behind: 2.8 for 16 readings, 4.6 for 100."""


@dataclass(frozen=True)
class LossTail:
    """By which law a loss falls.

    Attributes:
        law: ``"exponential"``, ``"exponential with floor"``, ``"power"``, ``"flat"`` or ``"rising"``; ``"unknown"``
            where nothing can be said.
        rate: Rate of the law. Exponentials: relative fall per step, negative where the loss rises. Power: the exponent
            p of ``(t + offset)^-p``. Flat: 0. nan if unknown.
        error: Its standard error, in the same unit; that of an exponential for a flat loss; nan if unknown.
        low, high: Ends of its 95% interval.
        floor: Loss that the law ends at: 0 for exponential and power, the mean for flat; nan if unknown or rising.
        rate_now: Relative fall of the loss above its floor per step at the last reading, ``p / (t + offset)`` for a
            power law and `rate` for exponentials.
        level: Loss that the law gives for the last reading.
        bic: Bayesian information criterion of each law that was compared, the lowest best.
        readings: Number of readings that were used.
        reason: Why there is no law; empty where there is one.
    """

    law: str
    rate: float
    error: float
    low: float
    high: float
    floor: float
    rate_now: float
    level: float
    bic: Mapping[str, float]
    readings: int
    reason: str = ""

    @property
    def half_life(self) -> float:
        """Steps in which the loss above its floor halves at the present rate; inf where it does not fall."""
        if math.isnan(self.rate_now):
            return math.nan
        return math.log(2) / self.rate_now if self.rate_now > 0 else math.inf

    @property
    def lead(self) -> float:
        """By how much the BIC of the next best law is higher; under 2 the choice is open."""
        ordered = sorted(self.bic.values())
        return ordered[1] - ordered[0] if len(ordered) > 1 else math.nan

    def __str__(self) -> str:
        if self.law == "unknown":
            return f"no law of the loss: {self.reason}"
        certain = "" if self.lead >= SURE else f"; another law fits nearly as well (BIC {self.lead:.1f} apart)"
        interval = f" (95%: {short(self.low)} to {short(self.high)})"
        if self.law == "flat":
            return f"flat at {short(self.floor)}{interval.replace(':', ' of its rate:')}{certain}"
        if self.law == "rising":
            return f"the loss is rising at {short(-self.rate)} per step{certain}"
        if self.law == "power":
            pace = f"at the present pace the loss would halve in {short(self.half_life)} steps"
            return f"falling as a power of the step, exponent {short(self.rate)}{interval}; {pace}{certain}"
        text = f"converging at a linear rate of {short(self.rate)} per step"
        if self.law == "exponential":
            return f"{text}; the loss would halve every {short(self.half_life)} steps{interval}{certain}"
        above = f"what is above it halves every {short(self.half_life)} steps"
        return f"{text} to a floor of {short(self.floor)}; {above}{interval}{certain}"


MIN_READINGS = 16
"""Fewer cannot tell three parameters, the size of the noise and its correlation apart."""


def loss_tail(steps: Any, losses: Any) -> LossTail:
    """Fit the law by which a loss falls at the end of its curve, and its rate.

    Four laws are fitted to the logarithm of the loss, by least squares: flat ``c``, exponential ``A exp(-r t)``,
    exponential with floor ``A exp(-r t) + c``, and power ``A (t + offset)^-p`` whose offset is free, since nobody
    knows when a tail began. The lowest Bayesian information criterion chooses. Logarithms, because a tail spans
    decades: deviations of a loss are about proportional to it, and least squares on the loss itself would see the first
    readings only.

    Neighbouring readings of one run deviate together. Their correlation rho, of the law that fits best, makes n
    readings worth ``m = n (1 - rho) / (1 + rho)``: the criterion is ``m log(RSS / n) + k log m``, and standard errors
    grow by ``sqrt(n / m)``. Deviations of less than a thousandth count as one: no law holds better.

    Args:
        steps: ``[S]`` ascending; give the tail alone, the early fall is another law.
        losses: ``[S]`` the loss at these steps; what is not positive and finite is left out.

    Returns:
        LossTail; of law "unknown", all nan, with a reason, for fewer than 16 usable readings.

    Raises:
        ValueError: If there is not one loss for each step, or the steps do not ascend.

    References:
        THEORY section 9; Schwarz 1978, "Estimating the dimension of a model"; Bartlett 1935 for the worth of
        correlated readings.

    Example:
        >>> steps = np.arange(0, 2000, 20)
        >>> print(loss_tail(steps, np.exp(-0.0012 * steps)))
        converging at a linear rate of .0012 per step; the loss would halve every 580 steps (95%: .0012 to .0012)
        >>> loss_tail(steps[:9], np.exp(-0.0012 * steps[:9])).reason
        '9 usable readings of the loss, 16 are needed'
    """
    t, loss = (as_tensor(values).detach().cpu().double().numpy() for values in (steps, losses))
    if t.ndim != 1 or t.shape != loss.shape:
        raise ValueError(f"each step needs one loss, got steps {list(t.shape)} and losses {list(loss.shape)}.")
    if not bool(np.all(np.diff(t) > 0)):
        raise ValueError("steps must ascend: sort the readings by step and leave out repeated ones.")
    usable = np.isfinite(loss) & (loss > 0) & np.isfinite(t)
    if usable.sum() < MIN_READINGS:
        return _unknown(int(usable.sum()), _why_so_few(loss, usable))
    return _fitted(t[usable], np.log(loss[usable]))


def short(value: float) -> str:
    """Format a number with two significant digits, and whole ones in full.

    Example:
        >>> short(0.001234), short(578.2), short(12345.0)
        ('.0012', '580', '12,000')
    """
    if not math.isfinite(value) or abs(value) >= 1e7:
        return f"{value:.2g}"
    if abs(value) >= 9.95:
        return f"{float(f'{value:.2g}'):,.0f}"
    text = f"{value:.2g}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and "e" not in text else text


Array: TypeAlias = NDArray[Any]


def _why_so_few(loss: Array, usable: Array) -> str:
    lost = len(loss) - int(usable.sum())
    others = f" ({lost} are zero, negative or not finite: they have no logarithm)" if lost else ""
    return f"{int(usable.sum())} usable readings of the loss, {MIN_READINGS} are needed{others}"


def _unknown(readings: int, reason: str) -> LossTail:
    nan = math.nan
    return LossTail("unknown", nan, nan, nan, nan, nan, nan, nan, {}, readings, reason)


MIN_WORTH = 4.0
"""Independent readings that any series counts for: one for each parameter and the size of the noise."""


def _fitted(t: Array, y: Array) -> LossTail:
    # BIC rather than AIC or tests of nested laws: a power law and an exponential are not nested, and a wrong extra
    # parameter must become rarer with more readings. Its n is the worth of correlated readings; with their number,
    # smooth wiggles of the optimizer buy a floor or an offset that is not there.
    n, span = len(t), t[-1] - t[0]
    u = (t - t[0]) / span
    fits = {law: fit(u, y) for law, (_, fit) in LAWS.items()}
    worth = max(MIN_WORTH, n / _inflation(min(fits.values(), key=lambda fit: fit.squares)))
    bic = {law: _criterion(fit, n, worth) for law, fit in fits.items()}
    law = min(bic, key=bic.__getitem__)
    return _described(law, fits, bic, t, worth)


def _criterion(fit: Fit, n: int, worth: float) -> float:
    return worth * math.log(fit.squares / n) + len(fit.parameters) * math.log(worth)


RESOLUTION = 1e-3
"""To this the logarithm of a loss is taken to follow a law at all, and deviations below it favour none. Laws of a
network hold to first order: gradient descent on a tanh teacher, without any noise, bends by 1e-4 to 1e-3 of its loss
from the exponential that it ends in, and a criterion that believed in float64 found floors there."""


def _inflation(fit: Fit) -> float:
    """Return the factor by which correlation widens the variance of a fit: ``(1 + rho) / (1 - rho)``."""
    n, k = len(fit.deviations), len(fit.parameters)
    total = float(fit.deviations @ fit.deviations)
    if total <= n * RESOLUTION**2:
        return 1.0
    seen = float(fit.deviations[1:] @ fit.deviations[:-1]) / total
    rho = min(max((n * seen + k) / (n - 2 * k), 0.0), MAX_CORRELATION)  # the fit takes about (k + 2 k rho) / n away
    return (1 + rho) / (1 - rho)


def _described(law: str, fits: Mapping[str, Fit], bic: dict[str, float], t: Array, worth: float) -> LossTail:
    fit = fits[law]
    n, span = len(t), float(t[-1] - t[0])
    size, second, third = (*fit.parameters.tolist(), 0.0, 0.0)[:3]
    level = math.exp(float(LAWS[law][0](fit.parameters, np.ones(1))[0]))
    # Parameter 1 is the logarithm of the rate, or the rate itself for an exponential, which bounds that of a flat loss.
    slope = fits["exponential"] if law == "flat" else fit
    spread, margin = _spread(slope, worth)
    if law in ("flat", "exponential"):
        fitted = float(slope.parameters[1])
        ends, error = ((fitted - margin) / span, (fitted + margin) / span), spread / span
        if law == "flat":
            return LossTail(law, 0.0, error, *ends, level, 0.0, level, bic, n)
        rate, floor = second / span, 0.0 if second > 0 else math.nan
        return LossTail(law if rate > 0 else "rising", rate, error, *ends, floor, rate, level, bic, n)
    rate = math.exp(second) / (1.0 if law == "power" else span)
    ends = (rate * math.exp(-margin), rate * math.exp(min(margin, 500.0)))  # of a logarithm, so never below 0
    floor = 0.0 if law == "power" else math.exp(size + third)
    now = rate / (1 + math.exp(third)) / span if law == "power" else rate
    return LossTail(law, rate, rate * spread, *ends, floor, now, level, bic, n)


def _spread(fit: Fit, worth: float) -> tuple[float, float]:
    """Return the standard error of parameter 1 and half the width of its interval."""
    n, k = fit.jacobian.shape
    variance = float(np.linalg.pinv(fit.jacobian.T @ fit.jacobian)[1, 1]) * fit.squares / (n - k) * n / worth
    return math.sqrt(variance), float(stdtrit(max(worth - k, 1), (1 + CONFIDENCE) / 2)) * math.sqrt(variance)


# The laws, on time u that runs from 0 to 1 over the tail. Parameter 0 is the logarithm of the size, 1 the rate, or its
# logarithm where it must be positive; 2 the logarithm of the floor over the size, or of the power law's offset.


def _flat(p: Array, u: Array) -> Array:
    return np.full_like(u, p[0])


def _exponential(p: Array, u: Array) -> Array:
    return p[0] - p[1] * u


def _with_floor(p: Array, u: Array) -> Array:
    return p[0] + np.logaddexp(-np.exp(p[1]) * u, p[2])


def _power(p: Array, u: Array) -> Array:
    return p[0] - np.exp(p[1]) * np.log(u + np.exp(p[2]))


@dataclass(frozen=True)
class Fit:
    """One law, fitted: its parameters ``[k]``, law less log-loss ``[n]``, and the law's Jacobian ``[n, k]``."""

    parameters: Array
    deviations: Array
    jacobian: Array

    @property
    def squares(self) -> float:
        """Sum of the squared deviations, not below what a law is taken to hold to."""
        return max(float(self.deviations @ self.deviations), len(self.deviations) * RESOLUTION**2)


def _fit_flat(u: Array, y: Array) -> Fit:
    return Fit(np.array([y.mean()]), y.mean() - y, np.ones((len(u), 1)))


def _fit_exponential(u: Array, y: Array) -> Fit:
    design = np.stack([np.ones_like(u), -u], 1)
    parameters = np.linalg.lstsq(design, y, rcond=None)[0]
    return Fit(parameters, design @ parameters - y, design)


LONGEST = 8.0
"""Time scales, of the length of the tail, up to which a law with a scale of its own is told from one without."""


def _fit_with_floor(u: Array, y: Array) -> Fit:
    # From each of a grid of rates, the floor that the last readings show; the size follows.
    depth = max(float(y[0] - y[-1]), 0.1)
    starts = [
        np.array([0.0, math.log(rate), -share * depth - 0.1])
        for rate in np.geomspace(1 / LONGEST, 300, 12)
        for share in (0.5, 1.0, 1.5)
    ]
    return _refined(_with_floor, starts, u, y, (math.log(1 / LONGEST), math.log(1e4)), (-60.0, 60.0))


SHORTEST = 1e-6
"""Time scales, of the length of the tail, from which on a power law's offset is told from no offset: one step of a
run of a million."""


def _fit_power(u: Array, y: Array) -> Fit:
    def line(log_offset: float) -> tuple[float, float, float]:
        x = np.log(u + math.exp(log_offset))
        slope = -float(((x - x.mean()) * y).sum()) / float(((x - x.mean()) ** 2).sum())
        squares = float((((y - y.mean()) + slope * (x - x.mean())) ** 2).sum())
        return squares, slope, float(y.mean() + slope * x.mean())

    ends = (math.log(SHORTEST), math.log(LONGEST))
    grid = np.linspace(*ends, 40)
    nearest = grid[int(np.argmin([line(place)[0] for place in grid]))]
    around = (max(nearest - 0.3, ends[0]), min(nearest + 0.3, ends[1]))
    place = _lowest(lambda x: line(x)[0], around)
    _, slope, size = line(place)
    start = np.array([size, math.log(max(slope, 1e-6)), place])
    return _refined(_power, [start], u, y, (-14.0, 10.0), ends)


def _refined(
    law: Callable[[Array, Array], Array],
    starts: list[Array],
    u: Array,
    y: Array,
    rates: tuple[float, float],
    thirds: tuple[float, float],
) -> Fit:
    """Fit by least squares from the best of the starts, each with the size that suits it."""
    sized = [start + np.array([(y - law(start, u)).mean(), 0, 0]) for start in starts]
    best = min(sized, key=lambda p: float(((law(p, u) - y) ** 2).sum()))
    bounds = ([-np.inf, rates[0], thirds[0]], [np.inf, rates[1], thirds[1]])
    best = np.clip(best, np.add(bounds[0], 1e-9), np.subtract(bounds[1], 1e-9))
    found = least_squares(lambda p: law(p, u) - y, best, bounds=bounds, x_scale="jac", xtol=1e-12, ftol=1e-12)
    return Fit(found.x, found.fun, found.jac)


def _lowest(curve: Callable[[float], float], ends: tuple[float, float]) -> float:
    found: Any = minimize_scalar(curve, bounds=ends, method="bounded")
    return float(found.x)


LAWS: dict[str, tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Fit]]] = {
    "flat": (_flat, _fit_flat),
    "exponential": (_exponential, _fit_exponential),
    "exponential with floor": (_with_floor, _fit_with_floor),
    "power": (_power, _fit_power),
}


RANK_TOLERANCE = 1e-8
"""Eigenvalues below this share of the largest do not count: rounding of a float32 backward (THEORY 3), and at a stable
step size directions that take 10^7 steps or more."""

BESIDE_A_MINIMUM = 0.1
"""Share of the loss that the linear model can still take away, up to which a minimum above zero is near. A loss like
exp(-output), which has none, always offers 1/2."""


@dataclass(frozen=True, eq=False)
class LocalModel:
    """What the outputs, made linear in the parameters, say of the minimum next to the model.

    Attributes:
        eigenvalues: ``[n C]`` float64, descending, of ``H^1/2 J J^T H^1/2``; over n those of the Gauss-Newton matrix.
        rank: Directions in parameter space that the examples determine.
        parameters: P.
        examples: n.
        removable: Share of the mean loss that the best step of the linear model takes away: near 1, a zero of the
            loss is near; near 0, the model sits at a minimum above zero; nan where the loss is not known.
        quadratic: Whether the loss is a square of the outputs, with the same curvature for every example.
        tolerance: Share of the largest eigenvalue below which a direction is not determined.
        reason: Why nothing can be said of a minimum, `rank` 0 and `removable` nan; empty where something can.
    """

    eigenvalues: Tensor
    rank: int
    parameters: int
    examples: int
    removable: float
    quadratic: bool
    tolerance: float = RANK_TOLERANCE
    reason: str = ""

    @property
    def is_determined(self) -> bool:
        """Whether the examples determine every parameter."""
        return self.rank == self.parameters

    @property
    def has_minimum(self) -> bool:
        """Whether a finite minimum is near: always for a square, otherwise only where little is left to take away."""
        return not self.reason and (self.quadratic or self.removable <= BESIDE_A_MINIMUM)

    def rate(
        self, learning_rate: float, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False
    ) -> float:
        """Return the fall of the loss per step that `local_rate` predicts; nan without a minimum or without modes."""
        if not self.has_minimum:
            return math.nan
        options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "tolerance": self.tolerance}
        return local_rate(self.eigenvalues, learning_rate, self.examples, parameters=self.parameters, **options)

    def __str__(self) -> str:
        if self.reason:
            return f"no minimum can be told: {self.reason}"
        which = "the minimum is isolated" if self.is_determined else "the rest is free"
        left = (
            f"; a linear step takes away {self.removable:.0%} of the loss" if self.removable == self.removable else ""
        )
        return f"{self.examples} examples determine {self.rank} of {self.parameters} parameters: {which}{left}"


UNREACHED = 0.01
"""Share of the squared slopes of the loss along directions of the outputs in which it does not curve, from which on it
is no parabola near by: all for an absolute error or a hinge, 1e-14 of rounding for a softmax in float32."""


def local_model(
    gram: Any, hessian: Any, residuals: Any, parameters: int, loss: float = math.nan, tolerance: float = RANK_TOLERANCE
) -> LocalModel:
    """Analyse the minimum next to a model through the derivative of its outputs.

    With outputs that are linear in the parameters, the mean loss has the second derivative ``J^T H J / n``
    (Gauss-Newton); its eigenvalues set the pace of gradient descent, and its Newton step takes
    ``r^T J (J^T H J)^+ J^T r / (2 n)`` off the loss. Exact at a zero of the loss. At a minimum above zero the
    curvature of the outputs times the residuals is left out. A loss without a finite minimum (cross entropy of classes
    that can be told apart) has no constant rate: its curvature falls with it, and the loss as 1 over the step (Soudry
    et al. 2018).

    Args:
        gram: ``[n C, n C]`` J J^T, rows of one example together.
        hessian: ``[n, C, C]`` second derivative of each example's loss with respect to its outputs.
        residuals: ``[n, C]`` minus the derivative of each example's loss with respect to its outputs.
        parameters: P.
        loss: Mean loss of an example.
        tolerance: As for `jacobian_rank`.

    Returns:
        LocalModel; of rank 0 and nan, with the reason, where an entry is not finite, or where the loss has a slope in
        directions of the outputs in which it does not curve upwards, as an absolute error, a hinge and the tails of
        robust losses.

    Raises:
        ValueError: If the shapes do not fit.

    References:
        THEORY section 9; Martens 2020, "New insights and perspectives on the natural gradient method", section 8, for
        the Gauss-Newton matrix; Soudry et al. 2018, "The implicit bias of gradient descent on separable data".

    Example:
        >>> jacobian = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> print(local_model(jacobian @ jacobian.T, torch.ones(2, 1, 1), torch.ones(2, 1), 3, loss=0.5))
        2 examples determine 2 of 3 parameters: the rest is free; a linear step takes away 100% of the loss
    """
    gram, hessian, residuals = (as_tensor(values).detach().cpu().double() for values in (gram, hessian, residuals))
    n, outputs = residuals.shape if residuals.ndim == 2 else (-1, -1)
    if gram.shape != (n * outputs, n * outputs) or hessian.shape != (n, outputs, outputs):
        raise ValueError(
            f"n examples of C outputs have gram [n C, n C], hessian [n, C, C] and residuals [n, C], got "
            f"{list(gram.shape)}, {list(hessian.shape)} and {list(residuals.shape)}."
        )
    values = (gram, hessian, residuals)
    if not n * outputs or not all(bool(value.isfinite().all()) for value in values):
        why = "an entry is not finite" if n * outputs else "there are no examples"
        return _nothing(parameters, n, why)
    root, inverse = _roots(hessian)
    unreached = residuals - torch.einsum("iab,ibc,ic->ia", root, inverse, residuals)
    if float(unreached.square().sum()) > UNREACHED * float(residuals.square().sum()):
        why = "the loss has a slope where it has no curvature (an absolute error, a hinge), and no parabola's minimum"
        return _nothing(parameters, n, why)
    matrix = torch.einsum("iab,ibjc,jcd->iajd", root, gram.view(n, outputs, n, outputs), root).reshape(gram.shape)
    spectrum, modes = eigh((matrix + matrix.T) / 2)
    spectrum, modes = spectrum.flip(0), modes.flip(1)
    rank = jacobian_rank(spectrum, parameters, tolerance)
    # r lies in the range of H wherever a minimum over the outputs exists; in its units the loss is half a square.
    weighted = torch.einsum("iab,ib->ia", inverse, residuals).reshape(-1)
    taken = float((modes[:, :rank].T @ weighted).square().sum()) / (2 * n)
    removable = taken / loss if loss > 0 else math.nan
    return LocalModel(spectrum, rank, parameters, n, removable, _is_one_curvature(hessian), tolerance)


def local_rate(
    gram_eigenvalues: Any,
    learning_rate: float,
    n: int,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    parameters: int | None = None,
    tolerance: float = RANK_TOLERANCE,
) -> float:
    """Predict how fast gradient descent closes in on the minimum that it is near.

    Near a minimum every mode of the error contracts on its own, and the slowest is left in the end. Without momentum
    that of eigenvalue lambda keeps ``|1 - eta lambda|`` of itself in each step, so that the loss falls at
    ``-2 log(1 - eta lambda_min^+(J^T J / n))`` per step; above ``eta lambda = 2`` it grows, and the rate is negative.
    With momentum it is the spectral radius of two steps of that mode,
    ``z^2 - (1 + mu - eta lambda) z + mu = 0`` (heavy ball, Polyak 1964), with Nesterov's
    ``z^2 - (1 + mu)(1 - eta lambda) z + mu (1 - eta lambda) = 0``.

    Args:
        gram_eigenvalues: ``[r]`` of ``J J^T`` in any order, J the derivative of the outputs with respect to the
            parameters, for a loss of half the squared error of each example; for another loss of
            ``H^1/2 J J^T H^1/2``, H its second derivative with respect to the outputs.
        learning_rate: eta.
        n: Number of examples, over which the loss is averaged.
        momentum: mu, as `torch.optim.SGD` has it.
        dampening: Of the gradient under momentum, as `torch.optim.SGD` has it.
        nesterov: Whether the momentum is Nesterov's.
        parameters: P, as for `jacobian_rank`.
        tolerance: Share of the largest eigenvalue below which a direction is not determined, and does not count.

    Returns:
        Relative fall of the loss per step; negative where it will grow; inf where one step arrives; nan for no
        positive eigenvalues, or where one is not finite.

    Raises:
        ValueError: If `learning_rate` or `n` is not positive, or `momentum` not in [0, 1).

    References:
        THEORY section 9; Polyak 1964; Lessard, Recht & Packard 2016, "Analysis and design of optimization algorithms
        via integral quadratic constraints", section 2, for the quadratic forms.

    Example:
        >>> round(local_rate([10.0, 0.6], learning_rate=0.1, n=100), 6)
        0.0012
    """
    if not 0 < learning_rate < math.inf or not n >= 1:
        raise ValueError(f"learning_rate and n must be positive, got learning_rate={learning_rate} and n={n}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}.")
    values = _positive(gram_eigenvalues, parameters, tolerance)
    if not len(values):
        return math.nan
    step = learning_rate * values / n
    if momentum == 0:
        kept = (1 - step).abs()
    elif nesterov:
        kept = _larger_root((1 + momentum) * (1 - step), momentum * (1 - step))
    else:
        kept = _larger_root(1 + momentum - step * (1 - dampening), torch.full_like(step, momentum))
    slowest = float(kept.max())
    if momentum == 0 and float(step.max()) < 1:
        return -2 * math.log1p(-float(step.min()))  # exact where 1 - step rounds
    return -2 * math.log(slowest) if slowest > 0 else math.inf


def jacobian_rank(eigenvalues: Any, parameters: int | None = None, tolerance: float = RANK_TOLERANCE) -> int:
    """Count the directions in parameter space that the examples determine.

    The number of eigenvalues of ``J J^T`` (or ``J^T J``) above ``tolerance`` times the largest. Below the number of
    parameters, some directions leave all outputs as they are: the examples do not determine the model, and another
    minimum fits as well. Equal to it, the minimum is isolated, and can be recovered.

    Args:
        eigenvalues: ``[r]`` in any order.
        parameters: P; of the Gram matrix of more than P rows only the P largest can be more than rounding.
        tolerance: Share of the largest eigenvalue.

    Returns:
        Rank, 0 for zero or no eigenvalues, or where one is not finite.

    Raises:
        ValueError: If `tolerance` is not between 0 and 1.

    References:
        THEORY section 9; Luo, Zhang & Zhang, "Local linear recovery guarantee of deep neural networks at
        overparameterization", for rank and recovery.

    Example:
        >>> jacobian_rank([3.0, 1.0, 1e-12])
        2
    """
    return len(_positive(eigenvalues, parameters, tolerance))


def _nothing(parameters: int, n: int, why: str) -> LocalModel:
    return LocalModel(torch.zeros(0, dtype=torch.float64), 0, parameters, max(n, 0), math.nan, False, reason=why)


def _roots(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root of each matrix and its pseudo-inverse; negative eigenvalues count as 0."""
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    largest = values.amax(-1, keepdim=True)
    roots = torch.where(values > RANK_TOLERANCE * largest, values, 0.0).clamp_min(0).sqrt()
    inverses = torch.where(roots > 0, 1 / roots, 0.0)
    return (vectors * roots[:, None]) @ vectors.mT, (vectors * inverses[:, None]) @ vectors.mT


SAME_CURVATURE = 1e-5
"""Curvatures of the loss that differ by less, relative to the largest, are one: float32 outputs are known to that."""


def _is_one_curvature(hessian: Tensor) -> bool:
    largest = float(hessian.abs().max())
    return largest > 0 and float((hessian - hessian[:1]).abs().max()) <= SAME_CURVATURE * largest


def _positive(eigenvalues: Any, parameters: int | None, tolerance: float) -> Tensor:
    """Return the eigenvalues that are more than rounding, descending."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"a tolerance is a share of the largest eigenvalue, between 0 and 1, got {tolerance}.")
    values = as_tensor(eigenvalues).detach().double().flatten()
    if not len(values) or not bool(values.isfinite().all()):
        return values[:0]
    values = values.sort(descending=True).values[:parameters]
    return values[(values > 0) & (values > tolerance * values[:1])]


def _larger_root(total: Tensor, product: Tensor) -> Tensor:
    """Return the modulus of the larger root of ``z^2 - total z + product``."""
    squared = total.square() / 4 - product
    real = total.abs() / 2 + squared.clamp_min(0).sqrt()
    return torch.where(squared < 0, product.clamp_min(0).sqrt(), real)
