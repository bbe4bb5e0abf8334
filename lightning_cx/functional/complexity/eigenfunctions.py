"""The functions that change slowest over a graph: all of them, or the first few of very many."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import linalg, sparse
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from lightning_cx.functional.linalg import ONE_THREAD_UP_TO, eigh

MAX_DENSE = 4096
"""Examples up to which all functions are computed: 6 s and 0.6 GB there on two cores, growing as n^3 and n^2."""

DENSE_SHARE = 1 / 16
"""Share of all functions above which computing all of them is the faster way to so many."""

MAX_SPARSE_SHARE = 1 / 4
"""Share of all functions that Lanczos iterations are trusted with where there are too many to compute all."""

LANCZOS_TOLERANCE = 1e-14
"""Relative error of the iteration; at eigsh's own, half an epsilon, 51 of 360 runs on complete graphs failed."""

NARROW_BAND = 256
"""Off-diagonals up to which solving with the Laplacian is cheap: the graph is long and thin, as of a time series."""

SHIFT = 1e-8
"""What makes a Laplacian invertible: small against the eigenvalues wanted, large against rounding."""

SAME = 1e-10
"""Eigenvalues of the Laplacian, which lie between 0 and 2, differ by rounding only below this."""


def simplest_functions(graph: sparse.csr_matrix, count: int) -> tuple[Tensor, Tensor]:
    """Find the eigenvectors of a graph's Laplacian with the smallest eigenvalues, the constant first.

    The functions of eigenvalue 0 are those constant on each connected component and are written down; the others
    live on one component each and come from Lanczos iterations started from a fixed vector. Nothing of the size
    ``n x n`` is formed except for components of few examples.

    Args:
        graph: ``[n, n]`` float64, symmetric and doubly stochastic.
        count: How many functions, from 1 to n.

    Returns:
        Ascending eigenvalues ``[count]`` and orthonormal eigenvectors ``[n, count]``, the first exactly constant;
        float64 on the host. Which of several equal functions are among the last is arbitrary, but repeats.

    Raises:
        RuntimeError: If the iterations do not converge.

    References:
        Lehoucq, Sorensen & Yang 1998, "ARPACK users' guide".

    Example:
        >>> pairs = sparse.csr_matrix(np.kron(np.eye(3), np.full((2, 2), 0.5)))
        >>> simplest_functions(pairs, 4)[0].tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    n = graph.get_shape()[0]
    n_components, component_of = connected_components(graph, directed=False)
    constants = _constant_on_components(component_of, min(count, n_components))
    eigenvalues, vectors = np.zeros(count), np.zeros((n, count))
    vectors[:, : constants.shape[1]] = constants
    if count > n_components:
        rest = _varying_on_components(laplacian(graph), component_of, count - n_components)
        for column, (eigenvalue, members, values) in enumerate(rest, start=n_components):
            eigenvalues[column] = eigenvalue
            vectors[members, column] = values
    return torch.from_numpy(eigenvalues), torch.from_numpy(vectors)


def checked_count(n: int, n_functions: int | None) -> int:
    """Return how many functions a graph on n examples shall have, or say why it cannot have them."""
    if n_functions is not None and n_functions < 1:
        raise ValueError(f"a basis needs at least one function, got n_functions={n_functions}.")
    if n <= MAX_DENSE:
        return n if n_functions is None else min(n_functions, n)
    most = int(n * MAX_SPARSE_SHARE)
    if n_functions is None or n_functions > most:
        raise ValueError(
            f"n_functions={n_functions} on {n} examples would take the time and memory of a dense eigenproblem beyond "
            f"{MAX_DENSE} rows: pass n_functions of at most {most} (64 say), or at most {MAX_DENSE} examples."
        )
    return n_functions


def dense_is_faster(n: int, count: int) -> bool:
    """Tell whether `count` of n functions come sooner by computing all of them."""
    return n <= ONE_THREAD_UP_TO or (n <= MAX_DENSE and count > DENSE_SHARE * n)


def _constant_on_components(component_of: np.ndarray, count: int) -> np.ndarray:
    """Write down orthonormal functions that are constant on each component, the constant itself first."""
    sizes = np.bincount(component_of)
    mirror = np.sqrt(sizes / sizes.sum())  # the constant, in coordinates where each indicator has length 1
    mirror[0] += 1.0
    coordinates = np.eye(len(sizes), count) - np.outer(mirror, mirror[:count]) / mirror[0]  # |mirror|^2 = 2 mirror_0
    functions = (coordinates / np.sqrt(sizes)[:, None])[component_of]
    functions[:, 0] = len(component_of) ** -0.5
    return functions


def _varying_on_components(
    laplacian: sparse.csr_matrix, component_of: np.ndarray, count: int
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """List the `count` simplest functions that vary on some component: eigenvalue, members, values on them."""
    order = np.argsort(component_of, kind="stable")
    ordered = laplacian[order][:, order]
    stops = np.bincount(component_of).cumsum()
    found = []
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        block, wanted = ordered[start:stop, start:stop], min(count, stop - start - 1)
        if wanted > 0:
            eigenvalues, vectors = _varying(block, wanted)
            found += [(float(v), order[start:stop], vectors[:, j]) for j, v in enumerate(eigenvalues)]
    return sorted(found, key=lambda function: function[0])[:count]


def _varying(laplacian: sparse.csr_matrix, count: int) -> tuple[np.ndarray, np.ndarray]:
    if dense_is_faster(laplacian.get_shape()[0], count):
        eigenvalues, vectors = eigh_with_constant_first(torch.from_numpy(laplacian.toarray()))
        return eigenvalues[1 : count + 1].numpy(), vectors[:, 1 : count + 1].numpy()
    return _lanczos(laplacian, count)


def _lanczos(laplacian: sparse.csr_matrix, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Iterate until nothing simpler is left beside what was found.

    One vector alone sees one function of each eigenspace, so that symmetric graphs would come out incomplete:
    the search is repeated in the complement of what was found until it meets nothing below the last eigenvalue.
    """
    n = laplacian.get_shape()[0]
    amplify = _inverse(laplacian) or (lambda values: 2 * values - laplacian @ values)
    random = np.random.default_rng(0)
    eigenvalues, vectors = np.zeros(0), np.zeros((n, 0))
    wanted = count
    while True:
        known = np.concatenate([np.full((n, 1), n**-0.5), vectors], axis=1)
        new = _most_amplified(amplify, known, wanted, random)
        last = eigenvalues[-1] if len(eigenvalues) else np.inf
        simplest_new = _rayleigh_ritz(laplacian, known[:, :1], new)[0][0]
        if simplest_new > last - SAME:
            return eigenvalues, vectors
        eigenvalues, vectors = _rayleigh_ritz(laplacian, known[:, :1], np.concatenate([vectors, new], axis=1))
        eigenvalues, vectors = eigenvalues[:count], vectors[:, :count]
        wanted = 1 if last == np.inf else min(2 * wanted, count)


def _inverse(laplacian: sparse.csr_matrix) -> Callable[[np.ndarray], np.ndarray] | None:
    """Factorise ``L + shift``, if it is narrow enough, in the order that keeps neighbours close together."""
    order = reverse_cuthill_mckee(laplacian, symmetric_mode=True)
    entries = sparse.coo_matrix(laplacian[order][:, order])
    offset = entries.row - entries.col
    if offset.max() > NARROW_BAND:
        return None
    lower = offset >= 0
    band = np.zeros((offset.max() + 1, laplacian.get_shape()[0]))
    band[offset[lower], entries.col[lower]] = entries.data[lower]
    band[0] += SHIFT
    factor = linalg.cholesky_banded(band, overwrite_ab=True, lower=True, check_finite=False)

    def solve(values: np.ndarray) -> np.ndarray:
        solution = np.empty_like(values)
        solution[order] = linalg.cho_solve_banded((factor, True), values[order], check_finite=False)
        return solution

    return solve


def _most_amplified(
    amplify: Callable[[np.ndarray], np.ndarray], known: np.ndarray, count: int, random: np.random.Generator
) -> np.ndarray:
    """Find the `count` leading eigenvectors of a positive operator in the complement of what is known."""
    options: dict[str, Any] = {"tol": LANCZOS_TOLERANCE}
    # Since scipy 1.17 `eigsh` draws from the system's entropy where an invariant subspace ends the iteration.
    if "rng" in inspect.signature(eigsh).parameters:
        options["rng"] = random
    operator = _Beside(known, amplify)
    start = operator.project(random.standard_normal(known.shape[0]))
    try:
        return eigsh(operator, k=count, which="LA", v0=start, **options)[1]
    except ArpackError as error:
        raise RuntimeError(
            f"Lanczos iterations for {count} functions on {known.shape[0]} connected examples ended without result "
            f"({error}): pass a smaller n_functions, or at most {MAX_DENSE} examples and no n_functions."
        ) from error


class _Beside(LinearOperator):
    """An operator in the orthogonal complement of some vectors."""

    def __init__(self, known: np.ndarray, amplify: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(np.float64, (known.shape[0], known.shape[0]))
        self.known, self.amplify = known, amplify

    def project(self, values: np.ndarray) -> np.ndarray:
        return values - self.known @ (self.known.T @ values)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self.project(self.amplify(self.project(x.ravel())))


def _rayleigh_ritz(
    laplacian: sparse.csr_matrix, constant: np.ndarray, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Diagonalise the Laplacian on the span of some vectors: their error enters the eigenvalues squared."""
    basis = np.linalg.qr(vectors - constant @ (constant.T @ vectors))[0]
    eigenvalues, rotation = np.linalg.eigh(basis.T @ (laplacian @ basis))
    return eigenvalues, basis @ rotation


def laplacian(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    """Form ``L = diag(S 1) - S``, whose quadratic form sums squared differences over the edges."""
    return sparse.csr_matrix(sparse.diags(graph @ np.ones(graph.get_shape()[0])) - graph)


def eigh_with_constant_first(laplacian: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonalise a Laplacian on the complement of the constant, and put the constant in front.

    `eigh` on the whole matrix returns an arbitrary rotation of the null space, and the constant mixed with
    every eigenvector of small eigenvalue.

    Args:
        laplacian: ``[n, n]`` float64, symmetric, rows summing to 0; overwritten.

    Returns:
        Ascending eigenvalues ``[n]``, the first exactly 0, and orthonormal eigenvectors ``[n, n]``, the first
        exactly constant.
    """
    n = laplacian.shape[0]
    constant = laplacian.new_full((n,), n**-0.5)
    if n == 1:
        return laplacian.new_zeros(1), constant[:, None]
    mirror = constant.clone()  # Householder: reflecting along e_0 + c swaps -e_0 and the constant c
    mirror[0] += 1.0
    mirror /= mirror.norm()
    # H L H for H = 1 - 2 m m^T differs from L by two matrices of rank one: no product of matrices is needed.
    image = laplacian @ mirror
    image -= (mirror @ image) * mirror
    laplacian.addr_(mirror, image, alpha=-2).addr_(image, mirror, alpha=-2)
    eigenvalues, rotation = eigh(laplacian[1:, 1:])
    vectors = laplacian.zero_()
    vectors[1:, 1:] = rotation
    vectors[:, 1:].addr_(mirror, mirror[1:] @ rotation, alpha=-2)
    vectors[:, 0] = constant
    return torch.cat([eigenvalues.new_zeros(1), eigenvalues]), vectors
