"""The neighbourhood graph against loops, and its scaling against nasty input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lightning_cx.functional.complexity import graph
from lightning_cx.functional.complexity.graph import doubly_stochastic_graph, knn_affinity, nearest_neighbors, sinkhorn


def affinity_by_loops(points: list[list[float]], n_neighbors: int) -> torch.Tensor:
    """The rule word by word, one pair at a time."""
    n = len(points)
    distance = [[math.dist(p, q) for q in points] for p in points]
    weights = torch.eye(n, dtype=torch.float64)
    others = [sorted(distance[i][j] for j in range(n) if j != i) for i in range(n)]
    scale = [near[min(7, n - 1) - 1] or min((d for d in near if d > 0), default=math.inf) for near in others]
    for i in range(n):
        for j in range(n):
            if i != j and distance[i][j] <= others[i][min(n_neighbors, n - 1) - 1] * (1 + 1e-9):
                weights[i, j] = weights[j, i] = math.exp(-(distance[i][j] / scale[i]) * (distance[i][j] / scale[j]))
    return weights


def affinity(points: torch.Tensor, n_neighbors: int) -> torch.Tensor:
    return torch.from_numpy(knn_affinity(points, n_neighbors).toarray())


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "n_neighbors"), [(2, 1), (5, 10), (30, 4), (30, 10)])
def test_affinity_agrees_with_the_rule_word_by_word(n, n_neighbors):
    points = cloud(n, 3)
    expected = affinity_by_loops(points.tolist(), n_neighbors)
    torch.testing.assert_close(affinity(points, n_neighbors), expected, rtol=0, atol=1e-12)


# Rounded to a grid, so that ties and duplicates are the rule; offsets and far clusters make products lose digits.
@given(
    st.integers(2, 30), st.integers(1, 4), st.integers(1, 12), st.sampled_from([0.0, 1e6]), st.integers(0, 2**32 - 1)
)
@settings(max_examples=60, deadline=None)
def test_ties_and_duplicates_far_from_the_origin_agree_with_the_rule_too(n, d, n_neighbors, far, seed):
    points = cloud(n, d, seed).round() + far * (torch.arange(n) % 3 == 0)[:, None]
    expected = affinity_by_loops(points.tolist(), n_neighbors)
    torch.testing.assert_close(affinity(points, n_neighbors), expected, rtol=0, atol=1e-9)


def test_distances_of_near_duplicates_far_from_the_origin_keep_their_digits():
    points = torch.tensor([[1e6], [1e6 + 1e-4], [1e6], [2e6]], dtype=torch.float64)
    row, column, distance, _ = nearest_neighbors(points, 3)
    measured = dict(zip(zip(row.tolist(), column.tolist(), strict=True), (distance * 2e6).tolist(), strict=True))
    assert measured[0, 2] == 0
    assert measured[0, 1] == pytest.approx(1e-4, rel=1e-5)
    assert measured[0, 3] == pytest.approx(1e6)


def test_examples_that_differ_by_less_than_can_be_squared_are_no_copies():
    tiny = torch.tensor([[1.0, 0.0], [1.0, 1e-200], [1.0, 3e-200]], dtype=torch.float64)
    unit = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(affinity(tiny, 1), affinity(unit, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("entries", [1, 100, 300])
def test_neighbours_found_in_blocks_are_those_found_at_once(monkeypatch, entries):
    points = torch.cat([cloud(40, 5), cloud(40, 5)[:9].repeat(2, 1)])
    at_once = affinity(points, 4)
    monkeypatch.setattr(graph, "BLOCK_ENTRIES", entries)
    torch.testing.assert_close(affinity(points, 4), at_once, rtol=0, atol=1e-15)


def test_too_many_copies_to_store_their_pairs_are_refused(monkeypatch):
    monkeypatch.setattr(graph, "MAX_EDGES", 300)
    doubly_stochastic_graph(cloud(20, 3), 5)
    with pytest.raises(ValueError, match=r"first of 20 examples have 380 equally near neighbours.*drop copies"):
        doubly_stochastic_graph(torch.ones(20, 3), 5)


def assert_doubly_stochastic(matrix: sparse.csr_matrix) -> None:
    dense = matrix.toarray()
    np.testing.assert_array_equal(dense, dense.T)
    assert (dense >= 0).all()
    assert abs(dense.sum(1) - 1).max() < 1e-10


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 12), st.floats(0, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_scaling_reaches_row_sums_of_one_however_uneven_the_points(n, d, n_neighbors, spread, seed):
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, dtype=torch.float64, generator=draw)
    uneven = points * torch.exp(spread * torch.rand(n, 1, dtype=torch.float64, generator=draw))
    assert_doubly_stochastic(doubly_stochastic_graph(uneven, n_neighbors))


def test_scaling_a_hub_with_many_spokes():
    star = np.eye(50)
    star[0], star[:, 0] = 1.0, 1.0
    assert_doubly_stochastic(sinkhorn(sparse.csr_matrix(star)))
