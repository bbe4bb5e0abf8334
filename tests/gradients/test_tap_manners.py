"""The tap is a guest in the user's backward: bitwise the same gradients, no leak, and the user's own tricks work."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from _models import Computing, Convnet, Mlp, TinyGpt, Unread, cross_entropy, mean_square, naive_rows, relative_error
from _rule_checks import scaled_rule
from torch import Tensor, nn

from lightning_cx.gradients import (
    GradientTap,
    UnsupportedGradientError,
    per_example_gram,
    per_example_norms,
)
from lightning_cx.gradients.accumulate import Accumulator


def batch(n: int = 6) -> tuple[Mlp, Tensor, Tensor]:
    torch.manual_seed(0)
    return Mlp(), torch.randn(n, 20), torch.randint(5, (n,))


def gram_of(tap: GradientTap) -> Tensor:
    assert tap.sample is not None
    assert tap.sample.gram is not None
    return tap.sample.gram


@pytest.mark.parametrize("make", [Mlp, Convnet])
def test_gradients_on_top_of_accumulated_ones_are_bitwise_the_same(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make()
    twin = copy.deepcopy(module)
    x = torch.randn(6, 1, 4, 5) if make is Mlp else torch.randn(6, 1, 8, 8)
    y = torch.randint(5, (6,))
    tap = GradientTap(module.named_parameters(), 6, projections=3, loss_scale=0.5)
    grams = []
    for _ in range(2):
        (cross_entropy(twin, x, y) / 2).backward()
        loss = cross_entropy(module, x, y) / 2
        with tap(loss):
            loss.backward()
        grams.append(gram_of(tap))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(module.parameters(), twin.parameters(), strict=True))
    assert torch.equal(*grams)


def test_create_graph_and_retain_graph_go_through() -> None:
    module, x, y = batch()
    twin = copy.deepcopy(module)

    def second_order(module: nn.Module, watch: bool) -> list[Tensor]:
        loss = cross_entropy(module, x, y)
        tap = GradientTap(module.named_parameters(), 6)
        if watch:
            tap.attach(loss)
        first = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
        if watch:
            tap.finish()
            assert not gram_of(tap).requires_grad
        return list(torch.autograd.grad(sum((g * g).sum() for g in first), list(module.parameters())))

    assert all(torch.equal(a, b) for a, b in zip(second_order(module, True), second_order(twin, False), strict=True))


def test_hooks_of_the_user_on_tensors_keep_their_say() -> None:
    module, x, y = batch()

    def clipped(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        hidden = nn.Sequential(*list(module)[:3])(x)
        if hidden.requires_grad:
            hidden.register_hook(lambda g: g * 2)
        return nn.functional.cross_entropy(nn.Sequential(*list(module)[3:])(hidden), y)

    truth = naive_rows(module, clipped, x, y)
    loss = clipped(module, x, y)
    tap = GradientTap(module.named_parameters(), 6)
    with tap(loss):
        loss.backward()
    assert relative_error(gram_of(tap), truth @ truth.T) < 1e-5


def test_a_hook_that_changes_a_parameters_gradient_is_named_and_has_its_way() -> None:
    module, x, y = batch()
    handle = module[1].weight.register_hook(lambda g: g * 0)
    loss = cross_entropy(module, x, y)
    tap = GradientTap(module.named_parameters(), 6)
    with pytest.raises(UnsupportedGradientError, match=r"1\.weight .*\(a hook on it may change"), tap(loss):
        loss.backward()
    assert not module[1].weight.grad.any()
    handle.remove()


def test_hooks_that_only_look_do_not_matter() -> None:
    module, x, y = batch()
    seen: list[Any] = []
    module[1].weight.register_hook(lambda g: seen.append(g.norm()))
    module[5].bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.norm()))
    loss = cross_entropy(module, x, y)
    tap = GradientTap(module.named_parameters(), 6)
    with tap(loss):
        loss.backward()
    assert len(seen) == 2
    assert tap.sample is not None


class Mark:
    """Lives as long as the node that it is put on."""


@pytest.mark.parametrize("how", ["finish", "detach", "refused", "failed", "abandoned", "never run"])
def test_the_graph_goes_with_the_loss_without_the_garbage_collector(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, y = batch()
    tap = GradientTap(module.named_parameters(), 6)
    model: nn.Module = nn.Sequential(module, Unread()) if how == "refused" else module
    if how == "refused":
        tap = GradientTap(model.named_parameters(), 6)
    if how == "failed":
        monkeypatch.setattr(Accumulator, "take", lambda *_: 1 / 0)
    gc.collect()
    gc.disable()
    try:
        hidden = model(x) * 1.0
        hidden.grad_fn.metadata["mark"] = mark = Mark()  # nodes take no weak reference themselves
        loss = nn.functional.cross_entropy(hidden, y)
        alive = weakref.ref(mark), weakref.ref(hidden)
        if how == "refused":
            with pytest.raises(UnsupportedGradientError):
                tap.attach(loss)
        else:
            tap.attach(loss)
        if how != "never run":
            loss.backward()
        if how == "finish":
            tap.finish()
        elif how == "detach":
            tap.detach()
        elif how == "failed":
            with pytest.raises(UnsupportedGradientError, match="ZeroDivisionError"):
                tap.finish()
        else:
            del tap
        del loss, hidden, mark
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


def test_attaching_again_lets_the_first_loss_go() -> None:
    module, x, y = batch()
    tap = GradientTap(module.named_parameters(), 6)
    abandoned = cross_entropy(module, x, y)
    tap.attach(abandoned)
    loss = cross_entropy(module, x.flip(0), y.flip(0))
    with tap(loss):
        abandoned.backward()  # nobody listens any more, but its gradients are not of this loss either
        loss.backward()
    truth = naive_rows(module, cross_entropy, x.flip(0), y.flip(0))
    assert relative_error(gram_of(tap), truth @ truth.T) < 1e-5


def test_one_tap_serves_many_steps_of_training() -> None:
    module, x, y = batch()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    tap = GradientTap(module.named_parameters(), 6)
    for _ in range(5):
        truth = naive_rows(module, cross_entropy, x, y)
        optimizer.zero_grad()
        loss = cross_entropy(module, x, y)
        with tap(loss):
            loss.backward()
        assert relative_error(gram_of(tap), truth @ truth.T) < 1e-5
        optimizer.step()


def test_taps_in_threads_do_not_meet() -> None:
    def read(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        module = Mlp()
        x, y = torch.randn(6, 20, generator=generator), torch.randint(5, (6,), generator=generator)
        truth = naive_rows(module, cross_entropy, x, y)
        return relative_error(per_example_gram(module, cross_entropy(module, x, y)), truth @ truth.T)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(read, range(12))) < 1e-5


def test_two_taps_on_one_loss_read_the_same() -> None:
    module, x, y = batch()
    loss = cross_entropy(module, x, y)
    one, other = GradientTap(module.named_parameters(), 6), GradientTap(module[1].named_parameters(), 6, per_layer=True)
    with one(loss), other(loss):
        loss.backward()
    assert one.sample is not None
    assert other.sample is not None
    assert other.sample.gram is not None
    assert (one.sample.gram.diagonal() > other.sample.gram.diagonal()).all()


class Inner(torch.autograd.Function):
    """Runs a backward of its own, as reversible networks do: its parameters are not among its inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x).detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(gradient)
        return x.grad, None


def test_gradients_that_reach_a_parameter_behind_the_graphs_back_are_noticed() -> None:
    module, x, y = batch()
    hidden = nn.Linear(32, 32)
    loss = nn.functional.cross_entropy(module[5](Inner.apply(module[1](x), hidden)), y)
    tap = GradientTap([*module[1].named_parameters(), *hidden.named_parameters("hidden")], 6)
    with pytest.raises(UnsupportedGradientError, match=r"hidden\.(weight|bias) came from outside"), tap(loss):
        loss.backward()
    assert hidden.weight.grad is not None


def test_a_dropped_use_is_caught_in_a_small_parameter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = Computing(lambda m, x: (m.f(x) * 100 + m.p) * 3 + m.p, f=nn.Linear(20, 5), p=nn.Parameter(torch.randn(5)))
    x, taken = torch.randn(6, 20), Accumulator.take
    dropped: list[str] = []

    def lose_one(self: Accumulator, operand: Any, use: Any, gradient: Tensor | None) -> None:
        if operand.name == "p" and not dropped:
            dropped.append("p")
            use = gradient = None
        taken(self, operand, use, gradient)

    monkeypatch.setattr(Accumulator, "take", lose_one)
    with pytest.raises(UnsupportedGradientError, match="p has a use that the graph does not show"):
        per_example_gram(module, mean_square(module, x, x))


@pytest.mark.parametrize("name", ["AddmmBackward0", "NativeLayerNormBackward0", "EmbeddingBackward0", "MmBackward0"])
def test_the_sum_check_catches_a_rule_that_is_off_by_a_tenth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, ids = TinyGpt(), torch.randint(11, (5, 8))
    scaled_rule(monkeypatch, name, 1.1)
    loss = nn.functional.cross_entropy(module(ids).flatten(0, 1), ids.flatten())
    with pytest.raises(UnsupportedGradientError, match="the sum check reads"):
        per_example_gram(module, loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_read_without_a_false_alarm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for seed in range(5):
        module = TinyGpt()
        ids = torch.randint(11, (5, 8), generator=torch.Generator().manual_seed(seed))

        def loss_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(module(x).flatten(0, 1).double(), y.flatten())

        truth = naive_rows(module, loss_of, ids, ids)
        gram = per_example_gram(module.to(dtype), loss_of(module, ids, ids))
        assert relative_error(gram, truth @ truth.T) < 0.05
        assert gram.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_read_without_a_false_alarm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for make, x in ((TinyGpt, torch.randint(11, (5, 8))), (Convnet, torch.randn(5, 1, 12, 12))):
        module = make()
        y = x if make is TinyGpt else torch.randint(5, (5,))

        def loss_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            out = module(x)
            return nn.functional.cross_entropy(out.flatten(0, -2).to(next(module.parameters()).dtype), y.flatten())

        truth = naive_rows(module, loss_of, x, y)
        with torch.autocast("cpu", dtype):
            loss = loss_of(module, x, y)
        tap = GradientTap(module.named_parameters(), 5, projections=2)
        with tap(loss):
            loss.backward()
        assert relative_error(gram_of(tap), truth @ truth.T) < 0.05


@pytest.mark.parametrize("scale", [2.0**16, 2.0**127, 2.0**-120])
def test_a_scaled_loss_that_overflows_harms_nobody(scale: float) -> None:
    module, x, y = batch()
    loss = cross_entropy(module, x, y) * scale * scale if scale > 2**100 else cross_entropy(module, x, y) * scale
    tap = GradientTap(module.named_parameters(), 6, loss_scale=scale)
    with tap(loss):
        loss.backward()
    if scale == 2.0**16:
        truth = naive_rows(module, cross_entropy, x, y)
        assert relative_error(gram_of(tap), truth @ truth.T) < 1e-5


def test_a_default_dtype_or_device_of_the_user_does_not_matter() -> None:
    module, x, y = batch()
    expected = GradientTap(module.named_parameters(), 6, projections=4)
    loss = cross_entropy(module, x, y)
    with expected(loss):
        loss.backward()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        loss = cross_entropy(module, x, y)
        tap = GradientTap(module.named_parameters(), 6, projections=4)
        with tap(loss):
            loss.backward()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(gram_of(tap), gram_of(expected))


def test_a_size_that_scales_the_data_is_no_penalty() -> None:
    module, x, y = batch()
    sized = cross_entropy(module, x, y) * module[1].weight.pow(2).sum()
    with pytest.raises(UnsupportedGradientError, match=r"MulBackward0 of 1\.weight"):
        per_example_gram(module, sized, 6)
    truth = naive_rows(module, cross_entropy, x, y)
    norm = module[1].weight.pow(2).sum().sqrt()
    penalised = cross_entropy(module, x, y) + 0.1 * (norm * norm + norm)
    assert relative_error(per_example_gram(module, penalised, 6), truth @ truth.T) < 1e-5


def test_a_use_that_is_missed_is_caught_beside_a_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, y = batch()
    scaled_rule(monkeypatch, "AddmmBackward0", 0.5)
    loss = cross_entropy(module, x, y) + module[1].weight.norm()
    with pytest.raises(UnsupportedGradientError, match="the sum check reads"):
        per_example_gram(module, loss, 6)


def test_norms_of_undefined_gradients_are_zero() -> None:
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> None:
            return None

    module, x, _ = batch()
    loss = Nothing.apply(module(x)).mean()
    assert torch.equal(per_example_norms(module, loss, 6), torch.zeros(6, dtype=torch.float64))


MEMORY = """
import resource, sys, torch
from lightning_cx.gradients import GradientTap
torch.set_num_threads(1)
module, x = torch.nn.Linear(2048, 2048), torch.randn(64, 2048)
taps = sys.argv[1] == "tap"
for _ in range(2):
    loss = module(x).pow(2).mean()
    tap = GradientTap(module.named_parameters(), 64, projections=8)
    if taps:
        tap.attach(loss)
    loss.backward()
    if taps:
        tap.finish()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_wide_layer_needs_no_matrix_of_all_gradients() -> None:
    def peak(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", MEMORY, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    all_gradients = 64 * 2048 * 2048 * 4 // 1024
    assert peak("tap") - peak("plain") < all_gradients // 32


def test_what_waits_for_the_end_of_the_backward_is_read_before_anybody_changes_it() -> None:
    module, x, y = batch()
    truth = naive_rows(module, cross_entropy, x, y)
    tap = GradientTap(module.named_parameters(), 6)
    loss = cross_entropy(module, x, y)
    with tap(loss):
        loss.backward()
        with torch.no_grad():
            x.zero_()  # the first layer's input
            for parameter in module.parameters():
                parameter.zero_()
    assert relative_error(gram_of(tap), truth @ truth.T) < 1e-5


def test_a_graph_that_is_built_alike_is_read_alike_and_one_that_is_not_is_read_anew() -> None:
    module, x, y = batch()
    tap = GradientTap(module.named_parameters(), 6)

    def read(loss_of: Callable[..., Tensor]) -> None:
        module.zero_grad()
        loss = loss_of(module, x, y)
        with tap(loss):
            loss.backward()
        rows = naive_rows(module, loss_of, x, y)
        assert relative_error(gram_of(tap), rows @ rows.T) < 1e-5

    def squares(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return module(x).pow(2).mean(1).mean()

    def of_less(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return module(x).pow(2).sum(1).mean()

    def cubes(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return module(x).pow(3).mean(1).mean()

    def with_a_penalty(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return squares(module, x, y) + 0 * module[1].weight.pow(2).sum()

    for loss_of in (cross_entropy, cross_entropy, squares, squares, of_less, cubes, cubes, with_a_penalty, squares):
        read(loss_of)
    weighted = nn.functional.cross_entropy(module(x), y, weight=torch.tensor([1.0, 2, 3, 4, 5]))
    statuses = []
    for loss in (cross_entropy(module, x, y), weighted, cross_entropy(module, x, y)):
        with tap(loss):
            loss.backward()
        assert tap.sample is not None
        statuses.append(tap.sample.status)
    assert statuses == ["exact", "contribution", "exact"]
