"""The neighbourhood graph of the examples, and the functions that change slowest over it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh, splu
from torch import Tensor

from lightning_cx.functional.linalg import ONE_THREAD_UP_TO, eigh


def doubly_stochastic_graph(features: Tensor, n_neighbors: int) -> sparse.csr_matrix:
    """Connect each example with its nearest neighbours by weights that sum to one at every example; symmetric."""
    return sinkhorn(knn_affinity(features, n_neighbors))


def knn_affinity(features: Tensor, n_neighbors: int) -> sparse.csr_matrix:
    """Weigh the union k-nearest-neighbour graph by self-tuning Gaussians: ``[n, n]`` float64, exactly symmetric.

    ``w_ij = exp(-d_ij^2 / (s_i s_j))`` where i is among the neighbours of j or j among those of i, 1 on the
    diagonal, 0 elsewhere; ``s_i`` is the distance of i to its 7th neighbour (Zelnik-Manor & Perona 2004,
    "Self-tuning spectral clustering"). Where more than 7 examples coincide that distance is 0, and the nearest
    example that is not a copy sets the scale instead.
    """
    n = features.shape[0]
    row, column, distance, scale = nearest_neighbors(features, n_neighbors)
    # Two ratios rather than d^2 / (s_i s_j), which can underflow to 0 / 0.
    weight = torch.exp(-(distance / scale[row]) * (distance / scale[column]))
    pairs = (row.cpu().numpy(), column.cpu().numpy())
    neighbors = sparse.csr_matrix((weight.cpu().numpy(), pairs), shape=(n, n))
    affinity = sparse.csr_matrix(neighbors.maximum(neighbors.T) + sparse.identity(n))
    affinity.eliminate_zeros()
    return affinity


MAX_SCALING_STEPS = 10_000
"""Ordinary graphs need 20 to 60 steps; this only bounds the time spent on a pathological one."""

ROW_SUM_TOLERANCE = 1e-12
"""The scaling stops once every row sums to 1 within this; rounding allows little better."""


def sinkhorn(affinity: sparse.csr_matrix) -> sparse.csr_matrix:
    """Scale a symmetric matrix of non-negative entries to row sums 1, keeping it symmetric: ``S = D W D``.

    The damped fixed point ``d <- d / sqrt(d * (W d))`` contracts at the rate ``(1 - smallest eigenvalue of S) / 2``;
    the undamped one oscillates (Knight, Ruiz & Ucar 2014, "A symmetry preserving algorithm for matrix scaling"). A
    positive diagonal makes sure that a scaling exists.
    """
    n = affinity.get_shape()[0]
    scale = 1 / np.sqrt(affinity @ np.ones(n))
    for _ in range(MAX_SCALING_STEPS):
        row_sums = scale * (affinity @ scale)
        if abs(row_sums - 1).max() < ROW_SUM_TOLERANCE:
            break
        scale /= np.sqrt(row_sums)
    row = np.repeat(np.arange(n), np.diff(affinity.indptr))
    # The product of the two scales first: w s_i s_j is then the same number as w s_j s_i.
    weights = affinity.data * (scale[row] * scale[affinity.indices])
    return sparse.csr_matrix((weights, affinity.indices, affinity.indptr), shape=(n, n))


BLOCK_ENTRIES = 1 << 20
"""Numbers in one block of distances or differences, 8 MiB: 2 to 32 took the same time within a fourth."""

MAX_EDGES = 1 << 24
"""Edges of the complete graph on 4096 examples; more come only from ties, as among thousands of copies."""


def nearest_neighbors(features: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the neighbours of every example, exactly, and the length scale around it.

    All distances are first bracketed by a product of matrices, block by block of examples; only the pairs whose
    bracket reaches below that of the k-th neighbour are then measured by their differences. So copies are at
    distance exactly zero, near copies keep their digits, and neither ``n x n`` nor ``n x n x d`` numbers are held.
    Returned are example, neighbour and distance of each pair, ties with the last neighbour on top, and the scale
    ``[n]``: positive, inf where all examples coincide. The unit of length is the largest absolute coordinate.
    """
    n = features.shape[0]
    # Without the division a feature of 1e200 would overflow when squared; the graph knows no unit of length.
    features = features.detach().double()
    features = features / features.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    centred = features - features.mean(0)  # brackets are as tight as the distances from the centre are short
    squares = centred.square().sum(1)
    copy_of = features.unique(dim=0, return_inverse=True)[1]
    found, scales, n_edges = [], [], 0
    height = max(1, min(n, BLOCK_ENTRIES // n))
    # Blocks made anew each time would leave holes between the small results: the heap grew to n x n after all.
    blocks = squares.new_empty(height, n), squares.new_empty(height, n), squares.new_empty(height, n, dtype=torch.bool)
    for rows in torch.arange(n, device=features.device).split(height):
        row, column = _candidates(rows, centred, squares, copy_of, n_neighbors, blocks)
        distance = _exact_distances(features, row, column, copy_of)
        near, scale = _nearest(row - rows[0], distance, len(rows), n_neighbors)
        found.append((row[near], column[near], distance[near]))
        scales.append(scale)
        n_edges += len(found[-1][0])
        if n_edges > MAX_EDGES:
            raise ValueError(
                f"the {int(rows[-1]) + 1} first of {n} examples have {n_edges} equally near neighbours, {MAX_EDGES} "
                "pairs can be stored: drop copies of examples (features.unique(dim=0)) or pass fewer examples."
            )
    row, column, distance = (torch.cat(parts) for parts in zip(*found, strict=True))
    return row, column, distance, torch.cat(scales)


LOCAL_SCALE_NEIGHBOR = 7
"""Which neighbour's distance sets an example's length scale (Zelnik-Manor & Perona 2004, section 2.1)."""

TIE = 1e-9
"""Neighbours this close (relatively) to the k-th are taken too, so that the order of examples never decides."""


def _candidates(
    rows: Tensor, centred: Tensor, squares: Tensor, copy_of: Tensor, n_neighbors: int, blocks: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """List the pairs that may be neighbours or set the scale: all that rounding does not rule out."""
    n, d = centred.shape
    size, squared, is_copy = (block[: len(rows)] for block in blocks)
    torch.add(squares[rows, None], squares, out=size)
    torch.addmm(size, centred[rows], centred.T, alpha=-2, out=squared)
    torch.eq(copy_of[rows, None], copy_of, out=is_copy)
    number = torch.finfo(torch.float64)
    # Bounds the rounding of the sums of d products, with a factor of two to spare.
    doubt = size.mul_((2 * d + 16) * number.eps).add_(number.tiny)
    upper = squared.add_(doubt).masked_fill_(is_copy, 0.0)
    itself = (torch.arange(len(rows), device=rows.device), rows)
    upper[itself] = torch.inf
    count = min(max(n_neighbors, LOCAL_SCALE_NEIGHBOR), n - 1)
    farthest = upper.topk(count, largest=False).values[:, -1:] if count else upper.amin(1, keepdim=True)
    # The nearest example that is no copy sets the scale where all these are copies.
    limit = torch.maximum(farthest, upper.masked_fill_(is_copy, torch.inf).amin(1, keepdim=True))
    lower = upper.sub_(doubt, alpha=2).masked_fill_(is_copy, 0.0)
    may_be_near = torch.le(lower, limit * (1 + 3 * TIE), out=is_copy)
    may_be_near[itself] = False
    row, column = may_be_near.nonzero(as_tuple=True)
    return rows[row], column


def _exact_distances(features: Tensor, row: Tensor, column: Tensor, copy_of: Tensor) -> Tensor:
    distance = features.new_zeros(len(row))
    pairs = (copy_of[row] != copy_of[column]).nonzero()[:, 0]
    for part in pairs.split(max(1, BLOCK_ENTRIES // max(1, features.shape[1]))):
        difference = features[row[part]].sub_(features[column[part]])
        # Divided by the largest before squaring: examples that differ at all are at a distance above zero.
        largest = difference.abs().amax(1, keepdim=True)
        distance[part] = difference.div_(largest).square_().sum(1).sqrt_().mul_(largest[:, 0])
    return distance


def _nearest(row: Tensor, distance: Tensor, n_rows: int, n_neighbors: int) -> tuple[Tensor, Tensor]:
    """Select the neighbours among candidate pairs and the length scale of each row; rows ascend from 0."""
    counts = row.bincount(minlength=n_rows)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    table = distance.new_full((n_rows, max(1, int(counts.max()))), torch.inf)
    table[row, place] = distance
    ascending = table.sort(1).values
    last = (counts - 1).clamp_min(0)
    kth = ascending.gather(1, last.clamp_max(n_neighbors - 1)[:, None])[:, 0]
    scale = ascending.gather(1, last.clamp_max(LOCAL_SCALE_NEIGHBOR - 1)[:, None])[:, 0]
    nearest_other = table.masked_fill_(table == 0, torch.inf).amin(1)
    return distance <= kth[row] * (1 + TIE), torch.where(scale > 0, scale, nearest_other)


MAX_DENSE = 4096
"""Examples up to which all functions are computed: 6 s and 0.6 GB there on two cores, growing as n^3 and n^2."""

MAX_SPARSE_SHARE = 1 / 4
"""Share of all functions that Lanczos iterations are trusted with where there are too many to compute all."""


def checked_count(n: int, n_functions: int | None) -> int:
    """Return how many functions a graph on n examples shall have, or raise if it cannot have them."""
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


def simplest_functions(
    graph: sparse.csr_matrix, count: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Find the eigenvectors of a graph's Laplacian ``diag(S 1) - S`` with the smallest eigenvalues, the constant first.

    Few of many come from Lanczos iterations (`scipy.sparse.linalg.eigsh`; Lehoucq, Sorensen & Yang 1998), which form
    nothing of the size ``n x n``; otherwise the dense matrix is diagonalised on the device. Which of several equal
    functions are among the last is arbitrary, but repeats.
    """
    n = graph.get_shape()[0]
    matrix = sparse.csr_matrix(sparse.diags(graph @ np.ones(n)) - graph)
    if dense_is_faster(n, count):
        eigenvalues, vectors = eigh_with_constant_first(torch.from_numpy(matrix.toarray()).to(device))
        return eigenvalues[:count], vectors[:, :count].contiguous()
    constants = _constant_on_components(graph, count)
    eigenvalues, vectors = _varying(matrix, constants, count - constants.shape[1])
    eigenvalues = np.concatenate([np.zeros(constants.shape[1]), eigenvalues])
    vectors = np.concatenate([constants, vectors], axis=1)
    return torch.from_numpy(eigenvalues).to(device), torch.from_numpy(vectors).to(device)


DENSE_SHARE = 1 / 16
"""Share of all functions above which computing all of them is the faster way to so many."""


def dense_is_faster(n: int, count: int) -> bool:
    """Decide whether computing all n functions is the faster way to `count` of them."""
    return n <= ONE_THREAD_UP_TO or (n <= MAX_DENSE and count > DENSE_SHARE * n)


def eigh_with_constant_first(laplacian: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonalise a Laplacian on the complement of the constant, put in front; the matrix is overwritten.

    `eigh` on the whole matrix returns an arbitrary rotation of the null space, and the constant mixed with every
    eigenvector of small eigenvalue.
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


def _constant_on_components(graph: sparse.csr_matrix, most: int) -> np.ndarray:
    """Write down the eigenvectors of eigenvalue 0: constant on each component, the constant itself first."""
    component_of = connected_components(graph, directed=False)[1]
    sizes = np.bincount(component_of)
    count = min(most, len(sizes))
    mirror = np.sqrt(sizes / sizes.sum())  # the constant, in coordinates where each indicator has length 1
    mirror[0] += 1.0
    coordinates = np.eye(len(sizes), count) - np.outer(mirror, mirror[:count]) / mirror[0]  # |mirror|^2 = 2 mirror_0
    functions = (coordinates / np.sqrt(sizes)[:, None])[component_of]
    functions[:, 0] = len(component_of) ** -0.5
    return functions


SAME = 1e-10
"""Eigenvalues of the Laplacian, which lie between 0 and 2, differ by rounding only below this."""


def _varying(laplacian: sparse.csr_matrix, constants: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Iterate in the complement of the constants until nothing simpler is left beside what was found.

    From one start vector Lanczos sees one function of each eigenspace, so that symmetric graphs would come out
    incomplete: of the twelve slowest functions of a 12-cube ARPACK returns four, and then a faster one. A block method
    (LOBPCG) would see all, but takes 2 to 80 times as long on neighbourhood graphs of 2000 to 8000 examples. So the
    search is repeated in the complement of what was found until it meets nothing below the last eigenvalue.
    """
    n = laplacian.get_shape()[0]
    amplify = _amplifier(laplacian)
    random = np.random.default_rng(0)
    eigenvalues, vectors = np.zeros(0), np.zeros((n, 0))
    wanted, last = count, np.inf
    while wanted:
        known = np.concatenate([constants, vectors], axis=1)
        new = _most_amplified(amplify, known, wanted, random)
        if _rayleigh_ritz(laplacian, constants, new)[0][0] > last - SAME:
            break
        wanted = 1 if last == np.inf else min(2 * wanted, count)
        eigenvalues, vectors = _rayleigh_ritz(laplacian, constants, np.concatenate([vectors, new], axis=1))
        eigenvalues, vectors = eigenvalues[:count], vectors[:, :count]
        last = eigenvalues[-1]
    return eigenvalues, vectors


NARROW_BAND = 256
"""Off-diagonals up to which solving with the Laplacian is cheap: the graph is long and thin, as of a time series. On
graphs in 20 and more dimensions the factors fill up, and shift-invert takes ten times as long as plain iterations."""

SHIFT = 1e-8
"""What makes a Laplacian invertible: small against the eigenvalues wanted, large against rounding."""


def _amplifier(laplacian: sparse.csr_matrix) -> Callable[[np.ndarray], np.ndarray]:
    """Return an operator whose leading eigenvectors are the slowest functions: the inverse if cheap, else ``2 - L``."""
    order = reverse_cuthill_mckee(laplacian, symmetric_mode=True)
    ordered = sparse.coo_matrix(laplacian[order][:, order])
    if abs(ordered.row - ordered.col).max() > NARROW_BAND:
        return lambda values: 2 * values - laplacian @ values
    solve = splu(sparse.csc_matrix(ordered + SHIFT * sparse.identity(len(order))), permc_spec="NATURAL").solve
    back = order.argsort()
    return lambda values: solve(values[order])[back]


LANCZOS_TOLERANCE = 1e-14
"""Relative error of the iteration; at eigsh's own, half an epsilon, 51 of 360 runs on complete graphs failed."""


def _most_amplified(
    amplify: Callable[[np.ndarray], np.ndarray], known: np.ndarray, count: int, random: np.random.Generator
) -> np.ndarray:
    """Find the `count` leading eigenvectors of a positive operator in the complement of what is known."""
    n = known.shape[0]

    def project(values: np.ndarray) -> np.ndarray:
        return values - known @ (known.T @ values)

    options: dict[str, Any] = {"tol": LANCZOS_TOLERANCE}
    # Since scipy 1.17 `eigsh` draws from the system's entropy where an invariant subspace ends the iteration.
    if "rng" in inspect.signature(eigsh).parameters:
        options["rng"] = random
    # `LinearOperator` makes a subclass of itself, of which its stubs know nothing.
    operator: Any = LinearOperator((n, n), matvec=lambda x: project(amplify(project(x.ravel()))), dtype=np.float64)  # pyright: ignore[reportCallIssue]
    try:
        return eigsh(operator, k=count, which="LA", v0=project(random.standard_normal(n)), **options)[1]
    except ArpackError as error:
        raise RuntimeError(
            f"Lanczos iterations for {count} functions of {n} examples ended without result ({error}): pass a smaller "
            f"n_functions, or at most {MAX_DENSE} examples and no n_functions."
        ) from error


def _rayleigh_ritz(
    laplacian: sparse.csr_matrix, constants: np.ndarray, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Diagonalise the Laplacian on the span of some vectors: their error enters the eigenvalues squared."""
    basis = np.linalg.qr(vectors - constants @ (constants.T @ vectors))[0]
    eigenvalues, rotation = np.linalg.eigh(basis.T @ (laplacian @ basis))
    return eigenvalues, basis @ rotation
