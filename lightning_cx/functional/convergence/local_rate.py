"""The minimum next to a model: whether the examples determine it, and how fast descent will reach it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.linalg import eigh

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
