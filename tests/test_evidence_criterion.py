"""The evidence-based criterion that the benchmark compares with; Cockpit's own is in benchmarks/check_evidence.py."""

from __future__ import annotations

import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True, scope="module")
def _path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


def evidence(gradients, epsilon=0.0):
    from _evidence import evidence

    return float(evidence(gradients, epsilon))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def naive(rows, epsilon=0.0):
    """The formula, one number after the other; no coordinate may be the same for all examples."""
    examples, coordinates, total = len(rows), len(rows[0]), 0.0
    for k in range(coordinates):
        column = [float(row[k]) for row in rows]
        mean = sum(column) / examples
        variance = sum((value - mean) ** 2 for value in column) / (examples - 1)
        total += mean**2 / (variance + epsilon)
    return 1 - examples / coordinates * total


@pytest.mark.parametrize(("seed", "examples", "coordinates"), [(0, 2, 1), (1, 5, 7), (2, 64, 3), (3, 10, 200)])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 3.0])
def test_it_is_the_naive_loop(seed, examples, coordinates, epsilon):
    rows = draw(seed, examples, coordinates) * draw(seed + 100, coordinates).exp() + draw(seed + 200, coordinates)
    assert evidence(rows, epsilon) == pytest.approx(naive(rows, epsilon), rel=1e-9)


# Of Gaussian gradients B g^2 / S follows the F distribution with 1 and B - 1 degrees of freedom, noncentral by
# B mu^2 / sigma^2.
@pytest.mark.parametrize("examples", [8, 32, 512])
@pytest.mark.parametrize("signal", [0.0, 0.1, 1.0])
def test_gaussian_gradients_give_the_mean_of_the_f_distribution(examples, signal):
    coordinates = 20_000
    expected, variance = stats.ncf.stats(1, examples - 1, examples * signal**2, moments="mv")
    found = evidence(draw(examples, examples, coordinates) + signal)
    assert found == pytest.approx(1 - expected, abs=5 * math.sqrt(variance / coordinates))
    if signal == 0:
        assert 1 - expected == pytest.approx(-2 / (examples - 3))


def test_a_strong_signal_is_far_below_0_and_a_mean_of_0_gives_1():
    noise = draw(0, 64, 100)
    assert evidence(noise + 3) < -400
    assert evidence(noise - noise.mean(0)) == pytest.approx(1, abs=1e-12)


def test_coordinates_that_one_example_each_moves_give_exactly_nothing():
    assert evidence(torch.eye(20)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("moving", [1, 3, 9])
def test_a_coordinate_that_some_examples_move_alike_gives_the_odds(moving):
    rows = torch.zeros(10, 1)
    rows[:moving] = 0.1
    assert evidence(rows) == pytest.approx(1 - moving * 9 / (10 - moving))


def test_neither_the_order_of_examples_or_coordinates_nor_the_scale_of_a_coordinate_matters():
    rows = draw(0, 12, 30) + 0.3
    examples, coordinates = torch.randperm(12, generator=generator(1)), torch.randperm(30, generator=generator(2))
    expected = pytest.approx(evidence(rows), rel=1e-9)
    assert evidence(rows[examples]) == expected
    assert evidence(rows[:, coordinates]) == expected
    assert evidence(rows * draw(3, 30) * 1e-9) == expected
    assert evidence(rows.repeat(1, 3)) == expected


GRADIENTS = st.integers(2, 6).flatmap(
    lambda examples: st.lists(
        st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=examples, max_size=examples),
        min_size=1,
        max_size=6,
    )
)


@given(GRADIENTS, st.floats(1e-6, 1e6), st.floats(1, 1e6))
def test_it_never_exceeds_1_and_more_epsilon_never_lowers_it(columns, epsilon, factor):
    rows = torch.tensor(columns, dtype=torch.float64).T
    less, more = evidence(rows, epsilon), evidence(rows, epsilon * factor)
    assert less <= more + 1e-9 * abs(less)
    assert more <= 1
    assert math.isnan(plain := evidence(rows)) or plain <= 1


@given(GRADIENTS)
def test_coordinates_of_zeros_change_nothing_without_epsilon_and_count_as_noise_with_it(columns):
    rows = torch.tensor(columns, dtype=torch.float64).T
    padded = torch.cat([rows, torch.zeros_like(rows)], dim=1)
    assert evidence(padded) == pytest.approx(evidence(rows), nan_ok=True)
    assert 1 - evidence(padded, 1e-5) == pytest.approx((1 - evidence(rows, 1e-5)) / 2)


@pytest.mark.parametrize("examples", [2, 3, 7, 100])
def test_a_gradient_that_all_examples_share_is_certain(examples):
    rows = draw(0, examples, 5)
    rows[:, 2] = 0.1
    assert evidence(rows) == -math.inf
    assert evidence(rows, 1e-5) == pytest.approx(naive(rows, 1e-5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_what_is_not_finite_or_overflows_gives_nan(bad):
    rows = draw(0, 4, 3)
    rows[1, 1] = bad
    assert math.isnan(evidence(rows))
    assert math.isnan(evidence(rows, 1e-5))


def test_gradients_of_zeros_or_of_no_parameter_give_nan():
    assert math.isnan(evidence(torch.zeros(4, 3)))
    assert math.isnan(evidence(torch.zeros(4, 0)))


@pytest.mark.parametrize("mean", [math.inf, math.nan])
@pytest.mark.parametrize("variance", [1.0, 0.0])
def test_moments_that_are_not_finite_or_negative_give_nan(mean, variance):
    from _evidence import evidence_of_moments

    assert evidence_of_moments([1.0, mean], [1.0, variance], 4).isnan()
    assert evidence_of_moments([1.0, variance], [1.0, mean], 4).isnan()
    assert evidence_of_moments([1.0, 1.0], [1.0, -1e-9], 4, epsilon=1.0).isnan()


def test_what_cannot_be_judged_is_refused_with_a_reason():
    from _evidence import evidence_of_moments

    with pytest.raises(ValueError, match=r"at least 2 examples, got shape \[1, 3\]"):
        evidence(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"got shape \[0, 3\]"):
        evidence(torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"got shape \[3\]"):
        evidence([1.0, 2.0, 3.0])
    for epsilon in (-1e-9, math.nan, math.inf):
        with pytest.raises(ValueError, match="0 or above, got"):
            evidence(torch.ones(4, 3), epsilon)
    with pytest.raises(ValueError, match=r"one mean and one variance, got \[2\] and \[1\]"):
        evidence_of_moments([1.0, 2.0], [1.0], 4)
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        evidence_of_moments([1.0], [1.0], 1)


def test_lists_arrays_and_tensors_of_any_dtype_give_the_same_in_float64():
    from _evidence import evidence as as_tensor

    whole = [[1, 2], [3, 5], [-4, 8]]
    expected = pytest.approx(naive(whole), rel=1e-12)
    for rows in (whole, np.array(whole), torch.tensor(whole), torch.tensor(whole).bfloat16().requires_grad_()):
        assert as_tensor(rows).dtype == torch.float64
        assert not as_tensor(rows).requires_grad
        assert evidence(rows) == expected


def rows_by_loop(network, losses, x, y):
    parameters = [p for p in network.parameters() if p.requires_grad]
    rows = []
    for i in range(len(x)):
        gradients = torch.autograd.grad(losses(network(x[i : i + 1]), y[i : i + 1])[0], parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["tiny-mlp-6", "tiny-cnn-5", "regression-256"])
def test_gradients_of_examples_and_their_evidence_are_those_of_a_loop(name):
    from _evidence import per_example_gradients
    from _workloads import WORKLOADS

    workload = WORKLOADS[name]
    network, x, y = workload.build(torch.device("cpu"))
    network.double()
    x, y = x[:6].double(), y[:6].double() if y.is_floating_point() else y[:6]
    expected = rows_by_loop(network, workload.losses, x, y)
    for chunk in (None, 1, 4):
        rows = per_example_gradients(network, workload.losses, x, y, chunk)
        torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-12)
    living = expected[:, expected.ne(0).any(0)]
    assert evidence(rows) == pytest.approx(naive(living), rel=1e-6)
    workload.losses(network(x), y).mean().backward()
    batch = torch.cat([p.grad.flatten() for p in network.parameters()])
    torch.testing.assert_close(rows.mean(0), batch, rtol=1e-9, atol=1e-12)


def test_parameters_that_are_not_trained_are_left_out_and_the_network_as_it_was():
    from _evidence import per_example_gradients
    from _networks import mlp
    from _workloads import squared_errors

    network = mlp(3, 4, 2)
    network[0].requires_grad_(False)
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    x, y = torch.ones(5, 3) * torch.arange(5.0)[:, None], torch.ones(5, 2)
    rows = per_example_gradients(network, squared_errors, x, y)
    torch.testing.assert_close(rows, rows_by_loop(network, squared_errors, x, y))
    assert rows.shape == (5, 4 * 2 + 2)
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert network.training
    assert not rows.requires_grad


def test_a_network_or_batch_without_gradients_is_refused_with_a_reason():
    from _evidence import per_example_gradients
    from _networks import mlp
    from _workloads import squared_errors

    network = mlp(3, 2)
    with pytest.raises(ValueError, match="one input and one target, got 4 and 5"):
        per_example_gradients(network, squared_errors, torch.ones(4, 3), torch.ones(5, 2))
    with pytest.raises(ValueError, match="one input and one target, got 0 and 0"):
        per_example_gradients(network, squared_errors, torch.ones(0, 3), torch.ones(0, 2))
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of this network has requires_grad"):
        per_example_gradients(network, squared_errors, torch.ones(4, 3), torch.ones(4, 2))


def linear_evidence(seed, signal, fitted=False):
    """Of a linear model of 20 inputs at weights 0, or at the least squares of its 256 examples."""
    from _evidence import per_example_gradients
    from _workloads import squared_errors

    x, noise = draw(seed, 256, 20), draw(seed + 10_000, 256, 1)
    y = signal * x.sum(1, keepdim=True) + noise
    network = torch.nn.Linear(20, 1, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(torch.linalg.lstsq(x, y).solution.T if fitted else torch.zeros(1, 20))
    return evidence(per_example_gradients(network, squared_errors, x, y))


def test_a_network_stops_where_its_labels_are_noise_and_not_where_they_are_signal():
    noise = torch.tensor([linear_evidence(seed, signal=0.0) for seed in range(200)])
    assert abs(float(noise.mean())) < 5 * float(noise.std()) / math.sqrt(200)
    assert float(noise.std()) < 0.5
    assert linear_evidence(0, signal=1.0) < -5
    assert linear_evidence(0, signal=1.0, fitted=True) == pytest.approx(1, abs=1e-9)


def test_the_examples_in_the_documentation_run():
    import _evidence

    failed, tried = doctest.testmod(_evidence)
    assert tried >= 3
    assert failed == 0
