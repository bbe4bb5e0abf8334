"""Tap, probe, instruments and rule without a Trainer: in Lightning Fabric and in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _fabric_run import BATCH, data, in_fabric, model, work
from _processes import free_port
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_cx import ProbeSet
from lightning_cx.gradients import GradientTap
from lightning_cx.probe import ProbeReading, fill

NAMES = ["0.bias", "0.weight", "2.bias", "2.weight"]


def losses(module: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def plain(block: int) -> Tensor:
    """Gram matrix of one block of examples, by `loss.backward()`."""
    net, (x, y) = model(), data()
    rows = slice(BATCH * block, BATCH * (block + 1))
    tap, loss = GradientTap(net.named_parameters(), BATCH), losses(net, (x[rows], y[rows])).mean()
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert tap.sample.gram is not None
    return tap.sample.gram


def probed() -> ProbeReading:
    return fill(ProbeSet(size=128, loss_fn=losses), TensorDataset(*data())).read(model())


def gradient_of(blocks: int) -> Tensor:
    net, (x, y) = model(), data()
    losses(net, (x[: BATCH * blocks], y[: BATCH * blocks])).mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_fabric_shows_the_tap_and_the_probe_is_what_a_plain_loop_shows(accumulate: int) -> None:
    found = in_fabric(Fabric(accelerator="cpu", devices=1), accumulate)
    assert len(found["grams"]) == accumulate
    for block, gram in enumerate(found["grams"]):
        torch.testing.assert_close(gram, plain(block), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found["residuals"], probed().residuals, rtol=0, atol=0)
    torch.testing.assert_close(found["gradient"], gradient_of(accumulate), rtol=1e-5, atol=1e-7)
    assert sorted(found["layers"]) == NAMES  # as the user named them, without what Fabric wraps around
    assert found["norm"] == pytest.approx(float(plain(0).mean().sqrt()), rel=1e-6)
    assert found["energy"] == pytest.approx(float(probed().residuals.square().sum()) / 128, rel=1e-9)


def test_under_bf16_mixed_the_numbers_agree_to_the_precision_of_bf16() -> None:
    found = in_fabric(Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    exact = plain(0)
    assert 0 < float((found["grams"][0] - exact).norm() / exact.norm()) < 0.01
    assert found["coverage"][0] == pytest.approx(1, abs=0.01)
    difference = (found["residuals"] - probed().residuals).norm() / probed().residuals.norm()
    assert 0 < float(difference) < 0.01


def test_in_two_processes_each_taps_its_own_batches_and_gradients_are_averaged_as_without(tmp_path: Path) -> None:
    start_processes(work, args=(str(tmp_path), free_port()), nprocs=2, start_method="forkserver")
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for part, gram in enumerate(found["grams"]):
            torch.testing.assert_close(gram, plain(2 * rank + part), rtol=1e-6, atol=1e-9)
        assert found["coverage"] == pytest.approx([1, 1], abs=1e-5)  # of its own gradient, not of the average
        assert sorted(found["layers"]) == NAMES
        torch.testing.assert_close(found["gradient"], gradient_of(4), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found["residuals"], probed().residuals, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_probe_that_gets_the_wrapper_of_fabric_says_what_to_pass_instead(precision: Any) -> None:
    wrapped = Fabric(accelerator="cpu", devices=1, precision=precision).setup(model())
    probe = fill(ProbeSet(size=128, loss_fn=losses), TensorDataset(*data()))
    with pytest.raises(ValueError, match=r"got a _FabricModule.*pass the model inside \(`model\.module`\)"):
        probe.read(wrapped)
    assert probe.read(wrapped.module).residuals.shape == (128, 3)


def test_a_probe_is_filled_from_a_data_set_in_one_call() -> None:
    probe = fill(ProbeSet(size=150, loss_fn=losses), TensorDataset(*data()), batch_size=40)
    assert (probe.examples, probe.chunk_size, len(probe.indices or [])) == (150, 40, 150)
    same = fill(ProbeSet(size=150, loss_fn=losses), TensorDataset(*data()), batch_size=64)
    torch.testing.assert_close(same.read(model()).residuals, probe.read(model()).residuals)
    with pytest.raises(ValueError, match="at least 128 examples"):
        fill(probe, TensorDataset(*data(100)))
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        fill(probe, TensorDataset(*data()), batch_size=0)
