"""The instrument says of a model what the formed Hessian and its optimizer say, or why it cannot."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from _small_views import data, formed_hessian, tanh_net, view_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lightning_cx.functional.curvature import gauss_newton
from lightning_cx.functional.step_size import step_gain, step_gains
from lightning_cx.instruments import Reading, StepSize, quantities
from lightning_cx.instruments import step_size as sharpness
from lightning_cx.instruments.step_size import EDGE, GAUSS_NEWTON, SHARPNESS


def measured(instrument: StepSize, view: Any, step: int = 5) -> Reading:
    return instrument.on_model(step, view)


def trained(make: Any, net: nn.Module, x: Tensor, y: Tensor, steps: int = 100) -> Optimizer:
    optimizer = make(net.parameters())
    for _ in range(steps):
        F.mse_loss(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize(
    ("options", "gain"),
    [
        ({}, step_gain(0.02)),
        ({"momentum": 0.9}, step_gain(0.02, 0.9)),
        ({"momentum": 0.9, "nesterov": True}, step_gain(0.02, 0.9, nesterov=True)),
        ({"momentum": 0.5, "dampening": 0.2, "weight_decay": 0.3}, step_gain(0.02, 0.5, 0.2)),
    ],
)
def test_sgd_has_the_ratio_of_the_formed_hessian(options: dict[str, Any], gain: float) -> None:
    net, (x, y) = tanh_net(), data(48)
    reading = measured(StepSize(), view_of(net, x, y, SGD(net.parameters(), lr=0.02, **options), 48))
    top = float(torch.linalg.eigvalsh(formed_hessian(net, x, y))[-1])
    assert reading.scalars[quantities.SHARPNESS] == pytest.approx(top, rel=1e-3)
    assert reading.scalars[quantities.EDGE] == pytest.approx(gain * (top + options.get("weight_decay", 0)), rel=1e-3)
    assert not reading.refusals


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: Adam(ps, lr=0.01),
        lambda ps: Adam(ps, lr=0.01, weight_decay=0.5, amsgrad=True),
        lambda ps: AdamW(ps, lr=0.01, weight_decay=0.5),
        lambda ps: RMSprop(ps, lr=0.01, momentum=0.5, centered=True),
    ],
)
def test_a_preconditioned_ratio_is_that_of_the_formed_matrix(make: Any) -> None:
    net, (x, y) = tanh_net(), data(48)
    optimizer = trained(make, net, x, y)
    reading = measured(StepSize(iterations=30), view_of(net, x, y, optimizer, 48))
    own = dict(net.named_parameters())
    gain, decay = (part.double() for part in step_gains(optimizer, own).flat(own))
    root = gain.sqrt()
    felt = root[:, None] * (formed_hessian(net, x, y) + decay.diag()) * root
    assert reading.scalars[quantities.EDGE] == pytest.approx(float(torch.linalg.eigvalsh(felt)[-1]), rel=1e-3)
    assert math.isnan(reading.scalars[quantities.GAUSS_NEWTON_EDGE])
    assert "know no single entries" in reading.refusals[quantities.GAUSS_NEWTON_EDGE]
    assert set(reading.refusals) == {quantities.GAUSS_NEWTON_EDGE}
    assert "preconditioner diag(sqrt(v) + eps) of " + type(optimizer).__name__ in reading.texts[quantities.EDGE]


def test_groups_of_different_rates_are_felt_together_and_frozen_layers_not_at_all() -> None:
    net, (x, y) = tanh_net(), data(48)
    net[0].bias.requires_grad_(False)
    groups = [{"params": [net[0].weight], "lr": 0.5}, {"params": net[2].parameters(), "lr": 0.01, "momentum": 0.9}]
    reading = measured(StepSize(iterations=30), view_of(net, x, y, SGD(groups), 48))
    trained = torch.tensor([True] * 15 + [False] * 5 + [True] * 6)
    hessian = formed_hessian(net, x, y)[trained][:, trained]
    gains = torch.tensor([step_gain(0.5)] * 15 + [step_gain(0.01, 0.9)] * 6, dtype=torch.float64)
    felt = gains.sqrt()[:, None] * hessian * gains.sqrt()
    assert reading.scalars[quantities.SHARPNESS] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)
    assert reading.scalars[quantities.EDGE] == pytest.approx(float(torch.linalg.eigvalsh(felt)[-1]), rel=1e-3)


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_gauss_newton_curvature_is_that_of_the_jacobian_and_its_ratio_follows(outputs: int) -> None:
    net, (x, y) = tanh_net(outputs), data(48, outputs)
    view = view_of(net, x, y, SGD(net.parameters(), lr=0.02), 1000)
    scalars = measured(StepSize(rows=60), view).scalars
    jacobian = view.jacobian(min(48, 60 // outputs))
    found = gauss_newton(jacobian.gram, jacobian.hessian)
    assert scalars[quantities.GAUSS_NEWTON] == pytest.approx(float(found.value))
    assert (
        scalars[quantities.GAUSS_NEWTON_LOW] < scalars[quantities.GAUSS_NEWTON] < scalars[quantities.GAUSS_NEWTON_HIGH]
    )
    assert scalars[quantities.GAUSS_NEWTON_EDGE] == pytest.approx(0.01 * float(found.value))
    assert not set(GAUSS_NEWTON) & set(measured(StepSize(rows=0), view).scalars)


def test_without_residuals_the_hessian_is_the_gauss_newton_matrix() -> None:
    net, (x, _) = tanh_net(), data(48)
    view = view_of(net, x, net(x).detach(), SGD(net.parameters(), lr=0.02), 48)
    scalars = measured(StepSize(), view).scalars
    assert scalars[quantities.SHARPNESS] == pytest.approx(scalars[quantities.GAUSS_NEWTON], rel=1e-3)


def test_the_interval_is_empty_where_the_probe_is_the_training_set_but_for_what_lanczos_misses() -> None:
    net, (x, y) = tanh_net(), data(64)
    optimizer = SGD(net.parameters(), lr=0.02)
    value, low, high = (measured(StepSize(), view_of(net, x, y, optimizer, 64)).scalars[tag] for tag in SHARPNESS)
    assert low == value <= high < 1.02 * value
    rough = measured(StepSize(iterations=2), view_of(net, x, y, optimizer, 64)).scalars
    assert rough[quantities.SHARPNESS] < value < rough[quantities.SHARPNESS_HIGH]


def test_the_interval_of_a_part_is_the_spread_over_fresh_parts() -> None:
    net = tanh_net()
    values, widths = [], []
    for seed in range(40):
        x, y = data(64, seed=seed)
        scalars = measured(StepSize(rows=0), view_of(net, x, y, SGD(net.parameters(), lr=0.02))).scalars
        values.append(scalars[quantities.SHARPNESS])
        widths.append((scalars[quantities.SHARPNESS_HIGH] - scalars[quantities.SHARPNESS_LOW]) / 2)
    spread = 2.36 * np.std(values)  # Student's t for 7 degrees of freedom
    assert np.mean(widths) == pytest.approx(spread, rel=0.25)
    half = measured(StepSize(rows=0), view_of(net, *data(64), SGD(net.parameters(), lr=0.02), 128)).scalars
    whole = measured(StepSize(rows=0), view_of(net, *data(64), SGD(net.parameters(), lr=0.02))).scalars
    down = [s[quantities.SHARPNESS] - s[quantities.SHARPNESS_LOW] for s in (half, whole)]
    assert down[0] == pytest.approx(down[1] / 2**0.5)


def test_the_next_search_starts_at_the_last_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[int] = []
    search = sharpness.largest_eigenvalue

    def counted(*args: Any, **options: Any) -> Any:
        found = search(*args, **options)
        products.append(found.products)
        return found

    monkeypatch.setattr(sharpness, "largest_eigenvalue", counted)
    net, (x, y) = tanh_net(width=60), data(48)
    instrument, view = StepSize(rows=0, iterations=40), view_of(net, x, y, SGD(net.parameters(), lr=0.02), 48)
    for _ in range(2):
        measured(instrument, view)
    net[2].requires_grad_(False)  # another size: the last direction is of no use
    measured(instrument, view)
    assert products[1] < products[0]
    assert len(products) == 3


def test_the_edge_is_told_and_explained() -> None:
    net, (x, y) = tanh_net(), data(48)
    top = float(torch.linalg.eigvalsh(formed_hessian(net, x, y))[-1])
    instrument = StepSize(rows=0)

    def told(ratio: float) -> tuple[str | None, str]:
        view = view_of(net, x, y, SGD(net.parameters(), lr=2 * ratio / top), 48)
        reading = measured(instrument, view)
        return reading.warnings.get(quantities.EDGE), reading.texts[quantities.EDGE]

    calm, below = told(0.5)
    assert calm is None
    assert below.startswith("**below** the edge of stability: ratio 0.5 ")
    assert "could be 2 times as large" in below
    warning, edge = told(1.0)
    assert str(warning).startswith("step 5: training runs at the edge of stability, ratio 1 (95% 1 to 1")
    assert edge.startswith("**at the edge** of stability")
    warning, beyond = told(1.5)
    assert "training runs beyond the edge of stability, ratio 1.5" in str(warning)
    assert beyond.startswith("**beyond** the edge of stability")


@pytest.mark.parametrize("make", [torch.optim.Rprop, torch.optim.LBFGS, torch.optim.Adagrad])
def test_other_optimizers_are_refused_by_name_and_the_sharpness_stays(make: Any) -> None:
    net, (x, y) = tanh_net(), data(48)
    reading = measured(StepSize(), view_of(net, x, y, make(net.parameters(), lr=0.02), 48))
    for tag in (*EDGE, quantities.GAUSS_NEWTON_EDGE):
        assert math.isnan(reading.scalars[tag])
        assert reading.refusals[tag].endswith(f"not for {make.__name__}")
    assert all(math.isfinite(reading.scalars[tag]) for tag in (*SHARPNESS, *GAUSS_NEWTON))
    assert reading.texts[quantities.EDGE].startswith("**unknown** distance")


def check_that_each_nan_has_a_reason(reading: Reading) -> None:
    assert {tag for tag, value in reading.scalars.items() if math.isnan(value)} == set(reading.refusals)


def test_what_is_not_known_is_refused_with_a_reason() -> None:
    net, (x, y) = tanh_net(), data(48)
    reading = measured(StepSize(), view_of(net, x, y, None, 48))
    assert (
        reading.refusals[quantities.EDGE] == "no single optimizer trains the model: none is known, or several share it"
    )
    check_that_each_nan_has_a_reason(reading)

    reading = measured(StepSize(), view_of(net, x, y, Adam(net.parameters()), 48))
    assert "has made no step yet" in reading.refusals[quantities.EDGE]
    check_that_each_nan_has_a_reason(reading)

    own = copy.deepcopy(net)
    reading = measured(StepSize(), view_of(own, x, y, trained(Adam, own, x, y, 99), 48))
    assert "Adam has made 99 of 100 steps" in reading.refusals[quantities.EDGE]
    check_that_each_nan_has_a_reason(reading)

    few = measured(StepSize(), view_of(net, x[:8], y[:8], SGD(net.parameters(), lr=0.1), 48))
    assert math.isfinite(few.scalars[quantities.EDGE])
    assert "16 are needed" in few.refusals[quantities.EDGE_LOW]
    check_that_each_nan_has_a_reason(few)

    broken = measured(StepSize(), view_of(net, x * math.nan, y, SGD(net.parameters(), lr=0.1), 48))
    assert "not finite" in broken.refusals[quantities.SHARPNESS]
    check_that_each_nan_has_a_reason(broken)

    wide = measured(StepSize(rows=5), view_of(tanh_net(3), *data(48, 3), None, 48))
    assert "StepSize(rows=6)" in wide.refusals[quantities.GAUSS_NEWTON]
    check_that_each_nan_has_a_reason(wide)


def test_a_model_without_second_derivatives_is_refused() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Tensor) -> Tensor:
            return 2 * values

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            return 2 * slope

    class Doubled(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return Once.apply(values)

    net, (x, y) = nn.Sequential(tanh_net(), Doubled()), data(48)
    reading = measured(StepSize(rows=0), view_of(net, x, y, SGD(net.parameters(), lr=0.1), 48))
    assert "differentiable only once" in reading.refusals[quantities.SHARPNESS]
    check_that_each_nan_has_a_reason(reading)


def test_numbers_that_cannot_be_are_refused() -> None:
    for wrong in ({"every_n_steps": 0}, {"examples": 0}, {"iterations": 0}, {"rows": -1}):
        with pytest.raises(ValueError, match=r"every_n_steps is 1 at least|it takes at least one"):
            StepSize(**wrong)


def test_copies_go_their_own_way() -> None:
    net, (x, y) = tanh_net(), data(48)
    instrument, view = StepSize(), view_of(net, x, y, SGD(net.parameters(), lr=0.02), 48)
    measured(instrument, view)
    like = copy.deepcopy(instrument)
    assert measured(like, view).scalars == measured(instrument, view).scalars
