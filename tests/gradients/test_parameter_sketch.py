"""A sketch is linear, keeps distances on average and leaves the parameters alone."""

from __future__ import annotations

import pytest
import torch
from _models import Mlp
from torch import nn

from lightning_cx.gradients import ParameterSketch


def parameters_of(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.parameters() if p.requires_grad])


def moved(module: nn.Module, by: float, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))


def test_a_sketch_is_linear_in_the_parameters() -> None:
    torch.manual_seed(0)
    module = Mlp().double()
    sketch = ParameterSketch(32)
    first = sketch(module.named_parameters())
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(-2.5)
    torch.testing.assert_close(sketch(module.named_parameters()), -2.5 * first)
    assert first.shape == (32,)
    assert first.dtype is torch.float64


def test_distances_survive_on_average() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 3))
    before = parameters_of(module)
    sketches = [ParameterSketch(64, seed) for seed in range(30)]
    starts = [sketch(module.named_parameters()) for sketch in sketches]
    moved(module, 0.01)
    truth = (parameters_of(module) - before).square().sum()
    estimates = [
        (sketch(module.named_parameters()) - start).square().mean()
        for sketch, start in zip(sketches, starts, strict=True)
    ]
    assert float(torch.stack(estimates).mean() / truth) == pytest.approx(1, abs=0.1)
    assert float((torch.stack(estimates) / truth).std()) < 0.4


def test_a_step_of_float32_weights_is_seen_to_the_last_digit() -> None:
    """One part in 10^5 of the weights: a sketch in float32 would be mostly rounding."""
    torch.manual_seed(0)
    module = nn.Linear(500, 400)
    twin = nn.Linear(500, 400).double()
    sketch = ParameterSketch(16)
    before, start = [p.detach().clone() for p in module.parameters()], sketch(module.named_parameters())
    moved(module, 1e-6)
    with torch.no_grad():
        for p, now, was in zip(twin.parameters(), module.parameters(), before, strict=True):
            p.copy_(now.double() - was.double())
    torch.testing.assert_close(
        sketch(module.named_parameters()) - start, sketch(twin.named_parameters()), rtol=1e-8, atol=1e-14
    )


def test_the_same_seed_gives_the_same_directions_and_draws_no_global_numbers() -> None:
    module = nn.Linear(30, 20)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = ParameterSketch(8, seed=1)(module.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ParameterSketch(8, seed=1)(module.named_parameters()), first)
    assert not torch.equal(ParameterSketch(8, seed=2)(module.named_parameters()), first)


def test_frozen_and_empty_parameters_do_not_count_and_nothing_is_touched() -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    module.register_parameter("empty", nn.Parameter(torch.zeros(0)))
    sketch = ParameterSketch(8)
    before = sketch(module.named_parameters())
    with torch.no_grad():
        module[0].weight.add_(1)
    assert torch.equal(sketch(module.named_parameters()), before)
    assert all(p.grad is None for p in module.parameters())
    assert not before.requires_grad


def test_half_precision_and_shapes_that_change_are_sketched() -> None:
    sketch = ParameterSketch(8)
    assert sketch(nn.Linear(30, 20).bfloat16().named_parameters()).isfinite().all()
    assert sketch(nn.Linear(10, 20).named_parameters()).isfinite().all()


def test_nothing_to_sketch_raises() -> None:
    with pytest.raises(ValueError, match="count=0"):
        ParameterSketch(0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        ParameterSketch(4)(nn.Linear(2, 2).requires_grad_(False).named_parameters())
