"""What every rule of the tap is held to: the float64 loop, in single precision too, and an untouched backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import LossOf, naive_rows
from torch import Tensor, nn

from lightning_cx.gradients import GradientTap
from lightning_cx.gradients.graph.nodes import RECORDS, Capture, Joint, Site
from lightning_cx.gradients.projections import Directions

Rule = Callable[[Site], Capture]


def replace_rule(monkeypatch: pytest.MonkeyPatch, name: str, rule: Rule) -> None:
    """Put another contraction rule into the record of a node, for one test."""
    monkeypatch.setitem(RECORDS, name, replace(RECORDS[name], rule=rule))


def scaled_rule(monkeypatch: pytest.MonkeyPatch, name: str, factor: float) -> None:
    """Make the rule of a node wrong by a factor, for one test."""
    honest = RECORDS[name].rule
    assert honest is not None

    def rule(site: Site) -> Capture:
        capture = honest(site)
        assert not isinstance(capture, Joint)
        return lambda gradient: capture(gradient * factor)

    replace_rule(monkeypatch, name, rule)


def cubes(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Neither even nor linear, so that no gradient vanishes by symmetry."""
    out = module(x)
    out = out.flatten(1) if out.dim() > 1 else out.unsqueeze(1)
    return (out.pow(3) + out).mean(1).mean()


def assert_read(module: nn.Module, x: Tensor, loss_of: LossOf = cubes, y: Tensor | None = None, **options: Any) -> None:
    """Assert that Gram matrix, norms and projections are those of the float64 loop, and `.grad` what it was."""
    y = torch.zeros(len(x)) if y is None else y
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        fresh = copy.deepcopy(module).to(dtype)
        inputs, targets = (t.to(dtype) if t.is_floating_point() else t for t in (x, y))
        rows = naive_rows(fresh, loss_of, inputs, targets)
        _assert_rows(fresh, inputs, targets, loss_of, rows, tolerance, options)


def _assert_rows(
    module: nn.Module, x: Tensor, y: Tensor, loss_of: LossOf, rows: Tensor, tolerance: float, options: dict[str, Any]
) -> None:
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    loss = loss_of(module, x, y)
    plain = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    norms = GradientTap(parameters.items(), len(x), gram=False, **options)
    with norms(loss):
        loss.backward(retain_graph=True)
    for p in parameters.values():
        p.grad = None
    tap = GradientTap(parameters.items(), len(x), projections=3, **options)
    gram = GradientTap(parameters.items(), len(x), **options)
    gram.attach(loss)
    with tap(loss):
        loss.backward()  # frees the graph as it goes
    gram.finish()
    for p, g in zip(parameters.values(), plain, strict=True):
        assert (p.grad is None) == (g is None)
        assert g is None or torch.equal(p.grad, g)  # type: ignore[arg-type]
    assert tap.sample is not None
    assert norms.sample is not None
    assert gram.sample is not None
    assert relative_error(tap.sample.gram, rows @ rows.T) < tolerance
    assert relative_error(gram.sample.gram, rows @ rows.T) < tolerance
    assert relative_error(norms.sample.squared_norms, rows.square().sum(1)) < tolerance
    assert relative_error(tap.sample.projections, projected(parameters, rows)) < 10 * tolerance


def relative_error(measured: Tensor | None, truth: Tensor) -> float:
    """Relative to the truth, or absolute where that is zero."""
    assert measured is not None
    return float((measured.double() - truth).norm() / (truth.norm() if truth.any() else 1))


def projected(parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
    """The loop's rows on the tap's directions."""
    total, start = torch.zeros(len(rows), 3, dtype=torch.float64), 0
    for name, p in parameters.items():
        directions = Directions.draw(name, tuple(p.shape), 3, 0, p.double())
        total += directions.of_rows(rows[:, start : start + p.numel()].reshape(len(rows), *p.shape))
        start += p.numel()
    return total
