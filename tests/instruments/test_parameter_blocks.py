"""Blocks of a network are found by the names of its parameters, or refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn

from lightning_cx.instruments.kernel import NO_BLOCKS, checked_blocks, parameter_blocks


class Residual(nn.Module):
    def __init__(self, width: int, out: int | None = None) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Linear(width, out or width), nn.Linear(out or width, out or width)
        self.bn1, self.bn2 = nn.BatchNorm1d(out or width), nn.BatchNorm1d(out or width)
        if out is not None:
            self.downsample = nn.Sequential(nn.Linear(width, out), nn.BatchNorm1d(out))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc = nn.Linear(3, 4), nn.Linear(8, 2)
        self.layer1 = nn.Sequential(Residual(4), Residual(4))
        self.layer2 = nn.Sequential(Residual(4, 8), Residual(8))


class ConvNeXt(nn.Module):
    """Stages of blocks, numbered in one sequence with what lies between them."""

    def __init__(self) -> None:
        super().__init__()

        def block() -> nn.Module:
            return nn.ModuleDict({"block": nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))})

        stages = [nn.Sequential(*(block() for _ in range(count))) for count in (3, 3, 4)]
        self.features = nn.Sequential(
            nn.Linear(4, 4), stages[0], nn.Linear(4, 4), stages[1], nn.Linear(4, 4), stages[2]
        )


def names_of(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.ModuleDict({"emb": nn.Embedding(5, 8), "body": nn.TransformerEncoder(layer, 3), "head": nn.Linear(8, 5)})


def pre_activation(count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(count)))


FOUND: dict[str, tuple[nn.Module, list[str]]] = {
    "ResNet": (ResNet(), ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "rest"]),
    "ResNet inside a module": (
        nn.ModuleDict({"net": nn.Sequential(nn.Identity(), ResNet())}),
        [f"net.1.{block}" for block in ("layer1.0", "layer1.1", "layer2.0", "layer2.1")] + ["rest"],
    ),
    "transformer": (transformer(), ["body.layers.0", "body.layers.1", "body.layers.2", "rest"]),
    "numbers after an underscore": (
        nn.ModuleDict({f"encoder_layer_{i}": Residual(4) for i in range(2)}),
        ["encoder_layer_0", "encoder_layer_1"],
    ),
    "sequences as blocks": (pre_activation(3), ["0", "1", "2"]),
    "blocks between stem and head": (
        nn.Sequential(nn.Linear(3, 4), pre_activation(2), nn.Linear(4, 2)),
        ["1.0", "1.1", "rest"],
    ),
    "stages of blocks": (
        ConvNeXt(),
        [f"features.{stage}.{i}" for stage, count in ((1, 3), (3, 3), (5, 4)) for i in range(count)] + ["rest"],
    ),
}


@pytest.mark.parametrize("model", FOUND)
def test_the_outermost_repeated_blocks_are_found_by_name(model: str) -> None:
    module, expected = FOUND[model]
    names = names_of(module)
    found = parameter_blocks(names)
    assert list(found) == expected
    assert sorted(name for members in found.values() for name in members) == sorted(names), "each parameter once"
    for block, members in found.items():
        assert block == "rest" or all(name.startswith(f"{block}.") for name in members)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.ModuleDict({"conv1": nn.Linear(2, 2), "conv2": nn.Linear(2, 2)}),
        nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))),
        nn.Linear(2, 2),
        nn.Identity(),
    ],
    ids=["MLP", "two layers", "one block", "one layer", "none"],
)
def test_a_model_without_repeated_blocks_is_refused_with_what_to_do(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=re.escape(NO_BLOCKS)):
        parameter_blocks(names_of(module))


def test_blocks_stand_in_the_order_of_their_numbers_however_they_are_met() -> None:
    names = names_of(pre_activation(12))
    assert list(parameter_blocks(reversed(names))) == [str(i) for i in range(12)]


def test_a_depth_takes_so_many_parts_of_each_name() -> None:
    mlp = nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))})
    assert parameter_blocks(names_of(mlp), 2) == {
        "net.0": ("net.0.bias", "net.0.weight"),
        "net.2": ("net.2.bias", "net.2.weight"),
    }
    with pytest.raises(ValueError, match="blocks=1 makes fewer than two blocks"):
        parameter_blocks(names_of(mlp), 1)


def test_a_mapping_names_blocks_by_whole_parts_in_its_own_order() -> None:
    names = ["net.1.weight", "net.10.weight", "net.2.weight", "head.weight"]
    found = parameter_blocks(names, {"late": ["net.2", "net.10"], "early": "net.1"})
    assert found == {
        "late": ("net.2.weight", "net.10.weight"),
        "early": ("net.1.weight",),
        "rest": ("head.weight",),
    }
    assert list(found) == ["late", "early", "rest"]
    with pytest.raises(ValueError, match=r"named as those of the blocks \['gone'\]"):
        parameter_blocks(names, {"late": "net.2", "gone": "net.7"})


@pytest.mark.parametrize("blocks", ["some", 0, -1, True, {}, {"a": ""}, {"a": []}, None, 1.5])
def test_settings_that_name_no_blocks_are_refused(blocks: Any) -> None:
    with pytest.raises(ValueError, match='blocks must be "auto", "off", a depth of 1 or more, or a mapping'):
        checked_blocks(blocks)


@pytest.mark.parametrize("blocks", ["auto", "off", 1, 3, {"a": "net"}, {"a": ["net.0", "net.1"]}])
def test_settings_that_name_blocks_are_taken(blocks: Any) -> None:
    assert checked_blocks(blocks) is blocks
