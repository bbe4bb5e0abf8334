"""Few functions of many examples: the sparse way against the dense one, against closed forms, and at its price."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import ArpackError
from torch import Tensor

from lightning_cx.functional import Basis, laplacian_basis
from lightning_cx.functional.complexity import graph as sparse_graph
from lightning_cx.functional.complexity.graph import (
    doubly_stochastic_graph,
    eigh_with_constant_first,
    simplest_functions,
)


def laplacian(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.csr_matrix(sparse.diags(graph @ np.ones(graph.get_shape()[0])) - graph)


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_copies() -> Tensor:
    return torch.cat([cloud(450, 3), cloud(450, 3)[:100], cloud(450, 3)[:1].expand(50, 3)])


def in_pieces(n_pieces: int) -> Tensor:
    pieces = cloud(600, 2).reshape(n_pieces, -1, 2)
    return (pieces + 1e4 * torch.arange(n_pieces)[:, None, None]).reshape(-1, 2)


@pytest.fixture
def always_sparse(monkeypatch):
    """Iterate on components of any size, as on thousands of examples."""
    monkeypatch.setattr(sparse_graph, "dense_is_faster", lambda n, count: n < 3 or count > n // 4)


def assert_simplest(graph: sparse.csr_matrix, count: int) -> None:
    """The sparse functions are orthonormal, and those of the dense way up to rotations within an eigenspace."""
    eigenvalues, vectors = simplest_functions(graph, count)
    n = graph.get_shape()[0]
    matrix = torch.from_numpy(laplacian(graph).toarray())
    expected, dense = eigh_with_constant_first(matrix.clone())
    torch.testing.assert_close(eigenvalues, expected[:count], rtol=0, atol=1e-8)
    identity = torch.eye(count, dtype=torch.float64)
    torch.testing.assert_close(vectors.T @ vectors, identity, rtol=0, atol=1e-10)
    assert (vectors[:, 0] == n**-0.5).all()
    assert (matrix @ vectors - vectors * eigenvalues).norm(dim=0).max() < 1e-8
    whole_eigenspaces = dense[:, expected < eigenvalues[-1] - 1e-6]
    share = (vectors.T @ whole_eigenspaces).square().sum(0)
    torch.testing.assert_close(share, torch.ones_like(share), rtol=0, atol=1e-8)


@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize(
    "features",
    [cloud(600, 1), cloud(600, 2), cloud(600, 20), with_copies(), in_pieces(2), in_pieces(6), in_pieces(60)],
    ids=["line", "plane", "20 dimensions", "copies", "2 pieces", "6 pieces", "60 pieces"],
)
def test_the_sparse_way_finds_the_functions_of_the_dense_way(features, count):
    assert_simplest(doubly_stochastic_graph(features, 10), count)


@pytest.mark.usefixtures("always_sparse")
def test_functions_of_identical_and_of_single_examples_are_found():
    outliers = 1e6 * (1 + torch.arange(5.0))[:, None].square().expand(5, 2)
    features = torch.cat([torch.zeros(200, 2), torch.ones(300, 2), cloud(95, 2) + 50, outliers])
    assert_simplest(doubly_stochastic_graph(features, 3), 30)
    assert_simplest(doubly_stochastic_graph(torch.ones(200, 3), 10), 20)


def cube(dimensions: int) -> sparse.csr_matrix:
    """Corners of a cube joined by its edges: ``2 k / (d + 1)`` is ``d over k`` times an eigenvalue."""
    corner = np.arange(2**dimensions)
    flipped = np.stack([corner] + [corner ^ (1 << axis) for axis in range(dimensions)])
    weights = np.full(flipped.size, 1 / (dimensions + 1))
    return sparse.csr_matrix((weights, (np.tile(corner, dimensions + 1), flipped.ravel())))


@pytest.mark.parametrize("count", [2, 5, 20, *(pytest.param(count, marks=pytest.mark.slow) for count in (64, 100))])
def test_no_function_of_a_symmetric_graph_is_missed(count):
    """From one start vector ARPACK alone returns 4 of the 12 slowest functions and then a faster one."""
    eigenvalues, vectors = simplest_functions(cube(12), count)
    expected = np.repeat(2 * np.arange(13) / 13, [math.comb(12, k) for k in range(13)])[:count]
    np.testing.assert_allclose(eigenvalues.numpy(), expected, rtol=0, atol=1e-10)
    identity = torch.eye(count, dtype=torch.float64)
    torch.testing.assert_close(vectors.T @ vectors, identity, rtol=0, atol=1e-10)


def test_waves_on_six_thousand_points_of_a_circle_come_in_pairs_of_known_frequency():
    n, count = 6000, 41
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    basis = laplacian_basis(torch.stack([angle.cos(), angle.sin()], 1), n_neighbors=10, n_functions=count)
    assert basis.vectors.shape == (n, count)
    assert basis.complexity[0] == 0
    assert basis.n_levels == 21
    # Low frequencies on an even circle: complexity is proportional to the number of waves.
    ratio = basis.level_complexity[1:] / torch.arange(1, 21)
    torch.testing.assert_close(ratio, ratio[:1].expand(20), rtol=1e-3, atol=0)
    waves = torch.stack([torch.cos(7 * angle), torch.sin(20 * angle)], 1)
    torch.testing.assert_close(basis.captured_share(waves), torch.tensor(1.0, dtype=torch.float64))
    assert basis.captured_share(torch.cos(21 * angle)) < 1e-9


@pytest.mark.parametrize("n", [1500, pytest.param(6000, marks=pytest.mark.slow)])
def test_many_examples_in_64_dimensions_give_a_basis_that_repeats_and_leaves_random_states_alone(n):
    features = cloud(n, 64).index_fill(0, torch.arange(5), 1e3)  # five copies, far away
    np.random.seed(0)
    undisturbed = np.random.random(3)
    np.random.seed(0)
    state = torch.get_rng_state()
    basis, again = (laplacian_basis(features, n_functions=32) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert (np.random.random(3) == undisturbed).all()
    assert torch.equal(basis.vectors, again.vectors)
    assert torch.equal(basis.complexity, again.complexity)
    identity = torch.eye(32, dtype=torch.float64)
    torch.testing.assert_close(basis.vectors.T @ basis.vectors, identity, rtol=0, atol=1e-10)
    assert (basis.vectors[:, 0] == n**-0.5).all()


@pytest.mark.usefixtures("always_sparse")
def test_an_iteration_that_ends_early_repeats_too():
    """Where all examples are equally far apart one step of Lanczos finds all there is to find from its start."""
    graph = doubly_stochastic_graph(torch.eye(300, dtype=torch.float64), 10)
    eigenvalues, vectors = simplest_functions(graph, 20)
    assert eigenvalues[0] == 0
    torch.testing.assert_close(eigenvalues[1:], eigenvalues[1:2].expand(19), rtol=0, atol=1e-10)
    assert torch.equal(vectors, simplest_functions(graph, 20)[1])


def test_iterations_without_result_say_what_to_do(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise ArpackError(3)

    monkeypatch.setattr(sparse_graph, "eigsh", fails)
    with pytest.raises(RuntimeError, match=r"63 functions of 1100 examples .*pass a smaller n_functions"):
        laplacian_basis(cloud(1100, 5), n_functions=64)


def test_too_many_examples_for_all_functions_are_refused_with_advice():
    with pytest.raises(ValueError, match=r"4097 examples would take .* pass n_functions of at most 1024 \(64 say\)"):
        laplacian_basis(torch.zeros(4097, 1))
    with pytest.raises(ValueError, match="n_functions=1025 on 4097 examples"):
        laplacian_basis(torch.zeros(4097, 1), n_functions=1025)
    with pytest.raises(ValueError, match="n_functions=0"):
        laplacian_basis(torch.zeros(5, 1), n_functions=0)


@pytest.mark.parametrize("n_functions", [1, 7, 50, 51])
def test_a_cut_basis_is_the_beginning_of_the_whole_one(n_functions):
    whole, cut = laplacian_basis(cloud(50, 3)), laplacian_basis(cloud(50, 3), n_functions=n_functions)
    assert cut.vectors.shape[1] == min(n_functions, 50)
    torch.testing.assert_close(cut.vectors, whole.vectors[:, :n_functions])
    torch.testing.assert_close(cut.complexity, whole.complexity[:n_functions])


def test_the_captured_share_is_the_energy_below_the_cut():
    basis = laplacian_basis(cloud(50, 3))
    values = cloud(50, 2, seed=1)
    cut = Basis(basis.vectors[:, :10], basis.complexity[:10])
    expected = (basis.vectors.T @ values).square()[:10].sum() / values.square().sum()
    torch.testing.assert_close(cut.captured_share(values), expected)
    torch.testing.assert_close(basis.captured_share(1e200 * values), torch.tensor(1.0, dtype=torch.float64))
    for without_share in (torch.zeros(50), torch.full((50,), torch.nan), torch.full((50,), torch.inf)):
        assert cut.captured_share(without_share).isnan()
    with pytest.raises(ValueError, match="lives on 50 examples"):
        cut.captured_share(torch.zeros(49))


PEAK = """
import resource, sys, torch
from lightning_cx.functional.complexity.basis import laplacian_basis
n, d, n_functions = map(int, sys.argv[1:])
features = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
laplacian_basis(features[:200, :5]), laplacian_basis(features[:1100, :2], n_functions=5)  # loads what is loaded once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
laplacian_basis(features, n_functions=n_functions)
kilobyte = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * kilobyte)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "d", "n_functions", "bound"),
    [
        (1500, 2000, 1500, 10 * 1500**2 * 8 + 4 * 1500 * 2000 * 8),  # 10 n^2 + 4 n d, where n^2 d is 36 GB
        (6000, 8, 16, 6000**2 * 8 / 4),  # a fourth of one n x n array
    ],
)
def test_peak_memory_is_that_of_a_few_square_arrays_or_of_none(n, d, n_functions, bound):
    pytest.importorskip("resource")
    arguments = [sys.executable, "-c", PEAK, str(n), str(d), str(n_functions)]
    peak = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert peak < bound
