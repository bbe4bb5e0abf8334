"""A copy of the weights is exact, is not a view, and says where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchmetrics
from torch import nn

from lightning_cx.callbacks.best_weights import KeptWeights, tensors_of


def net() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    module.register_buffer("hidden", torch.arange(3), persistent=False)
    module.to(torch.float32)
    return module


def spoil(module: nn.Module) -> None:
    module.train()
    module(torch.randn(16, 4)).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn_like(parameter)


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_every_parameter_and_buffer_comes_back_bit_for_bit(limit: int, tmp_path: Path) -> None:
    module, kept = net(), KeptWeights(limit)
    before = {name: tensor.clone() for name, tensor in tensors_of(module).items()}
    kept.keep(module, 5, str(tmp_path))
    spoil(module)
    assert not torch.equal(module[1].running_mean, before["1.running_mean"])  # type: ignore[index]
    kept.restore(module)
    after = tensors_of(module)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert kept.step == 5
    assert kept.on_disk == (limit == 0)


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_a_later_copy_replaces_the_earlier_one(limit: int, tmp_path: Path) -> None:
    module, kept = net(), KeptWeights(limit)
    kept.keep(module, 1, str(tmp_path))
    spoil(module)
    kept.keep(module, 2, str(tmp_path))
    second = {name: tensor.clone() for name, tensor in tensors_of(module).items()}
    spoil(module)
    assert all(torch.equal(kept.tensors()[name], second[name]) for name in second)
    assert len(list(tmp_path.iterdir())) == (1 if limit == 0 else 0)


def test_the_file_goes_with_its_owner(tmp_path: Path) -> None:
    kept = KeptWeights(0)
    kept.keep(net(), 1, str(tmp_path / "new folder"))
    assert len(list((tmp_path / "new folder").iterdir())) == 1
    del kept
    assert not list((tmp_path / "new folder").iterdir())


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_a_checkpoint_holds_the_copy_itself(limit: int, tmp_path: Path) -> None:
    module, kept, resumed = net(), KeptWeights(limit), KeptWeights(limit)
    kept.keep(module, 3, str(tmp_path))
    torch.save(kept.state_dict(), tmp_path / "state.pt")
    before = {name: tensor.clone() for name, tensor in tensors_of(module).items()}
    spoil(module)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.restore(module)
    assert resumed.step == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(module).items())


def test_states_of_metrics_are_left_alone(tmp_path: Path) -> None:
    module = net()
    module.metric = torchmetrics.MeanMetric()
    kept = KeptWeights()
    kept.keep(module, 1, str(tmp_path))
    module.metric.update(3.0)
    kept.restore(module)
    assert float(module.metric.compute()) == 3


def test_a_module_that_has_changed_is_named(tmp_path: Path) -> None:
    kept = KeptWeights()
    kept.keep(net(), 1, str(tmp_path))
    other = nn.Sequential(nn.Linear(4, 8))
    with pytest.raises(ValueError, match=r"changed since its weights were kept: 1\.bias"):
        kept.restore(other)
