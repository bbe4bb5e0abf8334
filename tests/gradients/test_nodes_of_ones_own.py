"""A node of the user's own is taught to the tap by one record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _models import naive_rows, relative_error
from torch import Tensor, nn

from lightning_cx.gradients import (
    GradientTap,
    NodeRecord,
    Products,
    UnsupportedGradientError,
    first_input,
    per_example_gram,
    register_node,
)
from lightning_cx.gradients.graph.nodes import RECORDS, Site


class ScaledLinear(torch.autograd.Function):
    """2 x W^T, with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return 2 * x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return 2 * gradient @ weight, 2 * gradient.flatten(0, -2).T @ x.flatten(0, -2)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return ScaledLinear.apply(input, self.weight)  # type: ignore[no-any-return]


def scaled_linear(site: Site) -> Any:
    split = site.split(keep=1)
    return lambda gradient: Products(2 * split(gradient), split(site.node.saved_tensors[0]))


def mean_cube(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (module(x) - y).pow(3).flatten(1).mean(1).mean()


@pytest.fixture
def taught() -> Iterator[None]:
    register_node(NodeRecord(rule=scaled_linear, moves=first_input), "ScaledLinearBackward")
    yield
    del RECORDS["ScaledLinearBackward"]


@pytest.mark.usefixtures("taught")
@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 6)], ids=["vectors", "sequences", "as many steps as examples"])
@pytest.mark.parametrize("width", [4, 6], ids=["", "as wide as the batch"])
def test_the_gram_matrix_is_that_of_the_naive_loop(shape: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, width), nn.Tanh(), Scaled(width, width), nn.Tanh(), Scaled(width, 2)).double()
    x, y = torch.randn(*shape, 3).double(), torch.randn(*shape, 2).double()
    rows = naive_rows(module, mean_cube, x, y)
    gram = per_example_gram(module, mean_cube(module, x, y), batch_size=6)
    assert relative_error(gram, rows @ rows.T) < 1e-12


def test_it_is_refused_by_name_before() -> None:
    module = Scaled(3, 2)
    with pytest.raises(UnsupportedGradientError, match=r"ScaledLinearBackward of weight .*no rule reads this node"):
        GradientTap(module.named_parameters(), 5).attach(module(torch.randn(5, 3)).pow(2).mean())


def test_a_record_of_one_s_own_may_be_given_again_but_those_of_torch_stay() -> None:
    for _ in range(2):
        register_node(NodeRecord(rule=scaled_linear), "AgainBackward")
    del RECORDS["AgainBackward"]
    with pytest.raises(ValueError, match="MmBackward0 has a record already"):
        register_node(NodeRecord(), "MmBackward0")
