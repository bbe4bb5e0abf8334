"""The neighbourhood graph against loops, and its scaling against nasty input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cx.functional.graph import distances, knn_affinity, sinkhorn


def affinity_by_loops(points: list[list[float]], n_neighbors: int) -> torch.Tensor:
    """The rule word by word, one pair at a time, for points without ties or duplicates."""
    n = len(points)
    distance = [[math.dist(p, q) for q in points] for p in points]
    by_nearness = [sorted((j for j in range(n) if j != i), key=lambda j, i=i: distance[i][j]) for i in range(n)]
    scale = [distance[i][by_nearness[i][min(7, n - 1) - 1]] for i in range(n)]
    weights = torch.eye(n, dtype=torch.float64)
    for i in range(n):
        for j in by_nearness[i][:n_neighbors]:
            weights[i, j] = weights[j, i] = math.exp(-(distance[i][j] ** 2) / (scale[i] * scale[j]))
    return weights


@pytest.mark.parametrize(("n", "n_neighbors"), [(2, 1), (5, 10), (30, 4), (30, 10)])
def test_affinity_agrees_with_the_rule_word_by_word(n, n_neighbors):
    points = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    expected = affinity_by_loops(points.tolist(), n_neighbors)
    torch.testing.assert_close(knn_affinity(distances(points), n_neighbors), expected, rtol=0, atol=1e-12)


def test_distances_of_near_duplicates_far_from_the_origin_keep_their_digits():
    points = torch.tensor([[1e6], [1e6 + 1e-4], [1e6], [2e6]], dtype=torch.float64)
    distance = distances(points) * 2e6
    assert distance[0, 2] == 0
    torch.testing.assert_close(distance[0, 1], torch.tensor(1e-4, dtype=torch.float64), rtol=1e-5, atol=0)


def assert_doubly_stochastic(matrix):
    torch.testing.assert_close(matrix, matrix.T)
    assert (matrix >= 0).all()
    assert (matrix.sum(1) - 1).abs().max() < 1e-10


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 12), st.floats(0, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_scaling_reaches_row_sums_of_one_however_uneven_the_points(n, d, n_neighbors, spread, seed):
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, dtype=torch.float64, generator=draw)
    uneven = points * torch.exp(spread * torch.rand(n, 1, dtype=torch.float64, generator=draw))
    assert_doubly_stochastic(sinkhorn(knn_affinity(distances(uneven), n_neighbors)))


def test_scaling_a_hub_with_many_spokes():
    star = torch.eye(50, dtype=torch.float64)
    star[0], star[:, 0] = 1.0, 1.0
    assert_doubly_stochastic(sinkhorn(star))
