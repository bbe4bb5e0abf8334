"""Length, magnitude and growth of a path: known answers, an oracle of each, and what no rotation may change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group

from lightning_cx.functional import distance_from_start, spanning_tree_length
from lightning_cx.functional.trajectories.geometry import positive_magnitude

seeds = st.integers(0, 2**32 - 1)


def cloud(seed: int, count: int = 40, dimension: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension))


def tree_by_scipy(points: np.ndarray, alpha: float = 1.0) -> float:
    """Scipy takes a zero for a missing edge, so different points only."""
    return float((minimum_spanning_tree(csr_matrix(cdist(points, points))).data ** alpha).sum())


def magnitude_by_numpy(points: np.ndarray, scale: float) -> tuple[float, float]:
    weights = np.linalg.solve(np.exp(-scale * cdist(points, points)), np.ones(len(points)))
    return float(weights.sum()), float(weights[weights > 0].sum())


def test_the_tree_of_a_3_4_5_triangle_is_7_long() -> None:
    assert float(spanning_tree_length([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])) == 7.0
    assert float(spanning_tree_length([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]], alpha=2)) == 25.0


@pytest.mark.parametrize("count", [2, 3, 10, 128])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7])
def test_the_tree_is_that_of_scipy(count: int, alpha: float) -> None:
    points = cloud(count, count)
    assert float(spanning_tree_length(points, alpha)) == pytest.approx(tree_by_scipy(points, alpha), rel=1e-12)


def test_points_that_come_twice_add_nothing() -> None:
    points = cloud(1)
    twice = np.concatenate([points, points[:7]])
    assert float(spanning_tree_length(twice)) == pytest.approx(tree_by_scipy(points), rel=1e-12)
    for scale in (0.1, 3.0):
        once = float(positive_magnitude(points, scale))
        assert float(positive_magnitude(twice, scale)) == pytest.approx(once, rel=1e-9)


def test_a_straight_line_is_as_long_as_its_ends_are_apart_however_many_points_it_has() -> None:
    for count in (2, 10, 100):
        line = np.linspace(0, 1, count)[:, None] * np.array([3.0, 4.0])
        assert float(spanning_tree_length(line)) == pytest.approx(5.0, rel=1e-12)


def test_the_tree_of_a_random_walk_grows_with_the_root_of_the_number_of_points() -> None:
    walk = np.random.default_rng(3).normal(size=(1025, 200)).cumsum(0)
    coarse, fine = (float(spanning_tree_length(walk[::every])) for every in (16, 1))
    assert fine / coarse == pytest.approx(16**0.5, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_order_place_and_rotation_change_nothing_and_size_only_the_unit(seed: int) -> None:
    points, draw = cloud(seed, 20, 4), np.random.default_rng(seed)
    turned = points[draw.permutation(20)] @ ortho_group.rvs(4, random_state=draw) + 10 * draw.normal(size=4)
    length, magnitude = float(spanning_tree_length(points)), float(positive_magnitude(points, 0.7))
    assert float(spanning_tree_length(turned)) == pytest.approx(length, rel=1e-9)
    assert float(positive_magnitude(turned, 0.7)) == pytest.approx(magnitude, rel=1e-9)
    assert float(spanning_tree_length(100 * points)) == pytest.approx(100 * length, rel=1e-9)
    assert float(positive_magnitude(100 * points, 0.007)) == pytest.approx(magnitude, rel=1e-9)


def test_two_points_have_the_magnitude_of_the_formula() -> None:
    for gap in (1e-9, 0.1, 3.0, 50.0):
        expected = 2 / (1 + math.exp(-2.0 * gap))
        assert float(positive_magnitude([[0.0, 0.0], [0.0, gap]], 2.0)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [0.05, 0.5, 2.0, 20.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_magnitude_is_that_of_solving_for_the_weights(scale: float, seed: int) -> None:
    points = cloud(seed, 60, 3)
    assert float(positive_magnitude(points, scale)) == pytest.approx(magnitude_by_numpy(points, scale)[1], rel=1e-8)


def test_the_magnitude_of_a_line_is_one_plus_the_sum_of_tanh() -> None:
    """Leinster 2013: 1 + sum of tanh(half a gap), all weights positive."""
    places = np.sort(np.random.default_rng(5).exponential(size=30)).cumsum()
    for scale in (1e-6, 0.01, 1.0, 100.0):
        expected = 1 + np.tanh(scale * np.diff(places) / 2).sum()
        assert float(positive_magnitude(places[:, None], scale)) == pytest.approx(expected, rel=1e-9)


def test_from_afar_a_set_is_one_point_and_from_near_all_of_its_points() -> None:
    corners = np.eye(5)
    assert float(positive_magnitude(corners, 1e-13)) == pytest.approx(1.0, abs=1e-9)
    assert float(positive_magnitude(corners, 1e4)) == pytest.approx(5.0, abs=1e-9)
    assert float(positive_magnitude(cloud(0), 1e6)) == pytest.approx(40.0, abs=1e-9)


def test_from_afar_the_positive_part_exceeds_1_where_a_point_in_the_middle_counts_negative() -> None:
    """The magnitude itself is 1 there; THEORY's limit of 1 is that of the magnitude."""
    star = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    whole, positive = magnitude_by_numpy(star, 1e-6)
    assert whole == pytest.approx(1.0, abs=1e-4)
    assert float(positive_magnitude(star, 1e-6)) == pytest.approx(positive, rel=1e-4)
    assert positive > 1.1


def test_a_larger_scale_sees_more_points() -> None:
    values = [float(positive_magnitude(cloud(7), scale)) for scale in (0.1, 0.3, 1, 3, 10)]
    assert values == sorted(values)


def test_pairs_that_nearly_coincide_are_solved_for_down_to_rounding() -> None:
    """A near pair is a dipole: one weight may turn negative, so the limit is not the value of the merged points."""
    base = np.random.default_rng(0).normal(size=(6, 2))
    at = {gap: float(positive_magnitude(np.concatenate([base, base + gap]), 1.0)) for gap in (1e-4, 1e-8, 1e-12)}
    assert at[1e-4] == pytest.approx(magnitude_by_numpy(np.concatenate([base, base + 1e-4]), 1.0)[1], rel=1e-6)
    assert at[1e-8] == pytest.approx(at[1e-4], rel=1e-4)
    assert at[1e-12] == pytest.approx(at[1e-4], rel=1e-4)
    assert at[1e-8] > 1.005 * float(positive_magnitude(base, 1.0))


def test_a_straight_path_grows_in_proportion_and_a_random_walk_with_the_root() -> None:
    straight = distance_from_start(np.arange(50)[:, None] * np.ones(3))
    assert float(straight.exponent) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(straight.distances, torch.arange(50).double() * 3**0.5)
    walks = np.random.default_rng(0).normal(size=(40, 65, 64)).cumsum(1)
    exponents = [float(distance_from_start(walk).exponent) for walk in walks]
    assert np.mean(exponents) == pytest.approx(0.5, abs=0.03)
    assert max(abs(np.array(exponents) - 0.5)) < 0.2


def test_growth_that_changes_shows_in_the_range_of_the_exponents() -> None:
    times = np.arange(1.0, 101)
    stops = np.concatenate([[0.0], np.minimum(times, 10.0) + 1e-3 * times])
    growth = distance_from_start(stops[:, None])
    assert float(growth.high) > 0.9
    assert float(growth.low) < 0.1
    assert str(growth).startswith("10.1 from the start, grows as t^")


def test_uneven_steps_are_taken_for_what_they_are() -> None:
    steps = np.cumsum(np.random.default_rng(1).integers(1, 9, size=40))
    path = (steps - steps[0])[:, None] ** 0.3
    assert float(distance_from_start(path, steps).exponent) == pytest.approx(0.3, abs=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_give_nan(bad: float) -> None:
    points = cloud(0)
    points[3, 2] = bad
    assert math.isnan(spanning_tree_length(points))
    assert math.isnan(positive_magnitude(points, 1.0))
    assert math.isnan(distance_from_start(points).exponent)


def test_one_point_equal_points_and_none() -> None:
    assert float(spanning_tree_length([[1.0, 2.0]])) == 0.0
    assert float(positive_magnitude([[1.0, 2.0]], 1.0)) == 1.0
    same = torch.ones(20, 3)
    assert float(spanning_tree_length(same)) == 0.0
    assert float(positive_magnitude(same, 1.0)) == 1.0
    assert math.isnan(distance_from_start(same).exponent)
    no_coordinates = torch.zeros(4, 0)
    assert float(spanning_tree_length(no_coordinates)) == 0
    assert float(positive_magnitude(no_coordinates, scale=1.0)) == pytest.approx(1)
    nothing = torch.zeros(0, 3)
    assert math.isnan(spanning_tree_length(nothing))
    assert math.isnan(positive_magnitude(nothing, 1.0))
    assert str(distance_from_start(nothing)) == "no points"


def test_huge_and_tiny_units_do_not_overflow() -> None:
    points = cloud(2)
    for unit in (1e250, 1e-250):
        assert float(spanning_tree_length(unit * points)) == pytest.approx(unit * tree_by_scipy(points), rel=1e-9)
        assert bool(distance_from_start(unit * points).distances[1:].isfinite().all())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"matrix \[T, d\], one row each, got shape \[3\]"):
        spanning_tree_length([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="power of the edges is positive, got alpha=0"):
        spanning_tree_length([[1.0]], alpha=0)
    with pytest.raises(ValueError, match=r"scale of the magnitude is positive and finite, got scale=-1"):
        positive_magnitude([[1.0]], -1.0)
    with pytest.raises(ValueError, match="each of 2 points has a step, ascending"):
        distance_from_start([[1.0], [2.0]], steps=[3, 3])
