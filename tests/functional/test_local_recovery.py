"""The rate that the Jacobian predicts is the one at which gradient descent converges; rank decides about recovery."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from _tanh_teacher import PARAMETERS, Problem, outputs_and_jacobian, problem
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lightning_cx.functional import local_model, loss_tail
from lightning_cx.functional.convergence import jacobian_rank, local_rate

Array = NDArray[Any]


def spectrum(case: Problem) -> Array:
    return np.linalg.eigvalsh(case.jacobian @ case.jacobian.T)


def slow_direction(case: Problem) -> Array:
    values = np.linalg.svd(case.jacobian)
    return values.Vh[jacobian_rank(values.S**2) - 1]


@pytest.mark.parametrize("n", [10, 30, 60, 200])
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_tanh_teacher_is_approached_at_the_predicted_rate(n: int, seed: int) -> None:
    """THEORY 9, on seeds of our own: 21 parameters, full-batch gradient descent in float64."""
    case = problem(n, seed)
    learning_rate = n / spectrum(case)[-1]
    losses = case.descend(case.student + 1e-3 * slow_direction(case), learning_rate, 1500)
    fitted = loss_tail(np.arange(500, 1500, 5), losses[500::5])
    predicted = local_rate(spectrum(case), learning_rate, n, parameters=PARAMETERS)
    assert fitted.law == "exponential"
    assert fitted.rate == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_ten_examples_determine_ten_of_21_parameters_and_do_not_recover_the_teacher(seed: int) -> None:
    few = problem(10, seed)
    assert jacobian_rank(spectrum(few), PARAMETERS) == 10
    assert few.test_error() > 1e-3
    for n in (60, 200):
        enough = problem(n, seed)
        assert jacobian_rank(spectrum(enough), PARAMETERS) == 21
        assert enough.test_error() < 1e-12


def descend(curvature: Array, momentum: float, dampening: float, nesterov: bool, steps: int) -> Array:
    """Losses of torch's own SGD on a quadratic with these curvatures."""
    w = torch.ones(len(curvature), dtype=torch.float64, requires_grad=True)
    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    optimizer = torch.optim.SGD([w], lr=0.1, **options)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (torch.as_tensor(curvature) * w.square()).sum() / 2
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


MOMENTUM = {
    "plain": (0.0, 0.0, False),
    "heavy ball, overdamped": (0.5, 0.0, False),
    "heavy ball, underdamped": (0.95, 0.0, False),
    "dampened": (0.9, 0.5, False),
    "Nesterov, overdamped": (0.5, 0.0, True),
    "Nesterov, underdamped": (0.99, 0.0, True),
}


@pytest.mark.parametrize("case", MOMENTUM)
def test_momentum_converges_at_the_predicted_rate(case: str) -> None:
    momentum, dampening, nesterov = MOMENTUM[case]
    curvature = np.array([0.05, 0.2, 3.0])
    losses = descend(curvature, momentum, dampening, nesterov, 2000)
    slope = np.polyfit(np.arange(500, 2000), np.log(losses[500:]), 1)[0]  # over many swings, where the modes swing
    predicted = local_rate(5 * curvature, 0.1, 5, momentum, dampening, nesterov)
    assert -slope == pytest.approx(predicted, rel=0.01)


def test_a_step_size_over_the_edge_is_predicted_to_diverge() -> None:
    losses = descend(np.array([0.5, 20.5]), 0.0, 0.0, False, 200)
    predicted = local_rate([0.5, 20.5], 0.1, 1)
    assert predicted < 0
    assert -np.log(losses[199] / losses[100]) / 99 == pytest.approx(predicted, rel=1e-6)
    assert local_rate([0.5, 20.5], 0.1, 1, momentum=0.9) > 0  # momentum moves the edge to 2 (1 + mu) / eta


@given(st.floats(1e-12, 0.999), st.floats(1e-3, 1e3))
def test_the_rate_depends_on_learning_rate_times_eigenvalue_only(step: float, scale: float) -> None:
    assert local_rate([7 * scale * step], 1 / scale, 7) == pytest.approx(-2 * math.log1p(-step), rel=1e-6)


def test_one_step_that_arrives_is_infinitely_fast() -> None:
    assert local_rate([2.0], 1.0, 2) == math.inf


@pytest.mark.parametrize("eigenvalues", [[], [0.0, 0.0], [1.0, math.nan], [math.inf], [-1.0]])
def test_spectra_without_modes_have_rank_0_and_no_rate(eigenvalues: list[float]) -> None:
    assert jacobian_rank(eigenvalues) == 0
    assert math.isnan(local_rate(eigenvalues, 0.1, 4))


def test_rounding_is_not_counted_and_more_rows_than_parameters_neither() -> None:
    assert jacobian_rank([1.0, 1e-7, 1e-9]) == 2
    assert jacobian_rank([1.0, 1e-7, 1e-9], tolerance=0.0) == 3
    assert jacobian_rank([1.0, 0.9, 0.8, 1e-7], parameters=3) == 3
    assert local_rate([1.0, 0.5, 1e-7], 0.1, 1, parameters=2) == pytest.approx(-2 * math.log(0.95))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"n": 0}, "n=0"),
        ({"n": math.nan}, "n=nan"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"tolerance": 1.0}, "a tolerance is a share"),
    ],
)
def test_wrong_arguments_raise(wrong: dict[str, float], message: str) -> None:
    options: dict[str, Any] = {"learning_rate": 0.1, "n": 3, **wrong}
    with pytest.raises(ValueError, match=message):
        local_rate([1.0], **options)


# The linear model -------------------------------------------------------------------------------------------


def random_case(n: int, outputs: int, parameters: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Jacobian, curvatures and residuals of a loss of several outputs."""
    draw = np.random.default_rng(seed)
    root = draw.normal(size=(n, outputs, outputs))
    residuals = draw.normal(size=(n, outputs))
    jacobian = draw.normal(size=(n * outputs, parameters))
    return torch.tensor(jacobian), torch.tensor(root @ root.transpose(0, 2, 1)), torch.tensor(residuals)


@pytest.mark.parametrize(("n", "outputs", "parameters"), [(8, 3, 40), (20, 2, 7), (5, 1, 5)])
def test_the_linear_model_is_that_of_the_whole_gauss_newton_matrix(n: int, outputs: int, parameters: int) -> None:
    jacobian, hessian, residuals = random_case(n, outputs, parameters, 3)
    blocks = torch.block_diag(*hessian)
    curvature = jacobian.T @ blocks @ jacobian / n
    gradient = -jacobian.T @ residuals.flatten() / n
    taken = float(gradient @ torch.linalg.pinv(curvature, hermitian=True, rtol=1e-10) @ gradient) / 2
    found = local_model(jacobian @ jacobian.T, hessian, residuals, parameters, loss=2.0, tolerance=1e-10)
    expected = torch.linalg.eigvalsh(curvature).flip(0)
    shown = min(len(expected), len(found.eigenvalues))
    torch.testing.assert_close(found.eigenvalues[:shown] / n, expected[:shown], rtol=1e-6, atol=1e-9)
    assert found.rank == min(n * outputs, parameters)
    assert found.removable == pytest.approx(taken / 2.0, rel=1e-6)
    assert found.is_determined is (n * outputs >= parameters)
    assert not found.quadratic


@pytest.mark.parametrize("n", [10, 60])
def test_near_a_zero_of_a_square_all_of_the_loss_can_go(n: int) -> None:
    case = problem(n, 21)
    student = case.student + 1e-4 * np.random.default_rng(0).normal(size=PARAMETERS)
    near = Problem(case.x, case.y, case.teacher, student)
    found, jacobian = outputs_and_jacobian(student, near.x)
    loss = float(((found - near.y) ** 2).mean()) / 2
    model = local_model(jacobian @ jacobian.T, np.ones((n, 1, 1)), (near.y - found)[:, None], PARAMETERS, loss)
    assert model.removable == pytest.approx(1, abs=1e-3)
    assert model.quadratic
    assert model.has_minimum
    assert model.rate(0.1) == local_rate(model.eigenvalues, 0.1, n, parameters=PARAMETERS)
    assert str(model).startswith(f"{n} examples determine {min(n, 21)} of 21 parameters")


def test_at_a_minimum_above_zero_nothing_can_go() -> None:
    draw = np.random.default_rng(5)
    design, y = draw.normal(size=(50, 4)), draw.normal(size=50)
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    model = local_model(design @ design.T, np.ones((50, 1, 1)), residuals[:, None], 4, float((residuals**2).mean()) / 2)
    assert model.removable == pytest.approx(0, abs=1e-12)
    assert model.is_determined


def logistic(separable: bool) -> tuple[Tensor, Tensor, Tensor]:
    draw = np.random.default_rng(6)
    x = torch.tensor(draw.normal(size=(80, 3)))
    score = x @ torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    y = (score + (0.0 if separable else 2.0) * torch.tensor(draw.normal(size=80)) > 0).double()
    return x, y, torch.zeros(3, dtype=torch.float64)


def step(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return w - 2.0 * x.T @ ((x @ w).sigmoid() - y) / len(x)


def logistic_model(x: Tensor, y: Tensor, w: Tensor) -> Any:
    p = (x @ w).sigmoid()
    loss = float(F.binary_cross_entropy(p, y))
    return local_model(x @ x.T, (p * (1 - p))[:, None, None], (y - p)[:, None], 3, loss)


def test_cross_entropy_of_classes_that_can_be_told_apart_has_no_minimum_and_so_no_rate() -> None:
    x, y, w = logistic(separable=True)
    for _ in range(3000):
        w = step(x, y, w)
    model = logistic_model(x, y, w)
    assert model.removable > 0.2
    assert not model.has_minimum
    assert math.isnan(model.rate(2.0))


def test_cross_entropy_of_classes_that_overlap_ends_at_the_predicted_rate() -> None:
    x, y, w = logistic(separable=False)
    losses = []
    for _ in range(120):
        losses.append(float(F.binary_cross_entropy((x @ w).sigmoid(), y)))
        w = step(x, y, w)
    for _ in range(3000):
        w = step(x, y, w)
    model = logistic_model(x, y, w)
    above = np.array(losses) - float(F.binary_cross_entropy((x @ w).sigmoid(), y))
    assert model.has_minimum
    assert model.removable < 1e-6
    assert -np.polyfit(np.arange(60, 120), np.log(above[60:]), 1)[0] == pytest.approx(model.rate(2.0), rel=0.03)


def test_scale_of_the_loss_and_rotation_of_the_outputs_do_not_matter() -> None:
    jacobian, hessian, residuals = random_case(6, 3, 30, 4)
    plain = local_model(jacobian @ jacobian.T, hessian, residuals, 30, 2.0)
    louder = local_model(jacobian @ jacobian.T, 5 * hessian, 5 * residuals, 30, 10.0)
    turn = torch.linalg.qr(torch.tensor(np.random.default_rng(0).normal(size=(3, 3))))[0]
    turned = torch.block_diag(*[turn] * 6) @ jacobian
    rotated = local_model(turned @ turned.T, turn @ hessian @ turn.T, residuals @ turn.T, 30, 2.0)
    for other in (louder, rotated):
        assert other.removable == pytest.approx(plain.removable, rel=1e-6)
        assert other.rank == plain.rank
    torch.testing.assert_close(louder.eigenvalues, 5 * plain.eigenvalues)
    torch.testing.assert_close(rotated.eigenvalues, plain.eigenvalues)


@pytest.mark.parametrize("curvature", [0.0, -1.0])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_a_loss_with_a_slope_but_no_curvature_has_no_linear_model(curvature: float, share: float) -> None:
    """An absolute error or a hinge at all examples, a robust loss at some: nothing there says where a minimum is."""
    hessian = torch.ones(10, 1, 1)
    hessian[: round(10 * share)] = curvature
    model = local_model(torch.eye(10), hessian, torch.ones(10, 1), 10, 1.0)
    assert model.rank == 0
    assert math.isnan(model.removable)
    assert math.isnan(model.rate(0.1))
    assert str(model).startswith("no minimum can be told: the loss has a slope where it has no curvature")


def test_examples_without_a_slope_need_no_curvature() -> None:
    hessian, residuals = torch.ones(10, 1, 1), torch.ones(10, 1)
    hessian[:4], residuals[:4] = 0, 0  # beyond the margin of a squared hinge
    model = local_model(torch.eye(10), hessian, residuals, 10, 0.3)
    assert (model.rank, model.reason) == (6, "")
    assert model.removable == pytest.approx(1)


@pytest.mark.parametrize("n", [0, 4])
def test_nothing_or_nan_has_no_linear_model(n: int) -> None:
    model = local_model(torch.full((n, n), math.nan), torch.ones(n, 1, 1), torch.ones(n, 1), 5, 1.0)
    assert model.rank == 0
    assert math.isnan(model.removable)
    assert math.isnan(model.rate(0.1))


def test_zero_gradients_leave_rank_0() -> None:
    model = local_model(torch.zeros(4, 4), torch.ones(4, 1, 1), torch.ones(4, 1), 5, 0.5)
    assert model.rank == 0
    assert model.removable == 0
    assert math.isnan(model.rate(0.1))


def test_shapes_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match=r"got \[4, 4\], \[2, 1, 1\] and \[2, 1\]"):
        local_model(torch.eye(4), torch.ones(2, 1, 1), torch.ones(2, 1), 5)
