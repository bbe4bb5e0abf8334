"""The axis that centred functions are measured on, and the principal modes of a Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.complexity.basis import Basis
from lightning_cx.functional.complexity.levels import sum_by_level
from lightning_cx.functional.linalg import eigh, eigvalsh

MIN_EIGENVALUE = 1e-8
"""Eigenvalues below this share of the largest are rounding of a float32 backward (THEORY 3)."""

CONSTANT_ENERGY = 1 - 1e-9
"""A basis function with this share of its energy in the constant is the constant."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Levels of complexity, with or without the constant.

    Attributes:
        vectors: ``[n, K]`` float64, the basis functions.
        level_of: ``[K]`` int64, the level of each.
        complexity: ``[L]`` float64, the complexity of each level.
    """

    vectors: Tensor
    level_of: Tensor
    complexity: Tensor

    @classmethod
    def of(cls, basis: Basis) -> Axis:
        """All levels of a basis."""
        return cls(basis.vectors, basis.level_of, basis.level_complexity)

    @classmethod
    def without_constant(cls, basis: Basis) -> Axis:
        """Leave out the first level if it is the constant; other components of a graph stay with it."""
        in_first = int((basis.level_of == 0).sum())
        n = basis.vectors.shape[0]
        if in_first != 1 or float(basis.vectors[:, 0].sum() ** 2) <= CONSTANT_ENERGY * n:
            return cls.of(basis)
        return cls(basis.vectors[:, 1:], basis.level_of[1:] - 1, basis.level_complexity[1:])

    @property
    def n_levels(self) -> int:
        """Number of levels."""
        return self.complexity.numel()

    def energies(self, functions: Tensor) -> Tensor:
        """Level energies ``[r, L]`` of functions ``[n * C, r]``; rows of one example stand together, outputs add up."""
        (n, K), (rows, count) = self.vectors.shape, functions.shape
        coefficients = (self.vectors.T @ functions.reshape(n, rows // n * count)).reshape(K, rows // n, count)
        return sum_by_level(coefficients.square().sum(1).T, self.level_of, self.n_levels)

    def functions_of(self, level_energies: Tensor) -> Tensor:
        """Give each function ``[..., K]`` of a level an equal part of its energy ``[..., L]``."""
        size = torch.bincount(self.level_of, minlength=self.n_levels)
        return (level_energies / size)[..., self.level_of]

    def position(self, index: Tensor) -> Tensor:
        """Turn a median index into a share of the index range, 0 the simplest level and 1 the most complex."""
        last = self.n_levels - 1
        return index.clamp(0, last) / last if last > 0 else torch.full_like(index, torch.nan)


def centred(rows: Tensor, n_examples: int) -> Tensor:
    """Take the mean over the examples off a matrix ``[n * C, m]``, for each of C outputs by itself."""
    by_example = rows.reshape(n_examples, len(rows) // n_examples, rows.shape[1])
    return (by_example - by_example.mean(0)).reshape(rows.shape)


def principal_modes(gram: Tensor, n_examples: int, center: bool = True) -> tuple[Tensor, Tensor]:
    """Diagonalise a Gram matrix and keep what is more than rounding.

    Args:
        gram: ``[n * C, n * C]``, rows of one example together.
        n_examples: n.
        center: Whether to take off the mean over the examples first.

    Returns:
        Descending eigenvalues ``[r]`` and modes ``[n * C, r]``, float64; r = 0 where nothing is left or an entry is
        not finite.
    """
    matrix, rounding = _prepared(gram, n_examples, center)
    if matrix is None:
        return gram.new_zeros(0, dtype=torch.float64), gram.new_zeros((gram.shape[0], 0), dtype=torch.float64)
    eigenvalues, modes = eigh(matrix)
    kept = _are_more_than_rounding(eigenvalues, rounding)
    return eigenvalues[kept].flip(0), modes[:, kept].flip(1)


def principal_eigenvalues(gram: Tensor, n_examples: int, center: bool = True) -> Tensor:
    """Descending eigenvalues of `principal_modes` ``[r]``, float64, where nobody asks for the modes."""
    matrix, rounding = _prepared(gram, n_examples, center)
    if matrix is None:
        return gram.new_zeros(0, dtype=torch.float64)
    eigenvalues = eigvalsh(matrix)
    return eigenvalues[_are_more_than_rounding(eigenvalues, rounding)].flip(0)


def _prepared(gram: Tensor, n_examples: int, center: bool) -> tuple[Tensor | None, Tensor]:
    """The symmetric float64 matrix, centred if wished, and what counts as rounding in it; None if it has no modes."""
    size = gram.shape[0]
    resolution = torch.finfo(gram.dtype).eps if gram.is_floating_point() else torch.finfo(torch.float64).eps
    gram = gram.double()
    matrix = centred(centred(gram, n_examples).T, n_examples) if center and size else gram
    if size == 0 or not bool(matrix.isfinite().all()):  # eigh raises on these
        return None, gram.new_zeros(())
    return (matrix + matrix.T) / 2, size * resolution * gram.abs().max()


def _are_more_than_rounding(eigenvalues: Tensor, rounding: Tensor) -> Tensor:
    """Eigenvalues of rounding, in the dtype the Gram matrix came in, are no modes.

    Where all gradients are alike nothing else is left, and only the size of what was centred tells.
    """
    return eigenvalues > torch.maximum(MIN_EIGENVALUE * eigenvalues[-1], rounding)
