"""The largest eigenvalue of the Gauss-Newton matrix, the part of the curvature that Gram matrices know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.linalg import eigh

CONCAVE = 1e-2
"""Negative second derivatives of a loss below this share of its largest are the rounding of a float32 backward."""

ALIKE = 1e-3
"""Largest miss, relative to the largest second derivative, at which the law of a loss is taken to hold. A float32
backward misses by 1.3e-7 at most (100 draws of 32 examples); a sigmoid in bfloat16 misses by .008 and is not told."""

VARIED = 0.2
"""Share of the largest residual by which residuals have to differ, for where all are alike every law fits. Between
.4 and .5 the second derivative of a logistic loss changes by 4%, and labels smoothed to .05 and .95 do not fit it."""


@dataclass(frozen=True, eq=False)
class GaussNewton:
    """The largest eigenvalue of a mean Gauss-Newton matrix; tensors are float64 on the device of the Gram matrix.

    Attributes:
        value: ``[]`` lambda_max of ``(1/n) sum_i J_i^T H_i J_i``, never negative; nan where it is not known.
        standard_error: ``[]`` of the value, from how much the examples differ in the leading direction: of n examples
            as a sample of a large set. nan below 2 examples.
        examples: n.
    """

    value: Tensor
    standard_error: Tensor
    examples: int

    def __str__(self) -> str:
        if not bool(self.value.isfinite()):
            return "largest Gauss-Newton eigenvalue unknown: it takes finite derivatives of at least one example"
        return (
            f"largest Gauss-Newton eigenvalue {self.value:.4g} +- {self.standard_error:.2g} ({self.examples} examples)"
        )


def gauss_newton(gram: Tensor, hessian: Tensor) -> GaussNewton:
    """Find the largest curvature that the loss has through its outputs: lambda_max of ``(1/n) sum_i J_i^T H_i J_i``.

    The Hessian is this plus terms that carry the residual and the second derivative of the network; they fade as the
    residuals do. With ``H_i = B_i B_i^T`` and B their block-diagonal matrix, the eigenvalues are those of
    ``B^T (J J^T) B / n``, whose size does not depend on the number of parameters. Let y be the leading eigenvector, and
    ``n lambda |y_i|^2`` what example i has of the curvature in that direction: their mean is lambda, and their spread
    gives the standard error, to first order.

    Args:
        gram: ``[n C, n C]`` ``J J^T``, row (i, c) at ``i C + c``, J the derivatives of the outputs.
        hessian: ``[n, C, C]`` second derivatives of each example's own loss in its outputs.

    Returns:
        GaussNewton; all nan for no example or non-finite entries.

    Raises:
        ValueError: If shapes do not fit, or the loss is not convex in its outputs: its curvature then is not that of
            a Gauss-Newton matrix. A loss that is saturated on all examples looks like that too, for rounding.

    References:
        THEORY section 8; Martens 2020, "New insights and perspectives on the natural gradient method", section 8.

    Example:
        >>> jacobian = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # 2 examples, 1 output, 2 parameters
        >>> print(gauss_newton(jacobian @ jacobian.T, torch.ones(2, 1, 1)))
        largest Gauss-Newton eigenvalue 4.5 +- 4.5 (2 examples)
    """
    gram, hessian = as_tensor(gram).detach().double(), as_tensor(hessian).detach().double()
    n, outputs = hessian.shape[0], hessian.shape[-1] if hessian.dim() == 3 else -1
    if hessian.shape != (n, outputs, outputs) or gram.shape != (n * outputs, n * outputs):
        shapes = f"{list(gram.shape)} and {list(hessian.shape)}"
        raise ValueError(f"n examples with C outputs have a Gram matrix [nC, nC] and Hessians [n, C, C], got {shapes}.")
    if not n * outputs or not bool(gram.isfinite().all() & hessian.isfinite().all()):
        return _unknown(gram, n)
    curvature, directions = torch.linalg.eigh((hessian + hessian.mT) / 2)
    if float(curvature.min()) < -CONCAVE * float(curvature.abs().max()):
        least, largest = float(curvature.min()), float(curvature.max())
        raise ValueError(
            "there is no Gauss-Newton matrix: the loss is not convex in its outputs, or so flat there that only "
            f"rounding is left of its second derivatives (from {least:.2g} to {largest:.2g})"
        )
    root = directions * curvature.clamp_min(0).sqrt()[:, None]  # B_i, [n, C, C]
    blocks = gram.view(n, outputs, n * outputs)
    half = (root.mT @ blocks).reshape(n * outputs, n * outputs).T.reshape(n, outputs, n * outputs)
    return _leading((root.mT @ half).reshape(n * outputs, n * outputs), n)


@dataclass(frozen=True)
class ResidualLaw:
    """How the second derivative of a loss of one output follows from its first.

    Attributes:
        kind: `"squared"`: ``c (f - y)^2 / 2``, whose second derivative is c; `"logistic"`: ``c`` times the cross
            entropy of a sigmoid with a label of 0 or 1, whose second derivative is ``|r| (1 - |r| / c)``.
        scale: c.
    """

    kind: Literal["squared", "logistic"]
    scale: float

    def curvature(self, residuals: Tensor) -> Tensor:
        """Second derivatives, in the shape of the first ones, whose sign does not count."""
        size = residuals.abs()
        if self.kind == "squared":
            return torch.full_like(size, self.scale)
        return (size * (1 - size / self.scale)).clamp_min(0)


def residual_law(residuals: Tensor, hessian: Tensor) -> ResidualLaw | None:
    """Recognise squared error and logistic loss by their derivatives on some examples.

    Args:
        residuals: ``[n]`` first derivatives in the one output, of either sign.
        hessian: ``[n]`` second derivatives.

    Returns:
        The law that holds for all examples within 1e-3, else None: other losses, soft labels, class weights, or
        residuals that are too much alike to tell, as of a network that is not trained yet.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> residual_law(torch.tensor([0.2, -0.9, 0.5]), torch.tensor([0.16, 0.09, 0.25]))
        ResidualLaw(kind='logistic', scale=1.0)
        >>> residual_law(torch.tensor([0.2, -0.9, 0.5]), torch.tensor([2.0, 2.0, 2.0])).kind
        'squared'
    """
    size, second = as_tensor(residuals).double().abs().flatten(), as_tensor(hessian).double().flatten()
    if size.shape != second.shape:
        raise ValueError(f"each residual has one second derivative, got {len(size)} and {len(second)}.")
    if not len(size) or not bool(size.isfinite().all() & second.isfinite().all()) or not float(second.max()) > 0:
        return None
    if float(size.max() - size.min()) < VARIED * float(size.max()):
        return None
    scale = float(second.mean())
    if float((second - scale).abs().max()) <= ALIKE * scale:
        return ResidualLaw("squared", scale)
    lost = (size - second).sum()
    law = ResidualLaw("logistic", round(float(size.square().sum() / lost), 6)) if float(lost) > 0 else None
    fits = law is not None and bool(((law.curvature(size) - second).abs() <= ALIKE * second.max()).all())
    return law if fits else None


def gauss_newton_from_gradients(gram: Tensor, residual_gram: Tensor, law: ResidualLaw) -> GaussNewton:
    """Read the Gauss-Newton matrix of a batch off its loss gradients, where the model has one output.

    The gradient of example i's loss is ``-r_i J_i``, so the Gram matrix of gradients is ``r_i r_j <J_i, J_j>``, and the
    part of an output bias in it, whose J is 1, is ``r_i r_j``: their quotient is the Gram matrix of the Jacobian. With
    several outputs gradients show J only along the residual of each example, and there is no quotient.

    Args:
        gram: ``[n, n]`` inner products of per-example loss gradients.
        residual_gram: ``[n, n]`` those of the output bias alone.
        law: What the second derivative of the loss is.

    Returns:
        GaussNewton of all n examples, where those whose residual is exactly 0 count as flat: a lower bound if there are
        any, and nan if there are no others.

    Raises:
        ValueError: If the matrices are not square and of one shape.

    Example:
        >>> jacobian, residuals = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([0.5, -0.1])
        >>> gradients = residuals[:, None] * jacobian
        >>> gram, of_bias = gradients @ gradients.T, torch.outer(residuals, residuals)  # the first parameter is a bias
        >>> print(gauss_newton_from_gradients(gram, of_bias, ResidualLaw("squared", 1.0)))
        largest Gauss-Newton eigenvalue 2.618 +- 2.3 (2 examples)
    """
    gram, residual_gram = as_tensor(gram).detach().double(), as_tensor(residual_gram).detach().double()
    n = len(gram)
    if gram.shape != (n, n) or residual_gram.shape != (n, n):
        shapes = f"{list(gram.shape)} and {list(residual_gram.shape)}"
        raise ValueError(f"both Gram matrices are [n, n], got {shapes}.")
    residuals = residual_gram.diagonal().clamp_min(0).sqrt()
    known = residuals > 0
    if not bool(known.any()) or not bool(gram.isfinite().all() & residual_gram.isfinite().all()):
        return _unknown(gram, n)
    kernel = gram[known][:, known] / residual_gram[known][:, known]
    root = law.curvature(residuals).sqrt()[known]
    whole = torch.zeros_like(gram)
    places = known.nonzero()[:, 0]
    whole[places[:, None], places] = root[:, None] * kernel * root
    return _leading(whole, n)


def _leading(matrix: Tensor, n: int) -> GaussNewton:
    """Largest eigenvalue of a matrix whose rows are those of n examples, over n."""
    values, vectors = eigh((matrix + matrix.T) / 2)
    value = values[-1].clamp_min(0) / n
    parts = n * value * vectors[:, -1].square().reshape(n, -1).sum(1)
    return GaussNewton(value, parts.std() / n**0.5 if n > 1 else torch.full_like(value, torch.nan), n)


def _unknown(gram: Tensor, n: int) -> GaussNewton:
    nothing = gram.new_full((), torch.nan)
    return GaussNewton(nothing, nothing, n)
