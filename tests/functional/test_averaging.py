"""Averages of the weights: the tail, what it gains, and the quadratic of the theory in closed form and simulated."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from torch import Tensor

from lightning_cx.functional import averaging_gain
from lightning_cx.functional.averaging import TailAverage, quadratic_losses

CURVATURES, STEP_SIZE, TAIL = np.geomspace(0.05, 1, 10), 0.1, 20_000
"""THEORY 8 gives .2544 and .00170 without saying of which quadratic. Unit noise on these ten axes, averaged over so
many steps, has both to every digit given; it was found by searching plain spectra, step sizes and lengths."""


def weights(values: np.ndarray) -> list[dict[str, Tensor]]:
    return [{"weight": torch.tensor(row)} for row in values]


def averaged(values: np.ndarray, steps: list[int] | None = None) -> TailAverage:
    average = TailAverage()
    for step, parameters in zip(steps or range(len(values)), weights(values), strict=True):
        average.update(parameters, step)
    return average


def simulate(runs: int, steps: int, seed: int) -> np.ndarray:
    """SGD with unit noise from the minimum, one axis after the other: [runs, axes, steps]."""
    draw = np.random.default_rng(seed)
    paths = [lfilter([-STEP_SIZE], [1, STEP_SIZE * h - 1], draw.normal(size=(runs, steps)), axis=1) for h in CURVATURES]
    return np.stack(paths, 1)


# --- the theory


def test_the_losses_of_the_theory_come_out():
    losses = quadratic_losses(CURVATURES, 1.0, STEP_SIZE, TAIL)
    assert round(losses.last, 4) == 0.2544
    limit = (1 / CURVATURES).sum() / 2 / TAIL  # of a long tail, whatever the step size
    assert round(limit, 5) == 0.00170
    assert losses.average == pytest.approx(limit, rel=0.01)
    long = quadratic_losses(CURVATURES, 1.0, STEP_SIZE, 10**7)
    assert long.average == pytest.approx(limit * TAIL / 10**7, rel=1e-4)


@pytest.mark.parametrize("seed", [1, 2])
def test_simulated_runs_have_the_losses_of_the_theory(seed):
    runs, burn_in = 100, 1000
    paths = simulate(runs, burn_in + TAIL, seed)[:, :, burn_in:]
    losses = quadratic_losses(CURVATURES, 1.0, STEP_SIZE, TAIL)
    last = (CURVATURES / 2 * (paths**2).mean((0, 2))).sum()  # each step is somebody's last
    assert last == pytest.approx(losses.last, rel=0.01)
    of_average = (CURVATURES / 2 * paths.mean(2) ** 2).sum(1)
    error = of_average.std() / math.sqrt(runs)
    assert of_average.mean() == pytest.approx(losses.average, abs=3 * error)
    assert error < 0.1 * losses.average


def test_the_average_that_is_kept_has_the_loss_of_the_theory_for_its_window():
    steps, runs, axes = 4096, 400, len(CURVATURES)
    paths = simulate(runs, 1000 + steps, seed=3)[:, :, 1000:]
    average = TailAverage()
    for step in range(steps):
        average.update({"all": torch.from_numpy(paths[:, :, step].reshape(-1))}, step)
    of_average = (CURVATURES / 2 * average.value()["all"].reshape(runs, axes).numpy() ** 2).sum(1)
    expected = quadratic_losses(CURVATURES, 1.0, STEP_SIZE, average.window).average
    assert average.window == 2049
    assert of_average.mean() == pytest.approx(expected, abs=3 * of_average.std() / math.sqrt(runs))


def test_one_step_of_a_window_is_the_last():
    losses = quadratic_losses([0.3, 1.2], [0.5, 2.0], 0.4, 1)
    assert losses.average == pytest.approx(losses.last, rel=1e-12)


def test_the_closed_form_is_that_of_the_covariances_added_up():
    h, s, eta, n = 0.7, 1.3, 0.5, 40
    a, settled = 1 - eta * h, eta * s / (h * (2 - eta * h))
    covariance = settled * a ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    assert quadratic_losses([h], s, eta, n).average == pytest.approx(h * covariance.mean() / 2, rel=1e-12)


def test_steps_that_are_too_large_diverge():
    losses = quadratic_losses([0.1, 1.0], 1.0, 2.0, 100)
    assert (losses.last, losses.average) == (math.inf, math.inf)


@pytest.mark.parametrize(("h", "eta", "n"), [([0.0, 1.0], 0.1, 10), ([1.0], 0.0, 10), ([1.0], 0.1, 0), ([-1.0], 1, 1)])
def test_a_quadratic_has_a_minimum_and_a_window_has_a_step(h, eta, n):
    with pytest.raises(ValueError, match="curvatures and step size are positive"):
        quadratic_losses(h, 1.0, eta, n)


# --- the tail


@given(st.integers(1, 300), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_tail_is_the_plain_average_of_half_to_three_quarters_of_the_run(steps, start):
    values = np.random.default_rng(steps).normal(size=(steps, 3))
    average = averaged(values, list(range(start, start + steps)))
    assert average.window == average.count
    assert average.first_step == start + steps - average.count
    assert 0.5 <= average.count / steps <= 0.75 + 1 / steps
    np.testing.assert_allclose(average.value()["weight"].numpy(), values[-average.count :].mean(0), rtol=1e-12)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60, unique=True).map(sorted))
@settings(max_examples=60, deadline=None)
def test_steps_may_be_left_out(steps):
    values = np.random.default_rng(len(steps)).normal(size=(len(steps), 2))
    average = averaged(values, steps)
    run = steps[-1] - steps[0] + 1
    block = 2 ** (run.bit_length() - 1)
    kept = [i for i, step in enumerate(steps) if step - steps[0] + 1 >= block // 2]
    assert average.count == len(kept)
    assert average.window == steps[-1] - steps[kept[0]] + 1
    np.testing.assert_allclose(average.value()["weight"].numpy(), values[kept].mean(0), rtol=1e-10, atol=1e-12)


def test_the_start_is_forgotten_for_good():
    values = np.ones((100, 1))
    values[:20] = 1e12
    assert float(averaged(values).value()["weight"]) == 1.0


def test_weights_that_drift_slowly_are_not_rounded_away():
    values = np.linspace(1, 1.001, 1 << 15, dtype=np.float32)
    average = averaged(values[:, None])
    tail = values[-average.count :]
    expected = tail.astype(np.float64).mean()
    assert float(average.value()["weight"]) == pytest.approx(expected, abs=6e-8)  # half a unit in the last place
    running = np.float32(tail[0])
    for n, value in enumerate(tail[1:], 2):
        running += (value - running) / np.float32(n)
    assert abs(running - expected) > 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_an_average_comes_in_the_dtype_that_is_asked_for(dtype):
    average, like = TailAverage(), {"w": torch.ones(2, dtype=dtype)}
    for step in range(9):
        average.update({"w": like["w"] * step}, step)
    value = average.value(like)["w"]
    assert value.dtype == dtype
    torch.testing.assert_close(value, like["w"] * 5.5)


def test_a_step_that_comes_twice_counts_once_and_an_earlier_one_begins_anew():
    average = averaged(np.arange(10.0)[:, None])
    before = (average.count, float(average.value()["weight"]))
    average.update({"weight": torch.tensor([1e6])}, 9)
    assert (average.count, float(average.value()["weight"])) == before
    average.update({"weight": torch.tensor([7.0])}, 3)
    assert (average.count, average.window, float(average.value()["weight"])) == (1, 1, 7.0)


def test_other_parameters_begin_anew():
    average = averaged(np.arange(10.0)[:, None])
    average.update({"weight": torch.ones(1), "unfrozen": torch.ones(2)}, 10)
    assert (average.count, sorted(average.value())) == (1, ["unfrozen", "weight"])


def test_parameters_are_neither_changed_nor_kept():
    live = torch.ones(3, dtype=torch.float64)
    average = TailAverage()
    average.update({"w": live}, 0)
    live.mul_(5)
    assert average.value()["w"].tolist() == [1, 1, 1]
    average.value()["w"].mul_(7)
    assert average.value()["w"].tolist() == [1, 1, 1]
    assert live.tolist() == [5, 5, 5]


def test_nothing_is_averaged_before_the_first_weights():
    average = TailAverage()
    assert (average.count, average.window, average.value()) == (0, 0, {})


@pytest.mark.parametrize("cut", [1, 3, 8, 9, 20])
def test_a_checkpoint_changes_nothing(cut):
    values = np.random.default_rng(0).normal(size=(30, 4))
    whole, first, second = averaged(values), averaged(values[:cut]), TailAverage()
    second.load_state_dict(first.state_dict())
    for step in range(cut, 30):
        second.update(weights(values)[step], step)
    assert torch.equal(second.value()["weight"], whole.value()["weight"])
    assert (second.count, second.window) == (whole.count, whole.window)
    assert first.count == averaged(values[:cut]).count  # what was saved is not changed by who took it up
    assert torch.equal(first.value()["weight"], averaged(values[:cut]).value()["weight"])


# --- the gain


def losses_of(values: list[float], counts: list[float]) -> Tensor:
    return torch.tensor([values, counts], dtype=torch.float64).T


def test_the_gain_and_its_error_are_those_of_a_loop_over_chunks():
    draw = np.random.default_rng(0)
    counts = [64.0, 64.0, 64.0, 30.0]
    last, average = draw.uniform(1, 2, 4), draw.uniform(1, 2, 4)
    gain = averaging_gain(losses_of(list(last), counts), losses_of(list(average), counts))
    total = sum(counts)
    value = sum(n * (a - b) for n, a, b in zip(counts, last, average, strict=True)) / total
    squares = sum((n / total * (a - b - value)) ** 2 for n, a, b in zip(counts, last, average, strict=True))
    error = math.sqrt(4 / 3 * squares)
    t = 3.182446305  # two-sided 95% point of Student's t with 3 degrees of freedom
    assert float(gain.value) == pytest.approx(value, rel=1e-12)
    assert float(gain.high - gain.value) == pytest.approx(t * error, rel=1e-8)
    assert float(gain.value - gain.low) == pytest.approx(t * error, rel=1e-8)
    assert float(gain.last) == pytest.approx(np.average(last, weights=counts), rel=1e-12)


def test_chunks_of_one_size_give_the_paired_t_interval():
    from scipy import stats

    draw = np.random.default_rng(1)
    last, average = draw.normal(size=9), draw.normal(size=9)
    gain = averaging_gain(losses_of(list(last), [8.0] * 9), losses_of(list(average), [8.0] * 9))
    expected = stats.ttest_rel(last, average).confidence_interval(0.95)
    assert (float(gain.low), float(gain.high)) == pytest.approx((expected.low, expected.high), rel=1e-10)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    draw = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        shared = draw.normal(size=8)  # what both have in common is no error
        counts = [64.0] * 8
        last, average = (shared + 0.1 * draw.normal(size=8) + shift for shift in (0.05, 0.0))
        gain = averaging_gain(losses_of(list(last), counts), losses_of(list(average), counts))
        covered += bool(gain.low <= 0.05 <= gain.high)
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_gain_scales_with_the_loss_and_turns_with_its_arguments_and_does_not_mind_the_order():
    draw = np.random.default_rng(3)
    counts = [64.0, 64.0, 10.0]
    a, b = (losses_of(list(draw.uniform(size=3)), counts) for _ in range(2))
    gain, back = averaging_gain(a, b), averaging_gain(b, a)
    assert (float(back.value), float(back.low)) == pytest.approx((-float(gain.value), -float(gain.high)))
    larger = averaging_gain(a * torch.tensor([7.0, 1.0]), b * torch.tensor([7.0, 1.0]))
    assert float(larger.low) == pytest.approx(7 * float(gain.low))
    turned = averaging_gain(a.flip(0), b.flip(0))
    assert float(turned.high) == pytest.approx(float(gain.high))


def test_one_chunk_has_a_gain_without_an_interval():
    gain = averaging_gain([[1.0, 5]], [[0.5, 5]])
    assert float(gain.value) == 0.5
    assert math.isnan(gain.low)
    assert str(gain) == "loss 1, of the average 0.5: gain 0.5"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_losses_that_are_not_finite_have_no_gain(bad):
    gain = averaging_gain([[1.0, 5], [bad, 5]], [[1.0, 5], [1.0, 5]])
    assert math.isnan(gain.value)
    assert math.isnan(gain.low)
    assert "unknown" in str(gain)


def test_no_examples_have_no_gain():
    assert math.isnan(averaging_gain(torch.zeros(0, 2), torch.zeros(0, 2)).value)


def test_both_losses_are_of_the_same_chunks():
    with pytest.raises(ValueError, match="same chunks"):
        averaging_gain([[1.0, 5]], [[1.0, 6]])
    with pytest.raises(ValueError, match=r"\[3\]"):
        averaging_gain([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
