"""Matrix products with raw parameters on either side, in any notation, and bilinear layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _models import Computing
from _rule_checks import assert_read
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients import per_example_gram
from lightning_cx.gradients.factors.products import Triples, gram_of_blocks, norms_of_blocks, slabs

few = settings(max_examples=15, deadline=None, derandomize=True)


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) + 0.1)


# x is [N, T, 5]
PRODUCTS: dict[str, Callable[[Computing, Tensor], Tensor]] = {
    "x W": lambda m, x: x @ m.w,
    "W x^T": lambda m, x: m.w.T @ x.transpose(1, 2),
    "W x^T of vectors": lambda m, x: m.w.T @ x[:, 0].T,
    "x v": lambda m, x: x @ m.v,
    "x v of vectors": lambda m, x: x[:, 0] @ m.v,
    "v x^T": lambda m, x: m.v @ x.transpose(1, 2),
    "x mv": lambda m, x: torch.mv(x[:, 0], m.v),
    "a batch of products": lambda m, x: torch.bmm(x, m.w.expand(len(x), 5, 3)),
    "a shift and a batch of products": lambda m, x: torch.baddbmm(m.b, x, m.w.expand(len(x), 5, 3), beta=0.5, alpha=2),
    "a shift and a product": lambda m, x: torch.addmm(m.b, x[:, 0], m.w, beta=3, alpha=0.5),
    "a shift of one number": lambda m, x: torch.addmm(m.v[:1], x[:, 0], m.w),
    "a shift and a product from the left": lambda m, x: torch.addmm(m.b.unsqueeze(1), m.w.T, x[:, 0].T, alpha=0.5),
    "a shift and a vector": lambda m, x: torch.addmv(m.v[:1], x[:, 0], m.v, beta=3, alpha=0.5),
    "outer": lambda m, x: torch.outer(x[:, 0, 0], m.v),
    "einsum": lambda m, x: torch.einsum("ntd,de->nte", x, m.w),
    "einsum from the left": lambda m, x: torch.einsum("de,ntd->net", m.w, x),
    "einsum over positions": lambda m, x: torch.einsum("ntd,de->ne", x, m.w),
    "einsum with heads": lambda m, x: torch.einsum("ntd,hde->nhte", x, m.h),
    "einsum with heads and back": lambda m, x: torch.einsum(
        "nhte,hde->ntd", torch.einsum("ntd,hde->nhte", x, m.h).tanh(), m.h
    ),
    "einsum for each group": lambda m, x: torch.einsum("ntgd,gde->ntge", torch.stack([x, x.sin()], 2), m.h),
    "einsum of a vector": lambda m, x: torch.einsum("ntd,d->nt", x, m.v),
    "einsum entry by entry": lambda m, x: torch.einsum("ntd,d->ntd", x, m.v),
    "einsum bilinear": lambda m, x: torch.einsum("nti,oij,ntj->nto", x, m.q, x.cos()),
    "tensordot": lambda m, x: torch.tensordot(x, m.w, 1),
    "linear with a frozen weight": lambda m, x: F.linear(x, m.frozen, m.b),
    "a frozen product of two": lambda m, x: x @ (m.w @ m.w.T) @ m.frozen.T,
    "queries shared by all": lambda m, x: (m.w.T @ x.transpose(1, 2)).softmax(2) @ x,
    "bilinear": lambda m, x: F.bilinear(x, x.sin(), m.q, m.b),
    "bilinear of hidden vectors": lambda m, x: F.bilinear(x @ m.s, (x @ m.s).tanh(), m.q),
    "a product of parameters scaled by the data": lambda m, x: x.mean((1, 2)).view(-1, 1, 1) * (m.w @ m.w.T),
}


def _model(case: str) -> Computing:
    return Computing(
        PRODUCTS[case],
        **{"w": p(5, 3), "v": p(5), "b": p(3), "h": p(2, 5, 4), "q": p(3, 5, 5), "s": p(5, 5)},
        frozen=torch.randn(3, 5),
    )


@pytest.mark.parametrize(("n", "t"), [(1, 4), (2, 1), (6, 4)])
@pytest.mark.parametrize("case", PRODUCTS)
def test_products(case: str, n: int, t: int) -> None:
    torch.manual_seed(n + t)
    assert_read(_model(case), torch.randn(n, t, 5))


@pytest.mark.parametrize("case", ["x W", "W x^T", "einsum with heads", "bilinear", "a batch of products"])
@pytest.mark.parametrize(("n", "t"), [(64, 17), (2, 257)])
def test_products_on_long_sequences(case: str, n: int, t: int) -> None:
    torch.manual_seed(n + t)
    assert_read(_model(case), torch.randn(n, t, 5))


@few
@given(
    n=st.sampled_from([1, 2, 64]),
    t=st.sampled_from([None, 1, 3]),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 20)),
    bias=st.booleans(),
)
def test_bilinear_layers_of_any_shape(n: int, t: int | None, sizes: tuple[int, int, int], bias: bool) -> None:
    torch.manual_seed(sum(sizes))
    lead = (n,) if t is None else (n, t)
    halves = Computing(lambda m, x: m.f(x[..., : sizes[0]], x[..., sizes[0] :]), f=nn.Bilinear(*sizes, bias=bias))
    assert_read(halves, torch.randn(*lead, sizes[0] + sizes[1]))


@pytest.mark.parametrize("t", [1, 4])
def test_products_of_three_factors_have_the_gram_matrix_of_their_rows(t: int) -> None:
    torch.manual_seed(0)
    use = Triples(*(torch.randn(3, t, width, dtype=torch.float64) for width in (2, 4, 5)))
    torch.testing.assert_close(use.rows(), torch.einsum("nta,ntb,ntc->nabc", use.a, use.b, use.c))
    torch.testing.assert_close(use.gram(), gram_of_blocks(slabs(use)))
    torch.testing.assert_close(use.squared_norms(), norms_of_blocks(slabs(use)))


def test_a_parameter_with_a_row_for_each_example_is_refused() -> None:
    weight = p(6, 5)
    module = Computing(lambda m, x: m.w @ x.T, w=weight)
    loss = module(torch.randn(7, 5)).pow(2).mean()
    with pytest.raises(RuntimeError, match="MmBackward0 of w"):
        per_example_gram(module, loss, 6)
    loss.backward()
    assert weight.grad is not None
