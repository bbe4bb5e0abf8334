"""What SVRG would leave of the gradient noise, and what a larger batch would buy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cx.functional import NoiseScale, batch_size_advice, noise_scale, svrg_gain

RNG = np.random.default_rng


def regression(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (x.w - y) x of single examples at two points, and the step between these."""
    draw = RNG(seed)
    x, y = draw.normal(size=(n, d)), draw.normal(size=n)
    now, before = draw.normal(size=d), draw.normal(size=d)
    return (x @ now - y)[:, None] * x, (x @ before - y)[:, None] * x, now - before


def variance_by_loops(rows: np.ndarray) -> float:
    mean = sum(rows) / len(rows)
    return sum(float((row - mean) @ (row - mean)) for row in rows) / (len(rows) - 1)


def on_directions(rows: np.ndarray, k: int, draw: np.random.Generator) -> tuple:
    directions = draw.normal(size=(rows[0].shape[1], k))
    return tuple(part @ directions for part in rows)


# --- SVRG


def test_the_ratio_is_that_of_variances_by_loops():
    now, before, _ = regression(40, 6, seed=0)
    gain = svrg_gain(now, before, directions=False)
    own, older = variance_by_loops(now), variance_by_loops(before)
    left = variance_by_loops(now - before)
    assert float(gain.ratio) == pytest.approx(left / own, rel=1e-12)
    covariance = (own + older - left) / 2
    assert float(gain.best) == pytest.approx(1 - covariance**2 / (own * older), rel=1e-10)
    assert float(gain.coefficient) == pytest.approx(covariance / older, rel=1e-10)
    assert float(gain.best) <= float(gain.ratio)


def test_the_best_coefficient_leaves_the_least():
    now, before, _ = regression(60, 5, seed=1)
    gain = svrg_gain(now, before, directions=False)
    left = {c: variance_by_loops(now - c * before) / variance_by_loops(now) for c in np.linspace(-1, 2, 3001)}
    best = min(left, key=lambda c: left[c])
    assert float(gain.coefficient) == pytest.approx(best, abs=1e-3)
    assert float(gain.best) == pytest.approx(left[best], rel=1e-5)


def test_examples_with_one_curvature_have_no_noise_left():
    # Losses |w - x_i|^2 / 2: all that gradients at two points differ by is the step between them.
    x = RNG(0).normal(size=(50, 4))
    gain = svrg_gain(1.5 - x, 0.2 - x, directions=False)
    assert float(gain.ratio) == pytest.approx(0, abs=1e-25)
    assert float(gain.best) == pytest.approx(0, abs=1e-12)
    assert float(gain.coefficient) == pytest.approx(1, rel=1e-10)


def test_linear_regression_has_the_ratio_of_its_closed_form():
    # x ~ N(0, 1) in d dimensions, y = x.w* + e: tr Cov((x.v) x) = (d + 1) |v|^2 for any v.
    d, noise = 5, 0.7
    draw = RNG(3)
    x = draw.normal(size=(200_000, d))
    error, step = draw.normal(size=d), 0.3 * draw.normal(size=d)
    residual = x @ error + noise * draw.normal(size=len(x))
    gain = svrg_gain(residual[:, None] * x, (residual - x @ step)[:, None] * x, directions=False)
    expected = (d + 1) * step @ step / ((d + 1) * error @ error + d * noise**2)
    assert float(gain.ratio) == pytest.approx(expected, rel=0.02)
    assert gain.low < expected < gain.high


def test_gradients_that_have_nothing_in_common_double_the_noise():
    draw = RNG(4)
    now, before = draw.normal(size=(4000, 10)), draw.normal(size=(4000, 10))
    gain = svrg_gain(now, before, directions=False)
    assert float(gain.ratio) == pytest.approx(2, rel=0.03)
    assert float(gain.best) == pytest.approx(1, abs=1e-3)
    assert float(gain.coefficient) == pytest.approx(0, abs=0.03)


def test_projections_are_unbiased_for_both_variances():
    now, before, _ = regression(30, 40, seed=5)
    draw = RNG(6)
    left, own = [], []
    for _ in range(400):
        a, b = on_directions((now, before), 8, draw)
        left.append(variance_by_loops(a - b) / 8)
        own.append(variance_by_loops(a) / 8)
    for seen, rows in ((left, now - before), (own, now)):
        assert np.mean(seen) == pytest.approx(variance_by_loops(rows), abs=3 * np.std(seen) / 20)


def test_the_interval_of_projections_covers_the_ratio_of_all_entries_and_all_examples():
    draw, d, k, n = RNG(7), 60, 32, 128
    scales = np.exp(draw.normal(size=d))
    truth = 1 + 0.8**2 - 2 * 0.8 * 0.9  # Var(g~) = .8^2 Var(g), correlation .9
    covered, trials = 0, 300
    for _ in range(trials):
        now = scales * draw.normal(size=(n, d))
        before = 0.8 * (0.9 * now + math.sqrt(1 - 0.81) * scales * draw.normal(size=(n, d)))
        gain = svrg_gain(*on_directions((now, before), k, draw))
        covered += bool(gain.low <= truth <= gain.high)
    assert 0.93 <= covered / trials <= 0.995


def test_the_interval_is_that_of_leaving_out_each_example_and_each_direction():
    draw = RNG(8)
    now, before, _ = regression(20, 15, seed=8)
    now, before = on_directions((now, before), 12, draw)
    gain = svrg_gain(now, before)

    def log_ratio(a: np.ndarray, b: np.ndarray) -> float:
        return math.log(variance_by_loops(a - b) / variance_by_loops(a))

    rows = np.array([log_ratio(np.delete(now, i, 0), np.delete(before, i, 0)) for i in range(20)])
    columns = np.array([log_ratio(np.delete(now, i, 1), np.delete(before, i, 1)) for i in range(12)])
    squared = 19 * rows.var() + 11 * columns.var()
    t = 2.20098516  # two-sided 95% point of Student's t with 11 degrees of freedom
    assert math.log(float(gain.high / gain.ratio)) == pytest.approx(t * math.sqrt(squared), rel=1e-8)
    assert math.log(float(gain.ratio / gain.low)) == pytest.approx(t * math.sqrt(squared), rel=1e-8)


@given(st.integers(0, 10_000), st.floats(1e-140, 1e140))
@settings(max_examples=30, deadline=None)
def test_order_size_and_place_of_the_gradients_do_not_matter(seed, scale):
    draw = RNG(seed)
    now, before, _ = regression(12, 4, seed)
    turn = np.linalg.qr(draw.normal(size=(4, 4)))[0]
    order, shift = draw.permutation(12), draw.normal(size=(2, 4))
    first = svrg_gain(now, before, directions=False)
    second = svrg_gain(
        scale * ((now + shift[0]) @ turn)[order], scale * ((before + shift[1]) @ turn)[order], directions=False
    )
    for name in ("ratio", "low", "high", "best"):
        assert float(getattr(second, name)) == pytest.approx(float(getattr(first, name)), rel=1e-7)


def test_the_same_weights_leave_nothing():
    now, _, _ = regression(20, 5, seed=9)
    gain = svrg_gain(now, now)
    assert (float(gain.ratio), float(gain.low), float(gain.high)) == (0, 0, 0)


def test_a_snapshot_without_noise_corrects_nothing():
    now, _, _ = regression(20, 5, seed=10)
    gain = svrg_gain(now, np.zeros_like(now), directions=False)
    assert (float(gain.ratio), float(gain.best), float(gain.coefficient)) == (1, 1, 0)


@pytest.mark.parametrize(
    ("now", "directions", "why"),
    [
        (np.zeros((0, 4)), True, "0 examples show too little"),
        (np.ones((7, 4)), True, "7 examples show too little of the noise: 8 are needed"),
        (RNG(0).normal(size=(9, 1)), True, "1 directions show too little"),
        (np.zeros((9, 0)), False, "0 directions"),
        (np.full((9, 4), np.nan), True, "not finite"),
        (np.full((9, 4), np.inf), True, "not finite"),
        (np.ones((9, 4)), True, "the examples have one gradient: no noise"),
        (np.zeros((9, 4)), True, "the examples have one gradient: no noise"),
    ],
)
def test_gradients_that_say_nothing_are_refused_with_the_reason(now, directions, why):
    gain = svrg_gain(now, 2 * now, directions)
    assert why in gain.reason
    assert why in str(gain)
    for name in ("ratio", "low", "high", "best", "coefficient"):
        assert math.isnan(getattr(gain, name))


def test_both_gradients_are_of_the_same_examples():
    with pytest.raises(ValueError, match=r"two matrices \[n, k\], got \[9, 4\] and \[8, 4\]"):
        svrg_gain(np.ones((9, 4)), np.ones((8, 4)))


# --- the batch


def scale_of(value: float, low: float | None = None, high: float | None = None) -> NoiseScale:
    tensors = [torch.tensor(float(v)) for v in (value, value if low is None else low, value if high is None else high)]
    return NoiseScale(*tensors, torch.tensor(1.0), torch.tensor(1.0), torch.zeros(2, 2), 100)


def test_the_toy_of_the_theory_asks_for_batches_of_39():
    draw = RNG(11)
    rows = math.sqrt(1 / 39.2) + draw.normal(size=(2500, 20))  # unit noise in 20 dimensions: B = 39.2
    noise = noise_scale(rows @ rows.T)
    assert float(noise.value) == pytest.approx(39.2, rel=0.1)
    advice = batch_size_advice(noise, 39)
    assert advice.low < 4 / 3 < advice.high
    assert advice.speedup == pytest.approx(4 / 3, abs=0.02)


@pytest.mark.parametrize("batch_size", [1, 10, 39, 400])
def test_the_speed_up_is_that_of_the_best_step_on_a_quadratic(batch_size):
    signal, noise = 0.51, 20.0
    steps = np.linspace(0, 1, 200_001)

    def best(examples: int) -> float:
        """Expected fall of a loss of unit curvature in one step: eta |G|^2 - eta^2 (|G|^2 + tr Sigma / b) / 2."""
        return (steps * signal - steps**2 / 2 * (signal + noise / examples)).max()

    expected = best(2 * batch_size) / best(batch_size)
    assert batch_size_advice(scale_of(noise / signal), batch_size).speedup == pytest.approx(expected, rel=1e-6)


def test_more_pays_where_noise_rules_and_not_where_it_does_not():
    assert batch_size_advice(scale_of(1e9), 32).speedup == pytest.approx(2)
    assert batch_size_advice(scale_of(0), 32).speedup == 1
    assert "a larger batch pays, up to about 1e+03 examples" in str(batch_size_advice(scale_of(1000, 900, 1200), 64))
    assert "batches larger than 20 examples buy little" in str(batch_size_advice(scale_of(20, 15, 25), 64))
    assert "larger batches buy little beyond about 60" in str(batch_size_advice(scale_of(60, 15, 400), 64))


def test_an_unknown_upper_end_leaves_the_lower_one():
    for value in (500, math.nan):
        advice = batch_size_advice(scale_of(value, 200, math.inf), 50)
        assert math.isnan(advice.speedup)
        assert (advice.low, advice.high) == (pytest.approx(2 * 250 / 300), 2.0)
        assert "noise hides the gradient" in advice.sentence
        assert "beyond more than 200 examples" in advice.sentence


@pytest.mark.parametrize("gram", [torch.zeros(0, 0), torch.ones(1, 1), torch.full((4, 4), torch.nan)])
def test_where_nothing_is_known_nothing_is_advised(gram):
    advice = batch_size_advice(noise_scale(gram), 16)
    assert math.isnan(advice.speedup)
    assert (advice.low, advice.high) == (1, 2)
    assert "nothing is known" in advice.sentence


def test_a_batch_holds_an_example():
    with pytest.raises(ValueError, match="at least one example, got batch_size=0"):
        batch_size_advice(scale_of(1), 0)
