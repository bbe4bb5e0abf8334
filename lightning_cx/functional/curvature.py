"""The largest eigenvalue of the Hessian by Lanczos, that of the Gauss-Newton matrix, and their errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.linalg import eigh
from lightning_cx.functional.noise import CONFIDENCE


@dataclass(frozen=True, eq=False)
class LeadingEigenvalue:
    """The largest eigenvalue of a symmetric matrix with its error bound; tensors are on the device of the products.

    Attributes:
        value: ``[]`` float64, never above the truth but for rounding; nan where a product was not finite.
        residual: ``[]`` float64, ``|A v - value v|``: an eigenvalue lies within that distance.
        vector: ``[P]`` float64 of length 1, the direction v in which the matrix is that large; nan like the value.
        products: How often the matrix was applied.
        converged: Whether the residual is as small as was asked for.
    """

    value: Tensor
    residual: Tensor
    vector: Tensor
    products: int
    converged: bool

    def __str__(self) -> str:
        if not bool(self.value.isfinite()):
            return f"largest eigenvalue unknown: product {self.products} was not finite"
        state = "converged" if self.converged else "not converged"
        return f"largest eigenvalue {self.value:.4g} +{self.residual:.2g}, {state} after {self.products} products"


MIN_PRODUCTS = 5
"""Products that are made whatever the error bound says.

A start near one eigenvector hides another that has overtaken it. With eigenvalues 10 and 12 above 1998 within +-1, and
a start at the eigenvector of the 10 with a tenth of noise, 12 was found in 0 of 30 draws by a search that may stop as
soon as the residual is small, or at the third product; from the fourth in 17, from the fifth in 30.
"""


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor],
    size: int,
    scale: Tensor | None = None,
    start: Tensor | None = None,
    iterations: int = 20,
    tolerance: float = 0.01,
    seed: int = 0,
) -> LeadingEigenvalue:
    """Find the largest (not the largest in size) eigenvalue of A, or of ``D^1/2 A D^1/2`` for a diagonal D >= 0.

    Lanczos: the best eigenvector in the span of ``v, A v, A^2 v, ...``. Every new direction is made orthogonal to all
    earlier ones, twice, in float64; the directions are kept in the dtype of the products, so that it takes
    ``iterations`` vectors of that dtype and a few of float64.

    Args:
        product: ``v [P] float64 -> A v [P]`` of any float dtype and device; A symmetric.
        size: P.
        scale: ``[P]`` diagonal of D; None takes 1 everywhere.
        start: ``[P]`` first direction of any length; None draws one from a generator of its own.
        iterations: Products at most.
        tolerance: Stop once the residual is below this share of the eigenvalue, but not before 5 products.
        seed: Of the first direction.

    Returns:
        LeadingEigenvalue. A random start misses an eigenvector only by bad luck; a start that is orthogonal to it
        misses it for certain. All is nan, and 0 products were made, where the size is 0.

    Raises:
        ValueError: If there are no iterations, the tolerance is not positive, `start` or `scale` has another size, the
            start is zero or not finite, or the scale is negative or not finite.

    References:
        Parlett 1998, "The symmetric eigenvalue problem", section 4.5 for the bound and 6.9 for "twice is enough";
        Kuczynski & Wozniakowski 1992 for how much a random start can miss.

    Example:
        >>> matrix = torch.diag(torch.tensor([3.0, 1.0, -7.0], dtype=torch.float64))
        >>> leading = largest_eigenvalue(lambda v: matrix @ v, 3)
        >>> round(float(leading.value), 9), leading.converged, leading.products
        (3.0, True, 3)
    """
    if iterations < 1 or not tolerance > 0:
        raise ValueError(f"it takes one iteration and a positive tolerance, got {iterations} and {tolerance}.")
    root = None if scale is None else _root(scale, size)
    direction = _first(start, size, seed)
    nothing = direction.new_full((), torch.nan)
    if size == 0:
        return LeadingEigenvalue(nothing, nothing, direction, 0, False)

    # Full reorthogonalisation rather than the three-term recurrence: in finite precision the recurrence loses
    # orthogonality as soon as an eigenvalue has converged, and then finds copies of it (Parlett 1998, chapter 13). With
    # 20 directions at most, it costs nothing beside a pass over the network.
    basis: list[Tensor] = []
    projected = torch.zeros(min(iterations, size), min(iterations, size), dtype=torch.float64)  # V^T A V
    values = weights = projected
    residual, converged = torch.inf, False
    for step in range(len(projected)):
        image = product(direction if root is None else root.to(direction) * direction)
        if not bool(image.isfinite().all()):
            unknown = torch.full_like(image, torch.nan, dtype=torch.float64)
            return LeadingEigenvalue(unknown[0], unknown[0], unknown, step + 1, False)
        basis.append(direction.to(image))
        rounding = torch.finfo(image.dtype).eps
        image = image.double() if root is None else root.to(image.device) * image.double()
        image, along = _orthogonal(image, basis)
        projected[: step + 1, step] = projected[step, : step + 1] = along.cpu()
        values, weights = torch.linalg.eigh(projected[: step + 1, : step + 1])
        left = float(image.norm())
        residual = left * abs(float(weights[-1, -1]))
        noise = 10 * rounding * float(values.abs().max())
        converged = residual <= max(tolerance * abs(float(values[-1])), noise)
        if left <= noise or (converged and step + 1 >= MIN_PRODUCTS):
            break
        direction = image / left
    vector = torch.zeros_like(basis[0], dtype=torch.float64)
    for weight, row in zip(weights[:, -1].tolist(), basis, strict=True):
        vector.add_(row, alpha=weight)
    value = values[-1].to(vector.device)
    return LeadingEigenvalue(value, value.new_tensor(residual), vector / vector.norm(), len(basis), converged)


def _root(scale: Tensor, size: int) -> Tensor:
    scale = as_tensor(scale).double()
    if scale.shape != (size,) or not bool((scale.isfinite() & (scale >= 0)).all()):
        raise ValueError(f"scale must be {size} finite numbers that are not negative, got shape {list(scale.shape)}.")
    return scale.sqrt()


def _first(start: Tensor | None, size: int, seed: int) -> Tensor:
    if start is None:
        draw = torch.Generator().manual_seed(seed)
        start = torch.randn(size, generator=draw, dtype=torch.float64)
    start = as_tensor(start).double()
    length = start.norm()
    if start.shape != (size,) or (size and not bool(length.isfinite() & (length > 0))):
        raise ValueError(f"start must be {size} finite numbers that are not all 0, got shape {list(start.shape)}.")
    return start / length


def _orthogonal(image: Tensor, basis: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Project a vector off a basis, twice against rounding, and return what is left and the coefficients."""
    coefficients = image.new_zeros(len(basis))
    for _ in range(2):
        along = torch.stack([torch.dot(row.double(), image) for row in basis])
        for coefficient, row in zip(along, basis, strict=True):
            image = image - coefficient * row
        coefficients = coefficients + along
    return image, coefficients


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


CONCAVE = 1e-2
"""Negative second derivatives of a loss below this share of its largest are the rounding of a float32 backward."""


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
        nothing = gram.new_full((), torch.nan)
        return GaussNewton(nothing, nothing, n)
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


def _leading(matrix: Tensor, n: int) -> GaussNewton:
    """Return the largest eigenvalue, over n, of a matrix whose rows are those of n examples."""
    values, vectors = eigh((matrix + matrix.T) / 2)
    value = values[-1].clamp_min(0) / n
    parts = n * value * vectors[:, -1].square().reshape(n, -1).sum(1)
    return GaussNewton(value, parts.std() / n**0.5 if n > 1 else torch.full_like(value, torch.nan), n)


def nested_mean_error(means: Tensor, counts: Tensor) -> Tensor:
    """Compute the standard error of a mean over examples from its values on growing parts of them.

    Means over the first ``c_1 < c_2 < ... < c_K`` examples give the means ``m_k`` of the K stretches between, of
    ``d_k`` examples each, and ``se^2 = sum_k d_k (m_k - m)^2 / ((K - 1) c_K)``, unbiased for independent examples. It
    has K - 1 degrees of freedom.

    Args:
        means: ``[K]`` any float dtype; the last is the mean whose error is asked for.
        counts: ``[K]`` how many examples each is of, ascending.

    Returns:
        ``[]`` float64, not negative; nan for fewer than 2 parts or non-finite means.

    Raises:
        ValueError: If the shapes differ, or counts are not positive and ascending.

    Example:
        >>> float(nested_mean_error([1.0, 2.0], [1, 2]))  # single values 1 and 3
        1.0
    """
    means, counts = as_tensor(means).double(), as_tensor(counts).double()
    sizes = counts.diff(prepend=counts.new_zeros(1))
    if means.shape != counts.shape or means.dim() != 1 or not bool((sizes > 0).all()):
        raise ValueError(f"each mean has a count, ascending, got {means.tolist()} and {counts.tolist()}.")
    if len(means) < 2:
        return means.new_full((), torch.nan)
    parts = (means * counts).diff(prepend=means.new_zeros(1)) / sizes
    return ((sizes * (parts - means[-1]).square()).sum() / ((len(means) - 1) * counts[-1])).sqrt()


def half_width(standard_error: float, degrees_of_freedom: int, share: float = 0.0) -> float:
    """Compute half of the 95% interval of a mean of n examples out of N: ``t se sqrt(1 - n / N)``, t Student's.

    `share` is n / N, 0 where N is endless or unknown. 0 where all examples were looked at, else nan for less than 1
    degree of freedom. Cochran 1977, "Sampling techniques", section 2.6, for the finite population.

    Example:
        >>> round(half_width(1.0, 7), 3), half_width(1.0, 7, share=1.0)
        (2.365, 0.0)
    """
    if share >= 1:
        return 0.0
    if degrees_of_freedom < 1:
        return float("nan")
    quantile = float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))
    return quantile * standard_error * (1 - max(share, 0.0)) ** 0.5
