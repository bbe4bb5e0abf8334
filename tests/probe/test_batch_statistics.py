"""BatchNorm takes the statistics of the batch for a while, and its own come back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_cx.probe.conditions import batch_statistics, running_norms
from lightning_cx.probe.isolation import isolated


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 4), nn.BatchNorm1d(4))
    made(torch.randn(16, 1, 8, 8) + 2)  # running statistics that are not those of the start
    return made


def buffers(module: nn.Module) -> list[tuple[str, int, list[float]]]:
    return [(name, held.data_ptr(), held.flatten().tolist()) for name, held in module.named_buffers()]


def test_an_isolated_pass_sees_what_training_mode_would_and_leaves_no_trace() -> None:
    module, x = net(), torch.randn(16, 1, 8, 8)
    expected = copy.deepcopy(module)(x)
    before, keys = buffers(module), list(module.state_dict())
    with batch_statistics(module) as normalised, isolated(module, guard=True):
        seen = module(x)
    assert normalised
    torch.testing.assert_close(seen, expected)
    assert buffers(module) == before
    assert list(module.state_dict()) == keys
    assert all(part.training for part in module.modules())


def test_statistics_come_back_where_the_block_fails() -> None:
    module = net()
    before = buffers(module)
    with pytest.raises(ZeroDivisionError), batch_statistics(module):
        raise ZeroDivisionError
    assert buffers(module) == before


def test_layers_that_were_frozen_keep_their_statistics() -> None:
    module, x = net(), torch.randn(16, 1, 8, 8)
    module[1].eval(), module[4].eval()
    expected = copy.deepcopy(module)(x)
    assert running_norms(module) == []
    with batch_statistics(module) as normalised:
        assert not normalised
        assert torch.equal(module(x), expected)


def test_a_model_in_eval_mode_does_not_tell_which_are_frozen_so_none_is() -> None:
    assert len(running_norms(net().eval())) == 2


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4, track_running_stats=False)])
def test_norms_without_running_statistics_are_left_alone(layer: nn.Module) -> None:
    x: Tensor = torch.randn(8, 4)
    with batch_statistics(nn.Sequential(layer)) as normalised:
        assert not normalised
        assert torch.equal(layer(x), copy.deepcopy(layer)(x))
