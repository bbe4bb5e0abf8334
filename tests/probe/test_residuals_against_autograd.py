"""Residuals do not depend on how the probe is cut into chunks, nor on how the loss adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients import calibrate
from lightning_cx.probe import ProbeReading, ProbeSet
from lightning_cx.probe.reading import MAX_OUTPUTS, Columns, fold

torch.manual_seed(0)
X, Y = torch.randn(150, 6).double(), torch.arange(150) % 4


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)).double()


def read(module: nn.Module, loss_of: Callable[[Any], Tensor], batch: Any, sizes: list[int]) -> ProbeReading:
    probe = ProbeSet(sum(sizes))
    start = 0
    for size in sizes:
        probe.keep([t[start : start + size] for t in batch], size)
        start += size
    return probe.read(module, loss_of)


CHUNKS = [[150], [64, 64, 22], [149, 1], [1, 149], [2, 3, 145], [50] * 3, [1] * 150]


@pytest.mark.parametrize("sizes", CHUNKS, ids=lambda sizes: "+".join(map(str, sizes[:4])))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_residuals_equal_autograd_one_example_at_a_time(reduction: str, sizes: list[int]) -> None:
    module = net().train()
    reading = read(module, lambda b: F.cross_entropy(module(b[0]), b[1], reduction=reduction), (X, Y), sizes)
    assert not reading.coupled
    module.eval()
    for i in (0, 70, 149):
        f = module(X[i : i + 1]).detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(f, Y[i : i + 1]), f)
        torch.testing.assert_close(reading.residuals[i], -slope[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(reading.outputs[i], f.detach()[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scalar", [True, False])
def test_a_loss_fn_may_return_a_scalar_or_one_loss_for_each_example(scalar: bool) -> None:
    module = net()
    reduction = "mean" if scalar else "none"
    probe = ProbeSet(150, loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction=reduction))
    probe.keep([X[:100], Y[:100]], 100)
    probe.keep([X[100:], Y[100:]], 50)
    reading = probe.read(module, None)
    expected = F.one_hot(Y, 4) - reading.outputs.softmax(1)
    torch.testing.assert_close(reading.residuals, expected, rtol=1e-12, atol=1e-14)


def test_class_weights_couple_the_examples_also_if_one_has_the_average_weight() -> None:
    module, weight = net(), torch.tensor([1.0, 0.2, 3.0, 0.2]).double()
    y = torch.arange(150) % 4
    assert read(module, lambda b: F.cross_entropy(module(b[0]), b[1], weight), (X, y), [150]).coupled
    one = torch.ones(150, dtype=torch.long)
    assert not read(module, lambda b: F.cross_entropy(module(b[0]), b[1], weight), (X, one), [150]).coupled


def test_the_probe_compares_its_own_batches_since_a_tap_on_four_examples_of_one_class_sees_no_class_weights() -> None:
    module, weight = nn.Linear(6, 4).double(), torch.tensor([1.0, 0.2, 3.0, 0.2]).double()
    y = torch.cat([torch.ones(4, dtype=torch.long), Y[4:]])

    def loss_of(batch: Any) -> Tensor:
        return F.cross_entropy(module(batch[0]), batch[1], weight)

    tapped = calibrate(dict(module.named_parameters()), lambda i, j: loss_of((X[i:j], y[i:j])), 150)
    assert not tapped.coupled
    assert read(module, loss_of, (X, y), [150]).coupled


def test_in_batch_losses_are_called_coupled() -> None:
    module = net()

    def contrastive(batch: Any) -> Tensor:
        z = F.normalize(module(batch[0]), dim=1)
        return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)).roll(1))

    reading = read(module, contrastive, (X,), [75, 75])
    assert reading.coupled
    assert "examples coupled" in str(reading)

    def needs_company(batch: Any) -> Tensor:
        assert len(batch[0]) > 1
        return F.cross_entropy(module(batch[0]), batch[1])

    assert not read(module, needs_company, (X, Y), [75, 75]).coupled  # an exception is no evidence


def test_one_example_that_is_already_right_does_not_hide_that_the_loss_is_a_sum() -> None:
    module = net()

    def hinge(batch: Any) -> Tensor:
        scores = module(batch[0])[:, 0]
        return (1 - scores * batch[1]).relu().sum()

    signs = torch.where(net().eval()(X)[:, 0].detach() > 0, 1.0, -1.0).double()
    signs = torch.cat([signs[:1] * 1e6, -signs[1:]])
    reading = read(module, hinge, (X, signs), [150])
    assert not reading.coupled
    torch.testing.assert_close(reading.residuals[1:, 0], signs[1:])


def test_sequences_padded_to_different_lengths_read_as_if_padded_to_one() -> None:
    module = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 9)).double()
    torch.manual_seed(0)
    ids = torch.randint(1, 9, (140, 12))

    def loss_of(batch: Any, channels_first: bool = False) -> Tensor:
        scores = module(batch[0])
        losses = F.cross_entropy(scores.transpose(1, 2), batch[0], reduction="none")
        return losses.sum(1).mean()

    whole = ProbeSet(140)
    ids[:70, 7:] = 0
    whole.keep([ids], 140)
    cut = ProbeSet(140)
    cut.keep([ids[:70, :7]], 70)
    cut.keep([ids[70:]], 70)
    one, other = whole.read(module, loss_of), cut.read(module, loss_of)
    assert one.residuals.shape == other.residuals.shape == (140, 108)
    torch.testing.assert_close(one.residuals[:70, :63], other.residuals[:70, :63])
    torch.testing.assert_close(one.residuals[70:], other.residuals[70:])
    assert not other.residuals[:70, 63:].any()


@pytest.mark.parametrize("shape", [(7, 9), (9, 7)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_column_is_one_coordinate_whichever_axis_is_padded(shape: tuple[int, int], axis: int) -> None:
    full = torch.randn(6, *shape).double()
    short = full.narrow(axis + 1, 0, 4)[:3]
    padded = full.clone()
    padded[:3].narrow(axis + 1, 4, shape[axis] - 4).zero_()
    columns = Columns()
    columns.add([short, full[:3, 0]])
    columns.add([full[3:], full[3:, 0]])
    assert torch.equal(columns.rows()[:, :63], padded.flatten(1))
    assert torch.equal(columns.rows()[:, 63:], full[:, 0])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_wide_chunk_folds_like_the_narrow_one_beside_it(axis: int) -> None:
    wide = torch.randn(4, 40, 40).double()
    narrow = wide[:2].narrow(axis + 1, 0, 20)  # 800 columns, under the limit alone
    columns = Columns()
    columns.add([narrow], scale=3)
    columns.add([wide[2:]], scale=3)
    padded = wide.clone()
    padded[:2].narrow(axis + 1, 20, 20).zero_()
    torch.testing.assert_close(columns.rows(), 3 * fold([padded]))


@pytest.mark.parametrize("shape", [(5000,), (70, 70), (3, 40, 40)])
def test_folding_keeps_energies_and_inner_products(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, *shape).double()
    folded, flat = fold([rows]), rows.flatten(1)
    assert folded.shape == (300, MAX_OUTPUTS)
    ratio = folded.square().sum(1) / flat.square().sum(1)
    sd = (2 / MAX_OUTPUTS) ** 0.5
    assert abs(float(ratio.mean()) - 1) < 5 * sd / 300**0.5  # rows are independent draws: 5 standard errors
    assert 0.85 * sd < float(ratio.std()) < 1.15 * sd
    cosine = (folded[:-1] * folded[1:]).sum(1) / (flat[:-1].norm(dim=1) * flat[1:].norm(dim=1))
    truth = (flat[:-1] * flat[1:]).sum(1) / (flat[:-1].norm(dim=1) * flat[1:].norm(dim=1))
    assert float((cosine - truth).abs().max()) < 5 / MAX_OUTPUTS**0.5


def test_folding_has_no_favourite_places_or_signs() -> None:
    ones = torch.eye(4096).double().view(4096, 64, 64)
    folded = fold([ones])
    counts = folded.abs().sum(0)
    assert float(counts.max()) <= 16  # 4 on average; Poisson leaves 1e-6 beyond 16
    assert abs(float(folded.sum())) < 5 * 64
    other = fold([ones[:, :0], ones])  # the second tensor has places of its own
    assert float((folded * other).sum(1).ne(0).double().mean()) < 0.02


def test_outputs_that_change_in_number_are_refused() -> None:
    columns = Columns()
    columns.add([torch.ones(2, 3)])
    with pytest.raises(ValueError, match="1 output tensors on one part of the probe and 2 on another"):
        columns.add([torch.ones(2, 3), torch.ones(2, 3)])


def test_float32_agrees_with_float64() -> None:
    double = net()
    reading = read(double, lambda b: F.cross_entropy(double(b[0]), b[1]), (X, Y), [150])
    single = net().float()
    other = read(single, lambda b: F.cross_entropy(single(b[0]), b[1]), (X.float(), Y), [150])
    assert other.residuals.dtype == torch.float64
    torch.testing.assert_close(reading.residuals, other.residuals, rtol=1e-4, atol=1e-6)


def test_a_loss_of_another_shape_or_without_graph_is_refused() -> None:
    module = net()
    with pytest.raises(ValueError, match=r"the loss has shape \(150, 4\); a scalar or one loss for each of 150"):
        read(module, lambda b: (module(b[0]) - 1).square(), (X, Y), [150])
    with pytest.raises(ValueError, match="no autograd graph"):
        read(module, lambda b: module(b[0]).detach().mean(), (X, Y), [150])
