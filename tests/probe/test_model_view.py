"""Passes of an instrument's own over the probe: right, and without a trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from _models import Unread
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.utils.data import TensorDataset, default_collate

from lightning_cx.gradients import UnsupportedGradientError, per_example_gram
from lightning_cx.probe import ProbePasses, ProbeSet

X = torch.randn(150, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(150) % 3
LOSSES = {
    "mean": lambda f, y: F.cross_entropy(f, y),
    "sum": lambda f, y: F.cross_entropy(f, y, reduction="sum"),
    "none": lambda f, y: F.cross_entropy(f, y, reduction="none"),
}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    parts = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)
    return nn.Sequential(*parts).double()


def view_of(module: nn.Module, loss: Any = LOSSES["mean"], size: int = 40) -> ProbePasses:
    def loss_of(batch: Any) -> Tensor:
        return loss(module(batch[0]), batch[1])

    per_example = loss is LOSSES["none"]
    probe = ProbeSet(128, loss_fn=(lambda m, b: loss_of(b)) if per_example else None)
    dataset = TensorDataset(X.double(), Y)
    probe.choose(len(dataset))
    while not probe.complete:
        probe.draw(dataset, default_collate, size)
    view = probe.passes(module, loss_of)
    view.indices = probe.indices  # type: ignore[attr-defined]
    return view


def first(view: ProbePasses, n: int) -> tuple[Tensor, Tensor]:
    indices = view.indices[:n]  # type: ignore[attr-defined]
    return X[indices].double(), Y[indices]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_means_over_the_examples_of_each_chunk(loss):
    module = network()
    view = view_of(module, LOSSES[loss])
    module.eval()
    x, y = first(view, 128)
    own = F.cross_entropy(module(x), y, reduction="none").detach()
    assert view.examples == 128
    assert view.loss() == pytest.approx(float(own.mean()), rel=1e-12)
    assert view.loss(50) == pytest.approx(float(own[:50].mean()), rel=1e-12)
    expected = [[float(part.mean()), len(part)] for part in own.split(40)]
    torch.testing.assert_close(view.losses(), torch.tensor(expected, dtype=torch.float64))


def test_other_weights_are_seen_inside_the_block_and_the_own_ones_come_back_bit_for_bit():
    module = network()
    view = view_of(module)
    before, other = copy.deepcopy(module.state_dict()), network()
    nn.init.normal_(other[0].weight)
    places = [p.data_ptr() for p in module.parameters()]
    with view.at({name: p.detach() for name, p in other.named_parameters()}):
        there = view.loss()
    assert there == pytest.approx(view_of(other).loss(), rel=1e-12) != view.loss()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [p.data_ptr() for p in module.parameters()] == places


@pytest.mark.parametrize(("other", "message"), [({"x": X}, "no parameter 'x'"), ({"0.weight": X}, "has shape")])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_changed(other, message):
    module = network()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message), view_of(module).at({"0.bias": torch.zeros(8), **other}):
        pass
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_jacobian_and_the_loss_as_a_function_of_the_outputs_are_those_of_autograd(loss):
    module = network()
    view = view_of(module, LOSSES[loss])
    found = view.jacobian(50)  # more than one chunk
    module.eval()
    x, y = first(view, 50)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    by_name = jacrev(lambda p: functional_call(module, p, (x,)))(parameters)
    rows = torch.cat([part.reshape(150, -1) for part in by_name.values()], 1)
    outputs = module(x).detach()
    torch.testing.assert_close(found.gram, rows @ rows.T)
    torch.testing.assert_close(found.outputs, outputs)
    torch.testing.assert_close(found.residuals, F.one_hot(y, 3) - outputs.softmax(1))
    own = torch.stack(
        [jacrev(jacrev(lambda f, t=t: F.cross_entropy(f, t)))(f) for f, t in zip(outputs, y, strict=True)]
    )
    torch.testing.assert_close(found.hessian, own)
    assert found.parameters == rows.shape[1]
    assert "50 examples x 3 outputs" in str(found)


@pytest.mark.parametrize("loss", LOSSES)
def test_hessian_products_are_those_of_the_whole_hessian(loss):
    module = network()
    view = view_of(module, LOSSES[loss])
    module.eval()
    x, y = first(view, 50)
    start = torch.cat([p.detach().flatten() for p in module.parameters()])
    sizes = [p.numel() for p in module.parameters()]

    def whole(vector: Tensor) -> Tensor:
        parts = zip(module.named_parameters(), vector.split(sizes), strict=True)
        return F.cross_entropy(functional_call(module, {n: v.view_as(p) for (n, p), v in parts}, (x,)), y)

    expected, slope = jacrev(jacrev(whole))(start), jacrev(whole)(start)
    module.train()
    direction = torch.linspace(-1, 1, len(start)).double()
    with view.hessian(50) as products:
        assert products.size == len(start)
        torch.testing.assert_close(products(direction), expected @ direction)
        torch.testing.assert_close(products.gradient, slope)


def test_activations_come_by_name_in_order_of_use_for_all_examples():
    module = network()
    view = view_of(module)
    found = view.activations(100)
    module.eval()
    x, _ = first(view, 100)
    assert list(found) == ["0", "1", "2", "3", "4"]
    torch.testing.assert_close(found["3"], module[:4](x).detach().float())
    assert list(view.activations(10, lambda name: name == "3")) == ["3"]


def test_gradients_come_with_projections_whatever_the_chunks():
    module = network()
    view, whole = view_of(module), view_of(module, size=128)
    one, other = view.gradients(100, projections=8), whole.gradients(100, projections=8)
    torch.testing.assert_close(one.projections, other.projections)
    module.eval()
    x, y = first(view, 100)
    gram = per_example_gram(module, F.cross_entropy(module(x), y, reduction="none"))
    torch.testing.assert_close(one.gram, gram)


def everything(view: ProbePasses) -> None:
    view.loss()
    view.gradients(50)
    view.jacobian(20)
    view.activations(20)
    with view.hessian(20) as products:
        products(torch.ones(products.size))
    with view.at({name: 2 * p for name, p in view.parameters().items()}):
        view.loss()


def test_no_pass_leaves_a_trace():
    module = network().train()
    view = view_of(module)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    before, stream = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    versions = [p._version for p in module.parameters()]
    everything(view)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert [p._version for p in module.parameters()] == versions
    assert all(part.training for part in module.modules())
    assert all(bool((p.grad == 1).all()) for p in module.parameters())
    assert not nn.modules.module._global_forward_hooks


def test_too_many_rows_are_refused_with_what_to_do():
    module = nn.Linear(5, 3)
    wide = nn.Linear(5, 3000)
    with pytest.raises(ValueError, match=r"3000 outputs has over 2048 rows"):
        view_of(wide.double()).jacobian(10)
    view = view_of(module.double())
    view.chunks = [*view.chunks] * 8
    with pytest.raises(ValueError, match=r"3000 rows, over 2048: take 682 examples or fewer"):
        view.jacobian(1000)


def test_losses_in_which_examples_act_on_each_other_have_no_jacobian():
    module = network()
    view = view_of(module, lambda f, y: F.cross_entropy(f - f.mean(0), y))
    with pytest.raises(ValueError, match="examples affect each other"):
        view.jacobian(10)


def test_what_the_tap_cannot_read_is_refused_by_name():
    module = nn.Sequential(nn.Linear(5, 3), Unread()).double()
    with pytest.raises(UnsupportedGradientError, match="UnreadFunctionBackward"):
        view_of(module).jacobian(10)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        return slope * 2


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return OnceOnly.apply(x)


def test_what_has_no_second_derivative_is_refused_with_the_reason():
    module = nn.Sequential(nn.Linear(5, 3), Doubling()).double()
    with (
        pytest.raises(UnsupportedGradientError, match="differentiable only once"),
        view_of(module).hessian(10) as products,
    ):
        products(torch.ones(products.size))


def test_parameters_that_the_loss_does_not_reach_have_no_curvature():
    module = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3)).double()
    view = view_of(module)
    view.loss_of = lambda batch: F.cross_entropy(module[0](batch[0]), batch[1])
    with view.hessian(10) as products:
        product = products(torch.ones(products.size))
    assert bool((product[18:] == 0).all())
    assert bool((product[:18] != 0).any())


def test_recurrent_nets_and_attention_have_second_derivatives_here():
    torch.manual_seed(0)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(1, 4, batch_first=True)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.rnn(x[:, :, None])[0]
            return self.head(self.attention(hidden, hidden, hidden, need_weights=False)[0].mean(1))

    module = Reader().double()
    view = view_of(module)
    with view.hessian(10) as products:
        one, other = torch.randn(2, products.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert float(products(one) @ other) == pytest.approx(float(products(other) @ one), rel=1e-8)
        assert float(products(one).norm()) > 0


@pytest.mark.parametrize("examples", [8, 21, 24])
def test_layers_as_wide_as_there_are_rows_and_transformers_have_a_jacobian(examples):
    torch.manual_seed(0)

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(1, 24)
            self.layer = nn.TransformerEncoderLayer(24, 2, 24, batch_first=True)
            self.head = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.up(x[:, :, None])).mean(1))

    module = Words().double()
    found = view_of(module).jacobian(examples)
    module.eval()
    x, _ = first(view_of(module), examples)
    outputs = module(x).flatten()
    slopes = (torch.autograd.grad(output, list(module.parameters()), retain_graph=True) for output in outputs)
    rows = torch.stack([torch.cat([part.flatten() for part in slope]) for slope in slopes])
    torch.testing.assert_close(found.gram, rows @ rows.T)


def test_a_view_says_where_the_training_loss_is_a_sum():
    assert {name: bool(view_of(network(), loss).sums) for name, loss in LOSSES.items()} == {
        "mean": False,
        "sum": True,
        "none": False,
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_read_of_joined_batches_does_not_depend_on_their_size_down_to_one(loss: str) -> None:
    """One example is its own mean and its own sum: alone it does not tell how several of them add up."""
    module = network()
    one, many = (view_of(module, LOSSES[loss], size) for size in (1, 40))
    of_one, of_many = one.jacobian(12), many.jacobian(12)
    torch.testing.assert_close(of_one.hessian, of_many.hessian)
    torch.testing.assert_close(of_one.residuals, of_many.residuals)
    torch.testing.assert_close(of_one.gram, of_many.gram)
    torch.testing.assert_close(one.gradients(8).gram, many.gradients(8).gram)
    assert one.sums == many.sums
    assert one.loss(12) == pytest.approx(many.loss(12))
