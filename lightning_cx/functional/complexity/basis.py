"""Bases of functions on the examples, ordered by complexity, and the levels and octaves of that order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_cx.functional.complexity.graph import (
    checked_count,
    doubly_stochastic_graph,
    simplest_functions,
)
from lightning_cx.functional.inputs import as_gram, as_matrix, as_tensor
from lightning_cx.functional.linalg import eigh

EXACT_TOLERANCE = 1e-9
"""Complexities closer than this share of the largest are one level: rounding of a closed formula."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal functions on n examples, from the simplest to the most complex.

    Attributes:
        vectors: ``[n, K]`` float64 with orthonormal columns.
        complexity: ``[K]`` float64, ascending: the frequency of each column, in the unit of its family.
        tolerance: Relative difference of complexity below which two columns form one level.

    Raises:
        ValueError: If the shapes disagree or the complexities are not finite and ascending.
    """

    vectors: Tensor
    complexity: Tensor
    tolerance: float = EXACT_TOLERANCE

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.complexity.shape != self.vectors.shape[1:]:
            raise ValueError(
                "a basis needs vectors [n, K] and one complexity per column [K], got "
                f"{list(self.vectors.shape)} and {list(self.complexity.shape)}."
            )
        level_index(self.complexity)
        # A frozen record is only open here; a float32 basis of the user's would not multiply float64 values.
        object.__setattr__(self, "vectors", self.vectors.double())
        object.__setattr__(self, "complexity", self.complexity.double())

    def __str__(self) -> str:
        n, count = self.vectors.shape
        top = float(self.complexity[-1]) if count else 0.0
        return f"Basis of {count} functions on {n} examples, {self.n_levels} levels of complexity up to {top:.4g}"

    @cached_property
    def level_of(self) -> Tensor:
        """``[K]`` int64: the level of each column; columns of equal complexity share one."""
        return level_index(self.complexity, self.tolerance)

    @cached_property
    def n_levels(self) -> int:
        """Number of distinct complexities."""
        return int(self.level_of[-1]) + 1 if self.complexity.numel() else 0

    @cached_property
    def level_complexity(self) -> Tensor:
        """``[n_levels]`` float64: the mean complexity of each level."""
        return mean_by_level(self.complexity, self.level_of, self.n_levels)

    def captured_share(self, values: Tensor) -> Tensor:
        """Return the share of a function that the basis expresses, ``sum_k <phi_k, f>^2 / sum f^2``.

        Medians on the basis see no more than that. Subtract the mean of the values first if the constant should not
        count.

        Args:
            values: ``[n]`` or ``[n, C]``, one row per example; energies of several outputs add up.

        Returns:
            Scalar float64 in ``[0, 1]``, 1 on a complete basis; nan where the values are all zero or not finite.

        Raises:
            ValueError: If the number of rows is not that of the basis.

        Example:
            >>> first_two = Basis(torch.eye(3)[:, :2], torch.arange(2.0))
            >>> first_two.captured_share(torch.tensor([3.0, 0.0, 4.0])).item()
            0.36
        """
        values = self.rows(values)
        if not values.numel():
            raise ValueError(f"a function has at least one output, got values of shape {list(values.shape)}.")
        values = values / values.abs().max()  # squares of 1e200 would overflow; zeros become nan here
        return (self.vectors.T @ values).square().sum() / values.square().sum()

    def rows(self, values: Tensor) -> Tensor:
        """Return values ``[n, ...]`` of the examples, detached, as ``[n, C]`` float64."""
        values, n = as_tensor(values), self.vectors.shape[0]
        if values.ndim == 0 or values.shape[0] != n:
            raise ValueError(f"the basis lives on {n} examples, but the values have shape {list(values.shape)}.")
        return values.detach().double().reshape(n, values[:1].numel())

    def to(self, device: torch.device | str) -> Basis:
        """Return the same basis on another device."""
        return Basis(self.vectors.to(device), self.complexity.to(device), self.tolerance)


def cosine_basis(x: int | Tensor) -> Basis:
    """Order functions of one real variable by the frequency of their cosine.

    On equally spaced points, taken as the centres of n cells that fill the unit interval, this is the DCT-II:
    ``phi_k(x) ~ cos(pi k x)`` of complexity ``k / 2`` cycles per unit interval. On irregular points the same
    cosines, with the first point at 0 and the last at 1, are made orthonormal in order of frequency (QR); the
    first k columns then span the first k cosines. At most ``n / 2`` columns are made there, because beyond the
    mean sampling rate cosines are aliases, and those that the points cannot tell from earlier ones are left out.

    Args:
        x: Number of points of a regular grid, or the points ``[n]`` themselves, in any order.

    Returns:
        Basis of n columns on a regular grid and at most ``n / 2`` (at least one) elsewhere; on the device of x.

    Raises:
        ValueError: If there are no points, or they are not finite or not one-dimensional.

    Example:
        >>> cosine_basis(4).complexity.tolist()
        [0.0, 0.5, 1.0, 1.5]
        >>> print(cosine_basis(torch.tensor([0., .1, .3, .35, .6, 1.])))
        Basis of 3 functions on 6 examples, 3 levels of complexity up to 1
    """
    if isinstance(x, int):
        return _dct_basis(torch.arange(_checked_size(x)))
    x = as_tensor(x)
    if x.ndim != 1:
        raise ValueError(f"points on a line form a tensor of shape [n], got {list(x.shape)}.")
    points = as_matrix(x)[:, 0]
    position = points.argsort().argsort()
    if _is_regular(points.sort().values):
        return _dct_basis(position)
    return _orthogonal_cosines(points)


def fourier_basis(n: int) -> Basis:
    """Order functions on a periodic grid ``x_i = i / n`` by frequency.

    Cosine and sine of one frequency share one complexity, the number of cycles per period, and so form a level.

    Args:
        n: Number of grid points.

    Returns:
        Basis of n columns: constant, cos 1, sin 1, cos 2, sin 2, ...

    Raises:
        ValueError: If n is not positive.

    Example:
        >>> fourier_basis(5).complexity.tolist()
        [0.0, 1.0, 1.0, 2.0, 2.0]
    """
    column = torch.arange(_checked_size(n))
    frequency = (column + 1) // 2
    # Turns are reduced in integers: high frequencies lose no digits, and n angles are all there are.
    turns = column[:, None] * frequency % n
    angle = column.double() * (2 * math.pi / n)
    waves = torch.where(column % 2 == 1, angle.cos()[turns], angle.sin()[turns])
    waves[:, 0] = 1.0
    return Basis(waves / waves.norm(dim=0), frequency.double())


ZERO_EIGENVALUE = 1e-10
"""Laplacian eigenvalues below this are zero: each counts a connected component of the graph."""

GRAPH_TOLERANCE = 1e-6
"""Frequencies of a graph closer than this share of the largest are one level: `eigh` returns its ties inexactly."""


def laplacian_basis(features: Tensor, n_neighbors: int = 10, n_functions: int | None = None) -> Basis:
    """Order functions on arbitrary examples by how fast they change between similar examples.

    Similar means near in feature space: examples form a k-nearest-neighbour graph with self-tuning weights and
    self loops, scaled to a doubly stochastic S. The columns are the eigenvectors of ``L = diag(S 1) - S`` and
    the complexity is the square root of the eigenvalue, a frequency. That scaling keeps the columns orthonormal
    in the plain inner product and gives the constant complexity 0 exactly: it is the first column. A graph of
    several components has as many columns of complexity 0.

    Complexities of different probes cannot be compared, since they grow with n: compare ranks.

    A few functions of very many come from the sparse graph by Lanczos iterations on the host. A basis cut to
    ``n_functions`` knows nothing of what lies above: medians on it are those of the part that it spans (see
    `Basis.captured_share`), and which of several equally complex functions come last is arbitrary.

    Args:
        features: ``[n, ...]``, flattened per example, any real dtype; see `default_features` for raw data.
            Duplicates, constant features and fewer than ``n_neighbors + 1`` examples are welcome.
        n_neighbors: Neighbours that each example is connected to.
        n_functions: Keep only the simplest so many; needed above 4096 examples, and there at most a quarter of
            their number. None, or more than there are examples, means all.

    Returns:
        Basis of n or ``n_functions`` columns, on the device of the features.

    Raises:
        ValueError: If there is no example or feature, a feature is NaN or infinite, a count is below 1, or there
            are more than 4096 examples and ``n_functions`` is not given or too large, or most examples are copies.

    References:
        Belkin & Niyogi 2003, "Laplacian eigenmaps"; Zelnik-Manor & Perona 2004, section 2.1; Marshall & Coifman
        2019, "Manifold learning with bi-stochastic kernels".

    Example:
        >>> two_far_pairs = torch.tensor([0., 1., 100., 101.])
        >>> laplacian_basis(two_far_pairs, n_neighbors=1).complexity.round(decimals=3).tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    matrix = as_matrix(features)
    if matrix.shape[1] < 1:
        raise ValueError(f"nothing tells the {len(matrix)} examples apart: they have no feature, pass at least one.")
    if n_neighbors < 1:
        raise ValueError(f"each example needs at least one neighbour, got n_neighbors={n_neighbors}.")
    count = checked_count(len(matrix), n_functions)
    graph = doubly_stochastic_graph(matrix, n_neighbors)
    eigenvalues, vectors = simplest_functions(graph, count, matrix.device)
    eigenvalues = torch.where(eigenvalues < ZERO_EIGENVALUE, 0.0, eigenvalues)
    return Basis(vectors, eigenvalues.sqrt(), GRAPH_TOLERANCE)


def kernel_basis(gram: Tensor) -> Basis:
    """Order functions by the eigenvalues of a kernel: what the kernel learns first is simplest.

    The natural reference is the network's own tangent kernel at initialisation.

    Args:
        gram: ``[n, n]`` symmetric.

    Returns:
        Basis of n eigenvectors, largest eigenvalue first, of complexity 0, 1, ... n - 1 (the rank).

    Raises:
        ValueError: If the matrix is empty, not square, or not finite.

    Example:
        >>> kernel_basis(torch.diag(torch.tensor([1., 3., 2.]))).vectors.abs().argmax(0).tolist()
        [1, 2, 0]
    """
    gram = as_matrix(as_gram(gram))
    _, vectors = eigh((gram + gram.T) / 2)
    rank = torch.arange(gram.shape[0], dtype=torch.float64, device=gram.device)
    return Basis(vectors.flip(1), rank)


def _dct_basis(position: Tensor) -> Basis:
    n = position.numel()
    k = torch.arange(n, device=position.device)
    # cos(pi k (2 i + 1) / (2 n)) has period 4 n in k (2 i + 1): reduced in integers, no digit is lost.
    angle = torch.arange(4 * n, dtype=torch.float64, device=position.device) * (math.pi / (2 * n))
    waves = angle.cos()[k * (2 * position[:, None] + 1) % (4 * n)]
    return Basis(waves / waves.norm(dim=0), k.double() / 2)


def _checked_size(n: int) -> int:
    if n < 1:
        raise ValueError(f"a basis needs at least one point, got n={n}.")
    return n


def _is_regular(ascending: Tensor) -> bool:
    """Test whether points are equally spaced, up to the rounding of single precision, in which grids are often made."""
    n = ascending.numel()
    if n == 1:
        return True
    spacing = (ascending[-1] - ascending[0]) / (n - 1)
    steps = torch.arange(n, dtype=torch.float64, device=ascending.device)
    deviation = (ascending - ascending[0] - spacing * steps).abs().max()
    allowed = 4 * torch.finfo(torch.float32).eps * ascending.abs().max() + EXACT_TOLERANCE * spacing
    # Rounding as large as the spacing would let any points pass.
    return bool((deviation <= allowed) & (allowed < spacing / 4))


MIN_COSINE_PIVOT = 1e-8
"""Cosines that the earlier ones already span on these points, up to this share, are left out (THEORY 1)."""


def _orthogonal_cosines(points: Tensor) -> Basis:
    # QR in order of frequency, rather than a symmetric orthogonalisation: a column then holds nothing of higher
    # frequencies, so that its complexity is that of its own cosine. A small pivot says that the earlier cosines span
    # this one on these points.
    points = points - points.min()
    points = points / points.max().clamp_min(torch.finfo(torch.float64).tiny)
    k = torch.arange(max(1, points.numel() // 2), dtype=torch.float64, device=points.device)
    vectors, pivots = torch.linalg.qr(torch.cos(math.pi * points[:, None] * k))
    pivots = pivots.diagonal().abs()
    kept = pivots > MIN_COSINE_PIVOT * pivots[0]
    return Basis(vectors[:, kept], k[kept] / 2)


def octave_bands(levels: int) -> list[tuple[int, int]]:
    """Divide the level index into octaves: [0, 1), [1, 2), [2, 4), [4, 8), ...

    Args:
        levels: Number of levels.

    Returns:
        Half-open ranges ``(start, stop)`` that cover ``0 .. levels - 1``; the last one is clipped.

    Raises:
        ValueError: If the number of levels is negative.

    Example:
        >>> octave_bands(7)
        [(0, 1), (1, 2), (2, 4), (4, 7)]
    """
    if levels < 0:
        raise ValueError(f"the number of levels cannot be negative, got {levels}.")
    borders = [0] + [1 << octave for octave in range(max(levels - 1, 0).bit_length())]
    return [(start, min(max(1, 2 * start), levels)) for start in borders if start < levels]


def merge_levels(energy: Tensor, complexity: Tensor, tol: float = EXACT_TOLERANCE) -> tuple[Tensor, Tensor]:
    """Gather the energies of equally complex basis functions into one energy per level.

    A sine and a cosine of one frequency are equally complex, and how energy divides between them depends on
    where the axis begins. Neighbours in complexity that differ by at most ``tol * max |complexity|`` share a
    level: their energies add and their complexities average.

    Args:
        energy: ``[..., L0]``, one energy per basis function; computed in float64.
        complexity: ``[L0]``, ascending.
        tol: Relative gap below which two complexities are the same.

    Returns:
        ``([..., L], [L])`` in float64: energy and complexity of the ``L <= L0`` levels.

    Raises:
        ValueError: If the complexities are not ascending or their number is not that of the energies.

    Example:
        >>> energy, complexity = merge_levels(torch.tensor([1., 2., 3.]), torch.tensor([0., 1., 1.]))
        >>> energy.tolist(), complexity.tolist()
        ([1.0, 5.0], [0.0, 1.0])
    """
    energy, complexity = as_tensor(energy), as_tensor(complexity)
    if complexity.ndim != 1 or energy.shape[-1:] != complexity.shape:
        raise ValueError(
            f"each energy needs one complexity: the last dimension of energy {tuple(energy.shape)} must be "
            f"that of complexity {tuple(complexity.shape)}."
        )
    index = level_index(complexity, tol)
    levels = int(index[-1]) + 1 if index.numel() else 0
    return sum_by_level(energy, index, levels), mean_by_level(complexity, index, levels)


def band_energies(energy: Tensor, bands: list[tuple[int, int]]) -> Tensor:
    """Add up level energies ``[..., L]`` over the half-open ranges of `octave_bands`: ``[..., bands]`` float64."""
    energy = as_tensor(energy)
    levels = energy.shape[-1]
    outside = [band for band in bands if not 0 <= band[0] <= band[1] <= levels]
    if outside:
        raise ValueError(f"band {outside[0]} reaches outside the {levels} levels of the spectrum.")
    energy = energy.double()
    sums = [energy[..., start:stop].sum(-1) for start, stop in bands]
    return torch.stack(sums, dim=-1) if sums else energy.new_zeros(*energy.shape[:-1], 0)


def level_index(complexity: Tensor, tol: float = EXACT_TOLERANCE) -> Tensor:
    """Return the level ``[L0]`` int64 of each basis function; neighbours closer than `tol` (relative) share one."""
    complexity = complexity.double()
    if complexity.numel() == 0:
        return torch.zeros(0, dtype=torch.long, device=complexity.device)
    gaps = complexity.diff()
    # `not all` rather than `any(gaps < 0)`, so that a NaN is refused too.
    if not bool((gaps >= 0).all() & complexity.isfinite().all()):
        raise ValueError("complexity must be finite and ascending: sort the basis by complexity first.")
    opens_a_level = gaps > tol * complexity.abs().max()
    return torch.cat([opens_a_level.new_zeros(1), opens_a_level]).cumsum(0)


def sum_by_level(energy: Tensor, index: Tensor, levels: int) -> Tensor:
    """Add up ``[..., L0]`` energies into ``[..., levels]``."""
    energy = energy.double()
    return energy.new_zeros(*energy.shape[:-1], levels).index_add_(-1, index, energy)


def mean_by_level(complexity: Tensor, index: Tensor, levels: int) -> Tensor:
    """Average ``[L0]`` complexities into ``[levels]``."""
    ones = torch.ones_like(complexity, dtype=torch.float64)
    return sum_by_level(complexity, index, levels) / sum_by_level(ones, index, levels)
