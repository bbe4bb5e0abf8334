"""Gradients that point back to a centre show it, and those of a free walk do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_cx.functional import one_point_convexity


def descent(
    curvature: float | np.ndarray, steps: int, seed: int, k: int = 4, rate: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy gradient descent on ``curvature |w|^2 / 2`` from 0: gradients and points, [steps, k]."""
    draw = np.random.default_rng(seed)
    w, points, gradients = np.zeros(k), [], []
    for noise in draw.standard_normal((steps, k)):
        points.append(w)
        gradients.append(curvature * w + noise)
        w = w - rate * gradients[-1]
    return np.array(gradients), np.array(points)


@pytest.mark.parametrize("center", ["earlier", "all", "true"])
def test_a_quadratic_shows_its_curvature(center: str) -> None:
    gradients, points = descent(0.5, 40_000, seed=1)
    centers = {"earlier": None, "all": points.mean(0), "true": np.zeros(4)}
    found = one_point_convexity(gradients, points, centers[center])
    assert found.value == pytest.approx(0.499, abs=0.02)
    assert abs(found.value - 0.5) < 4 * found.standard_error


def test_the_error_is_that_of_many_runs() -> None:
    found = [one_point_convexity(*descent(0.5, 3000, seed=s)) for s in range(60)]
    spread = np.std([f.value for f in found])
    assert np.mean([f.standard_error for f in found]) == pytest.approx(spread, rel=0.35)


def test_a_free_walk_shows_none_unless_its_mean_is_taken_over_what_came_later() -> None:
    honest = [one_point_convexity(*descent(0.0, 1000, seed=s)) for s in range(40)]
    assert abs(np.mean([f.value for f in honest])) < 0.02
    assert np.mean([abs(f.value) > 3 * f.standard_error for f in honest]) <= 0.1
    known = [descent(0.0, 1000, seed=s) for s in range(40)]
    spurious = [one_point_convexity(g, w, w.mean(0)).value for g, w in known]
    assert np.median(spurious) == pytest.approx(3 / (0.1 * 1000), rel=0.5)


def test_a_repelling_place_is_negative() -> None:
    gradients, points = descent(-0.2, 200, seed=0)
    assert one_point_convexity(gradients, points, np.zeros(4)).value == pytest.approx(-0.2, abs=0.02)


def test_it_is_the_ratio_of_sums_of_a_naive_loop() -> None:
    draw = np.random.default_rng(4)
    g, w, c = draw.standard_normal((50, 3)), draw.standard_normal((50, 3)), draw.standard_normal(3)
    along = sum(float(g[t] @ (w[t] - c)) for t in range(50))
    squares = sum(float((w[t] - c) @ (w[t] - c)) for t in range(50))
    for form in (np.asarray, torch.from_numpy, np.ndarray.tolist):
        assert one_point_convexity(form(g), form(w), form(c)).value == pytest.approx(along / squares, rel=1e-12)
    assert one_point_convexity(g, w, np.tile(c, (50, 1))).value == pytest.approx(along / squares, rel=1e-12)
    earlier = [(g[t], w[t] - np.mean(w[:t], axis=0)) for t in range(8, 50)]
    expected = sum(float(a @ b) for a, b in earlier) / sum(float(b @ b) for _, b in earlier)
    assert one_point_convexity(g, w).value == pytest.approx(expected, rel=1e-12)


def test_place_and_rotation_change_nothing_and_scales_as_curvature_does() -> None:
    gradients, points = descent(0.5, 200, seed=2)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    one = one_point_convexity(gradients, points).value
    assert one_point_convexity(gradients @ turn, 5 + points @ turn).value == pytest.approx(one, rel=1e-9)
    assert one_point_convexity(2 * gradients, 4 * points).value == pytest.approx(one / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("gradients", "points", "why"),
    [
        (np.ones((5, 2)), np.ones((5, 2)), "pairs"),
        (np.empty((0, 2)), np.empty((0, 2)), "pairs"),
        (np.ones((100, 2)), np.ones((100, 2)), "do not differ"),
        (np.full((100, 2), np.nan), np.arange(200.0).reshape(100, 2), "not finite"),
        (np.ones((100, 2)), np.full((100, 2), np.inf), "not finite"),
    ],
)
def test_what_cannot_be_told_is_nan_with_a_reason(gradients: np.ndarray, points: np.ndarray, why: str) -> None:
    found = one_point_convexity(gradients, points)
    assert math.isnan(found.value)
    assert math.isnan(found.standard_error)
    assert why in found.reason
    assert why in str(found)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"both \[T, k\]"):
        one_point_convexity(np.ones((5, 2)), np.ones((5, 3)))
    with pytest.raises(ValueError, match="a centre is"):
        one_point_convexity(np.ones((5, 2)), np.ones((5, 2)), np.ones(3))
