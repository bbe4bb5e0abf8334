"""Leave-one-out along the path against retraining without each example, and what it refuses."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_cx.functional import stopping
from lightning_cx.functional.stopping import GradientSketch, LeaveOneOutPath, LeaveOneOutTracker, path_leave_one_out


def regression(n: int, d: int, decay: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64) / torch.arange(1, d + 1) ** decay
    y = x @ torch.randn(d, generator=draw, dtype=torch.float64)
    return x, y + 0.5 * torch.randn(n, generator=draw, dtype=torch.float64)


def retrained(x: Tensor, y: Tensor, rate: float, steps: int, marks: list[int], shown: int) -> tuple[Tensor, Tensor]:
    """Outputs of the first examples at the marks, trained on all and trained without each of them: [T, shown] both.

    Retraining without example i by gradient descent, all i at once.
    """
    n = len(x)
    theta, without = torch.zeros_like(x[0]), torch.zeros(x.shape[1], shown, dtype=torch.float64)
    some = x[:shown]
    full, left_out = [], []
    for step in range(steps + 1):
        if step in marks:
            full.append(some @ theta)
            left_out.append((some.T * without).sum(0))
        theta = theta + rate / n * x.T @ (y - x @ theta)
        everyone = x.T @ (y[:, None] - x @ without)
        own = some.T * (y[:shown] - (some.T * without).sum(0))
        without = without + rate / n * (everyone - own)
    return torch.stack(full), torch.stack(left_out)


def spaced(steps: int, part: int) -> list[int]:
    marks = [0]
    while marks[-1] < steps:
        marks.append(min(steps, marks[-1] + max(1, marks[-1] // part)))
    return marks


def largest_rate(x: Tensor, share: float = 0.9) -> float:
    return share / float(torch.linalg.eigvalsh(x.T @ x / len(x)).max())


def times(rate: float, marks: list[int]) -> Tensor:
    return torch.tensor([0.0, *(rate * (b - a) for a, b in pairwise(marks))], dtype=torch.float64)


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(1)


def test_explicit_steps_are_retraining_without_the_example() -> None:
    x, y = regression(40, 60, 0.5)
    rate, marks = largest_rate(x), list(range(301))
    full, truth = retrained(x, y, rate, 300, marks, 40)
    curve = path_leave_one_out(x, y - full, times(rate, marks), method="explicit")
    torch.testing.assert_close(full + curve.shift, truth, rtol=0, atol=1e-10)


@pytest.mark.parametrize("part", [48, 12, 4])
def test_interval_steps_come_within_three_percent_of_retraining(part: int) -> None:
    x, y = regression(40, 60, 0.5)
    rate, marks = largest_rate(x), spaced(3000, part)
    full, truth = retrained(x, y, rate, 3000, marks, 40)
    curve = path_leave_one_out(x, y - full, times(rate, marks))
    ratio = mean_loss(full + curve.shift, y) / mean_loss(truth, y)
    assert float(ratio[-1]) == pytest.approx(1, abs=0.03)
    assert float((ratio[len(ratio) // 2 :] - 1).abs().max()) < 0.03


def test_the_end_of_a_long_run_is_ridgeless_leave_one_out() -> None:
    """The limit of the flow on more examples than weights: f_i + shift_i = y_i - r_i / (1 - h_ii)."""
    x, y = regression(60, 8, 0.3)
    rate, marks = largest_rate(x), spaced(20000, 24)
    theta = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    outputs = torch.stack([*retrained_outputs(x, y, rate, marks)])
    curve = path_leave_one_out(x, y - outputs, times(rate, marks))
    hat = (x @ torch.linalg.pinv(x)).diagonal()
    left_out = y - (y - x @ theta) / (1 - hat)
    torch.testing.assert_close(outputs[-1] + curve.shift[-1], left_out, rtol=0, atol=0.02 * float(y.std()))


def retrained_outputs(x: Tensor, y: Tensor, rate: float, marks: list[int]) -> list[Tensor]:
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    target = vectors.T @ (x.T @ y / len(x))
    return [x @ vectors @ ((1 - (1 - rate * values) ** mark) / values * target) for mark in marks]


@pytest.mark.parametrize(("n", "shown", "d", "decay"), [(640, 160, 60, 1.0), (480, 120, 100, 1.0), (800, 200, 30, 0.5)])
def test_a_probe_of_a_quarter_is_within_15_percent_where_it_covers_the_data(
    n: int, shown: int, d: int, decay: float
) -> None:
    x, y = regression(n, d, decay)
    rate, marks = largest_rate(x), spaced(1000, 12)
    full, truth = retrained(x, y, rate, 1000, marks, shown)
    curve = path_leave_one_out(x[:shown], y[:shown] - full, times(rate, marks), training_examples=n)
    ratio = mean_loss(full + curve.shift, y[:shown]) / mean_loss(truth, y[:shown])
    assert float((ratio - 1).abs().max()) < 0.15
    assert float(curve.coverage[1:].min()) > 0.7


def test_a_probe_that_covers_too_little_says_so() -> None:
    x, y = regression(320, 200, 0.5)
    rate, marks = largest_rate(x), spaced(1500, 12)
    full, _ = retrained(x, y, rate, 1500, marks, 80)
    curve = path_leave_one_out(x[:80], y[:80] - full, times(rate, marks), training_examples=320)
    assert float(curve.coverage[-1]) < 0.7


def test_examples_in_another_order_and_features_turned_round_give_the_same() -> None:
    x, y = regression(30, 12, 0.5)
    rate, marks = largest_rate(x), spaced(200, 8)
    full, _ = retrained(x, y, rate, 200, marks, 30)
    found = path_leave_one_out(x, y - full, times(rate, marks)).shift
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    other = path_leave_one_out((x @ turn)[order], (y - full)[:, order], times(rate, marks)).shift
    torch.testing.assert_close(other, found[:, order], rtol=0, atol=1e-9)


def test_what_only_the_examples_support_is_their_own() -> None:
    shares = []
    for gradients in (torch.eye(64), torch.ones(64, 3)):
        path = LeaveOneOutPath()
        for time in (0.0, 0.1):
            found = path.check(gradients, torch.ones(64) - time, torch.ones(64), torch.ones(64, 1), time)
        shares.append(found.own_share)
    assert shares[0] == pytest.approx(1, abs=1e-6)
    assert shares[1] < 1e-3


def test_a_path_goes_on_from_its_state() -> None:
    x, y = regression(30, 12, 0.5)
    rate, marks = largest_rate(x), spaced(200, 8)
    full, _ = retrained(x, y, rate, 200, marks, 30)
    sizes, signs = (y - full).abs(), (y - full).sign()
    whole, first, second = LeaveOneOutPath(60), LeaveOneOutPath(60), LeaveOneOutPath()
    for number, time in enumerate(times(rate, marks)):
        if number == 5:
            second.load_state_dict(first.state_dict())
        u = signs[number][:, None]
        shown = x * u, sizes[number], torch.ones(30), u, time
        found, other = whole.check(*shown), (first if number < 5 else second).check(*shown)
        torch.testing.assert_close(other.shift, found.shift, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"residuals": torch.ones(3)}, "of the same examples"),
        ({"gradients": torch.full((4, 2), math.nan)}, "must be finite"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Tensor], words: str) -> None:
    good = {"gradients": torch.ones(4, 2), "residuals": torch.ones(4), "curvature": torch.ones(4)}
    with pytest.raises(ValueError, match=words):
        LeaveOneOutPath().check(**{**good, **change}, directions=torch.ones(4, 1), rates=1.0)
    with pytest.raises(ValueError, match="training set of 3"):
        LeaveOneOutPath(3).check(**good, directions=torch.ones(4, 1), rates=1.0)
    with pytest.raises(ValueError, match="explicit"):
        LeaveOneOutPath(method="euler")  # type: ignore[arg-type]


def test_a_sketch_keeps_inner_products_on_average() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = {"a": torch.randn(6, 40, 50, generator=draw), "b": torch.randn(6, 7, generator=draw)}
    whole = torch.cat([values.flatten(1) for values in rows.values()], 1)
    sketch = GradientSketch({"a": 2000, "b": 7}, width=600)
    short = sketch(rows)
    assert short.shape == (6, sketch.columns) == (6, 600)
    torch.testing.assert_close(short[:, -7:], rows["b"])  # few entries are kept as they are
    assert float((short @ short.T - whole @ whole.T).abs().max()) < 4 * 2000 / math.sqrt(593)


def test_the_tracker_waits_for_rises_that_are_certain() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = [torch.rand(256, generator=draw, dtype=torch.float64) for _ in range(80)]
    flat = LeaveOneOutTracker()
    assert not any(flat.check(errors, step).stop for step, errors in enumerate(noise))
    rising = LeaveOneOutTracker(patience=3, wait=2)
    stops = [rising.check(noise[0] + abs(step - 10) / 100, step).stop for step in range(40)]
    assert stops.index(True) == 20
    assert rising.best_check == 10
    assert rising.past_best


def test_a_run_that_diverges_has_passed_its_best() -> None:
    tracker = LeaveOneOutTracker(patience=1)
    tracker.check(torch.zeros(10), 1)
    decision = tracker.check(torch.full((10,), math.nan), 5)
    assert decision.stop
    assert tracker.past_best
    assert tracker.best_check == 0


@pytest.mark.parametrize("kind", ["classes1", "binary", "values", "slopes"])
def test_examples_that_were_not_moved_keep_their_errors(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    f = torch.randn(50, 4, generator=draw, dtype=torch.float64)
    label = torch.randint(0, 4, (50,), generator=draw)
    one_hot = torch.nn.functional.one_hot(label, 4).double()
    residuals = {"classes1": one_hot - f.softmax(1), "binary": one_hot - f.sigmoid()}.get(kind, one_hot - f)
    errors = stopping.left_out_errors(f, residuals, torch.zeros(50), torch.ones(50).double(), kind)
    truth = {
        "classes1": (f.argmax(1) != label).double(),
        "binary": ((f > 0) != (one_hot > 0)).double().mean(1),
    }.get(kind, (one_hot - f).norm(dim=1))
    torch.testing.assert_close(errors, truth)


def optimizer_with_steps(make: type[torch.optim.Optimizer], **options: float) -> tuple[torch.optim.Optimizer, dict]:
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 3)
    optimizer = make(net.parameters(), lr=0.01, **options)
    for _ in range(30):
        optimizer.zero_grad()
        net(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    return optimizer, dict(net.named_parameters())


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
    ],
)
def test_preconditioners_of_torch_are_known(make: type[torch.optim.Optimizer]) -> None:
    found = stopping.preconditioner(*optimizer_with_steps(make))
    assert found.known
    assert all(0 < scale < 1e4 for scale in found.scale.values())


def test_preconditioners_that_are_not_known_say_so() -> None:
    found = stopping.preconditioner(*optimizer_with_steps(torch.optim.Rprop))
    assert not found.known
    assert "Rprop is not known" in found.words
    assert set(found.scale.values()) == {1.0}


def test_a_bias_before_a_normalisation_does_not_move() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(10):
        optimizer.zero_grad()
        net(torch.randn(32, 4)).square().mean().backward()
        optimizer.step()
    found = stopping.preconditioner(optimizer, dict(net.named_parameters()))
    assert found.scale["0.bias"] == 0
    assert found.scale["0.weight"] > 0
