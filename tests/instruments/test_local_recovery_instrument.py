"""The instrument puts the fitted rate beside the predicted one, and refuses by name where none is defined."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from _views import seen
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.functional import loss_tail
from lightning_cx.functional.convergence import local_rate
from lightning_cx.gradients import UnsupportedGradientError
from lightning_cx.instruments import LocalRecovery, Reading, quantities
from lightning_cx.instruments.local_recovery import CODES, KEPT, LAW, LOCAL
from lightning_cx.probe import ProbeReading


def probe(loss: float) -> ProbeReading:
    return ProbeReading(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, 1), loss=loss)


def follow(losses: list[float], instrument: LocalRecovery | None = None, stride: int = 10) -> list[Reading]:
    instrument = instrument or LocalRecovery()
    return [instrument.on_probe(stride * i, probe(loss)) for i, loss in enumerate(losses)]


def last(readings: list[Reading]) -> Reading:
    return [reading for reading in readings if reading.scalars][-1]


def explained(reading: Reading) -> bool:
    """Whether every nan has its reason, and nothing else has."""
    return {tag for tag, value in reading.scalars.items() if math.isnan(value)} == set(reading.refusals)


# Law --------------------------------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_latest_half_of_the_steps() -> None:
    losses = [math.exp(-0.03 * 10 * i) + math.exp(-0.001 * 10 * i) for i in range(100)]
    reading = last(follow(losses))
    read_at = max(i for i, r in enumerate(follow(losses)) if r.scalars)
    first = -(-read_at // 2)
    expected = loss_tail([10 * i for i in range(first, read_at + 1)], losses[first : read_at + 1])
    assert reading.scalars[quantities.RECOVERY_LAW] == CODES[expected.law]
    assert reading.scalars[quantities.RECOVERY_RATE] == pytest.approx(expected.rate_now)
    assert reading.scalars[quantities.RECOVERY_RATE] == pytest.approx(0.001, rel=0.01)
    assert reading.scalars[quantities.RECOVERY_RATE_LOW] <= 0.001 <= reading.scalars[quantities.RECOVERY_RATE_HIGH]
    assert explained(reading)
    assert reading.texts[quantities.RECOVERY_VERDICT].startswith(
        "**converging at a linear rate of .001 per step; the loss "
    )


def test_a_power_law_is_shown_by_its_present_pace() -> None:
    losses = [1 / (1 + 10 * i) for i in range(100)]
    readings = follow(losses, LocalRecovery(tail=1.0))
    reading, step = last(readings), 10 * max(i for i, r in enumerate(readings) if r.scalars)
    assert reading.scalars[quantities.RECOVERY_LAW] == CODES["power"]
    assert reading.scalars[quantities.RECOVERY_RATE] == pytest.approx(1 / (1 + step), rel=0.01)
    low, high = reading.scalars[quantities.RECOVERY_RATE_LOW], reading.scalars[quantities.RECOVERY_RATE_HIGH]
    assert low <= reading.scalars[quantities.RECOVERY_RATE] <= high


def test_too_few_readings_are_refused_with_how_many_are_missing() -> None:
    readings = follow([1.0] * 20)
    assert readings[0].refusals[quantities.RECOVERY_RATE] == (
        "1 usable readings of the loss, 16 are needed in the latest 50% of the steps"
    )
    assert all(explained(r) for r in readings)
    assert all(math.isnan(r.scalars[tag]) for r in readings if r.scalars for tag in LAW)


def test_a_flat_loss_has_rate_0_and_an_interval_around_it() -> None:
    reading = last(follow([0.5] * 64))
    assert reading.scalars[quantities.RECOVERY_LAW] == CODES["flat"]
    assert reading.scalars[quantities.RECOVERY_RATE] == 0
    assert reading.scalars[quantities.RECOVERY_RATE_LOW] < 0 < reading.scalars[quantities.RECOVERY_RATE_HIGH]
    assert explained(reading)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_known_is_refused(loss: float) -> None:
    reading = LocalRecovery().on_probe(0, probe(loss))
    assert set(reading.refusals.values()) == {"the loss on the probe is not known, or not finite"}
    assert explained(reading)


def test_the_memory_is_thinned_and_stays_even() -> None:
    instrument = LocalRecovery()
    count = 5 * KEPT
    readings = follow([math.exp(-1e-4 * 10 * i) for i in range(count)], instrument)
    steps, losses = zip(*instrument._losses, strict=True)
    assert KEPT // 2 <= len(steps) <= KEPT
    assert len({b - a for a, b in pairwise(steps)}) == 1
    assert steps[-1] >= 10 * (count - 9)
    assert last(readings).scalars[quantities.RECOVERY_RATE] == pytest.approx(1e-4, rel=1e-3)
    assert list(losses) == [pytest.approx(math.exp(-1e-4 * step)) for step in steps]


def test_a_resumed_run_goes_on_with_the_losses_that_it_had(tmp_path: Any) -> None:
    losses = [math.exp(-0.01 * i) for i in range(80)]
    whole, first, second = LocalRecovery(), LocalRecovery(), LocalRecovery()
    expected = follow(losses, whole)[50:]
    follow(losses[:50], first)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found = [second.on_probe(10 * i, probe(losses[i])) for i in range(50, 80)]
    assert found == expected
    second.reset()
    assert math.isnan(second.on_probe(0, probe(1.0)).scalars[quantities.RECOVERY_RATE])


# Jacobian ---------------------------------------------------------------------------------------------------


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(parameters: int, n: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Linear(parameters, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(draw(1, parameters, seed=seed))
    return net, draw(n, parameters, seed=seed + 1), draw(n, 1, seed=seed + 2)


def sgd(net: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), **{"lr": 0.1, **options})


def looked_at(*args: Any, **options: Any) -> Reading:
    return LocalRecovery().on_model(*seen(*args, **options))


def test_a_linear_model_is_predicted_exactly() -> None:
    """Mean squared error is twice half of it: its curvature is 2 x^T x / n."""
    net, x, y = linear(6, 40)
    reading = looked_at(net, x, y, optimizer=sgd(net), training_examples=40)
    best = x @ torch.linalg.lstsq(x, y).solution
    loss, floor = float(F.mse_loss(net(x).detach(), y)), float(F.mse_loss(best, y))
    expected = local_rate(2 * torch.linalg.eigvalsh(x.T @ x), 0.1, 40)
    assert reading.scalars[quantities.RECOVERY_PREDICTED_RATE] == pytest.approx(expected, rel=1e-9)
    assert reading.scalars[quantities.RECOVERY_REMOVABLE] == pytest.approx((loss - floor) / loss, rel=1e-9)
    assert reading.scalars[quantities.RECOVERY_RANK_SHARE] == 1
    assert explained(reading)
    card = reading.texts[quantities.RECOVERY_VERDICT]
    assert "40 examples determine 6 of 6 parameters: the minimum is isolated" in card
    assert "The Jacobian predicts " in card


def test_few_examples_determine_only_some_parameters() -> None:
    net, x, y = linear(30, 10)
    reading = looked_at(net, x, y, optimizer=sgd(net), training_examples=10)
    assert reading.scalars[quantities.RECOVERY_RANK_SHARE] == pytest.approx(10 / 30)
    assert reading.scalars[quantities.RECOVERY_REMOVABLE] == pytest.approx(1)
    assert math.isfinite(reading.scalars[quantities.RECOVERY_PREDICTED_RATE])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_that_relu_neurons_are_free_to_choose_are_not_counted_in_any_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1)).to(dtype)
    x, y = draw(201, 5).to(dtype), draw(201, 1, seed=1).to(dtype)
    reading = looked_at(net, x, y, optimizer=sgd(net), training_examples=201)
    assert reading.scalars[quantities.RECOVERY_RANK_SHARE] == pytest.approx((43 - 6) / 43)


def test_momentum_is_in_the_prediction() -> None:
    net, x, y = linear(6, 40)
    options = {"momentum": 0.9, "nesterov": True}
    reading = looked_at(net, x, y, optimizer=sgd(net, **options), training_examples=40)
    expected = local_rate(2 * torch.linalg.eigvalsh(x.T @ x), 0.1, 40, 0.9, nesterov=True)
    assert reading.scalars[quantities.RECOVERY_PREDICTED_RATE] == pytest.approx(expected, rel=1e-9)


def test_a_step_over_the_edge_is_told() -> None:
    net, x, y = linear(6, 40)
    reading = looked_at(net, x, y, optimizer=sgd(net, lr=5.0), training_examples=40)
    assert reading.scalars[quantities.RECOVERY_PREDICTED_RATE] < 0
    assert "over the edge of stability" in reading.texts[quantities.RECOVERY_VERDICT]


def two_groups(net: nn.Module) -> torch.optim.Optimizer:
    weight, bias = net.parameters()
    return torch.optim.SGD([{"params": [weight], "lr": 0.1}, {"params": [bias], "lr": 0.2}])


OPTIMIZERS: dict[str, tuple[Any, str]] = {
    "Adam": (
        lambda net: torch.optim.Adam(net.parameters()),
        "the local rate is defined for SGD, and the optimizer is Adam",
    ),
    "none": (lambda net: None, "defined for SGD, and the optimizer is none, or one of several"),
    "weight decay": (lambda net: sgd(net, weight_decay=1e-4), "weight decay moves the minimum"),
    "two learning rates": (two_groups, "parameter groups have settings of their own"),
    "maximising": (lambda net: sgd(net, maximize=True), "the optimizer maximises"),
    "a part only": (lambda net: torch.optim.SGD([net.weight], lr=0.1), "does not step all trainable parameters"),
    "learning rate 0": (lambda net: sgd(net, lr=0.0), "the learning rate is zero"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_optimizers_are_refused_by_name_and_the_rank_stays(name: str) -> None:
    make, why = OPTIMIZERS[name]
    net = nn.Linear(6, 1).double()
    reading = looked_at(net, draw(40, 6), draw(40, 1, seed=1), optimizer=make(net), training_examples=40)
    assert why in reading.refusals[quantities.RECOVERY_PREDICTED_RATE]
    assert reading.scalars[quantities.RECOVERY_RANK_SHARE] == 1
    assert explained(reading)
    assert (
        f"No rate is predicted: {reading.refusals[quantities.RECOVERY_PREDICTED_RATE]}."
        in reading.texts["recovery/verdict"]
    )


def test_cross_entropy_far_from_a_minimum_has_no_predicted_rate() -> None:
    net = nn.Linear(6, 3).double()
    y = torch.arange(40) % 3
    reading = LocalRecovery().on_model(*seen(net, draw(40, 6), y, F.cross_entropy, sgd(net), 40))
    assert reading.refusals[quantities.RECOVERY_PREDICTED_RATE].startswith("no finite minimum is near: ")
    # A constant over the classes changes nothing, so 7 of 21 parameters are free.
    assert reading.scalars[quantities.RECOVERY_RANK_SHARE] == pytest.approx(14 / 21)
    assert explained(reading)


def test_a_part_of_the_training_set_that_leaves_parameters_free_is_no_basis() -> None:
    net, x, y = linear(30, 10)
    for training, words in ((200, "10 of 200"), (None, "10 of an unknown number")):
        reading = looked_at(net, x, y, optimizer=sgd(net), training_examples=training)
        assert set(reading.scalars) == set(LOCAL)
        assert words in reading.refusals[quantities.RECOVERY_RANK_SHARE]
        assert explained(reading)


def test_a_part_of_the_training_set_that_determines_all_parameters_will_do() -> None:
    net, x, y = linear(6, 40)
    reading = looked_at(net, x, y, optimizer=sgd(net), training_examples=1000)
    assert reading.scalars[quantities.RECOVERY_RANK_SHARE] == 1
    assert explained(reading)


def test_as_many_examples_are_taken_as_rows_allow() -> None:
    net = nn.Linear(2, 60).double()
    x, y = draw(40, 2), draw(40, 60, seed=1)
    reading = LocalRecovery().on_model(*seen(net, x, y, optimizer=sgd(net), training_examples=40))
    assert "8 examples determine 180 of 180 parameters" in reading.texts[quantities.RECOVERY_VERDICT]  # 8 * 60 < 512
    chosen = LocalRecovery(examples=5).on_model(*seen(net, x, y, optimizer=sgd(net), training_examples=5))
    assert "5 examples determine 180 of 180" in chosen.texts[quantities.RECOVERY_VERDICT]


def test_as_many_rows_as_a_layer_is_wide_are_no_trouble() -> None:
    net = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 1)).double()
    x, y = draw(40, 3), draw(40, 1, seed=1)
    reading = looked_at(net, x, y, optimizer=sgd(net), training_examples=40)
    assert reading.scalars[quantities.RECOVERY_RANK_SHARE] == pytest.approx(
        40 / sum(p.numel() for p in net.parameters())
    )


@pytest.mark.parametrize(
    "error", [UnsupportedGradientError("unsupported: Odd of 0.weight"), ValueError("1 is too many")]
)
def test_what_the_view_refuses_is_refused_in_its_words(error: Exception) -> None:
    net, x, y = linear(6, 40)
    step, view = seen(net, x, y, optimizer=sgd(net), training_examples=40)

    def refuse(examples: int) -> Any:
        raise error

    view.jacobian = refuse  # type: ignore[method-assign]
    reading = LocalRecovery().on_model(step, view)
    assert set(reading.refusals.values()) == {str(error)}
    assert set(reading.scalars) == set(LOCAL)
    assert explained(reading)


def test_a_loss_of_zero_has_nothing_that_could_go() -> None:
    net, x, _ = linear(6, 40)
    reading = looked_at(net, x, net(x).detach(), optimizer=sgd(net), training_examples=40)
    assert reading.refusals[quantities.RECOVERY_REMOVABLE] == "the loss is zero, negative or not finite"
    assert math.isfinite(reading.scalars[quantities.RECOVERY_PREDICTED_RATE])
    assert explained(reading)


@pytest.mark.parametrize("loss", [F.l1_loss, lambda f, y: F.huber_loss(f, y, delta=0.1), F.soft_margin_loss])
def test_an_absolute_error_is_refused_and_a_loss_that_curves_is_not(loss: Any) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    x, y = (torch.arange(60).float() * 0.7).sin().view(20, 3), torch.ones(20, 1)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    reading = LocalRecovery().on_model(*seen(net, x, y, loss, sgd, 20))
    assert explained(reading)
    if loss is F.soft_margin_loss:
        assert reading.scalars[quantities.RECOVERY_RANK_SHARE] == 3 / 4  # three inputs in a plane, and the bias
    else:
        assert set(reading.refusals) == set(LOCAL)
        assert "the loss has a slope where it has no curvature" in reading.refusals[quantities.RECOVERY_RANK_SHARE]


def test_data_that_is_not_finite_is_refused() -> None:
    net, x, y = linear(6, 40)
    x[0, 0] = math.nan
    reading = looked_at(net, x, y, optimizer=sgd(net), training_examples=40)
    assert all(
        math.isnan(reading.scalars[tag]) for tag in (quantities.RECOVERY_PREDICTED_RATE, quantities.RECOVERY_REMOVABLE)
    )
    assert explained(reading)


def test_gradient_descent_on_a_linear_model_falls_as_predicted_and_the_card_says_so() -> None:
    net, x, _ = linear(6, 40)
    y = x @ draw(6, 1, seed=9)
    optimizer, instrument = sgd(net), LocalRecovery()
    for step in range(600):
        with torch.no_grad():
            loss = float(F.mse_loss(net(x), y))
        if step % 4 == 0:
            reading = instrument.on_probe(step, probe(loss))
            shown = reading if reading.scalars else shown  # noqa: F821
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        optimizer.step()
    predicted = instrument.on_model(*seen(net, x, y, optimizer=optimizer, training_examples=40))
    rate = predicted.scalars[quantities.RECOVERY_PREDICTED_RATE]
    assert shown.scalars[quantities.RECOVERY_RATE] == pytest.approx(rate, rel=0.01)
    assert "what is left is the slowest direction" in predicted.texts[quantities.RECOVERY_VERDICT]


@pytest.mark.parametrize("wrong", [{"examples": 0}, {"tail": 0.0}, {"tail": 1.5}, {"every_n_steps": 0}])
def test_wrong_arguments_raise(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        LocalRecovery(**wrong)
