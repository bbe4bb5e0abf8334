"""The largest eigenvalue of a matrix that is known only by what it does to a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

MIN_PRODUCTS = 5
"""Products that are made whatever the error bound says.

A start near one eigenvector hides another that has overtaken it. With eigenvalues 10 and 12 above 1998 within +-1, and
a start at the eigenvector of the 10 with a tenth of noise, 12 was found in 0 of 30 draws by a search that may stop as
soon as the residual is small, or at the third product; from the fourth in 17, from the fifth in 30.
"""


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
    """What of a vector is orthogonal to a basis, and its coefficients on it; once more removes what rounding left."""
    coefficients = image.new_zeros(len(basis))
    for _ in range(2):
        along = torch.stack([torch.dot(row.double(), image) for row in basis])
        for coefficient, row in zip(along, basis, strict=True):
            image = image - coefficient * row
        coefficients = coefficients + along
    return image, coefficients
