"""Which layer reads which is told from what they put out, and refused where it cannot be told."""

from __future__ import annotations

import pytest
import torch
from _views import view_of
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.instruments.neurons import HiddenLayer, hidden_layers

IMAGES = torch.linspace(-2, 2, 40 * 3 * 8 * 8).sin().view(40, 3, 8, 8)
ROWS = (torch.arange(40 * 6).float() * 0.7).sin().view(40, 6)


def found_in(net: nn.Module, x: Tensor) -> list[HiddenLayer]:
    net.eval()
    return hidden_layers(net, view_of(net, x, torch.zeros(40), lambda f, y: f.sum()).activations(40))


class Written(nn.Module):
    """Layers as modules, everything else as functions, as much code is written."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        through = torch.tanh if self.function == "tanh" else getattr(F, self.function)
        return self.c(F.relu(self.b(through(self.a(x)))))


class OneReluForAll(nn.Module):
    """The same part used twice: only its first output is on record."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.relu = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.relu(self.b(self.relu(self.a(x)))))


class Residual(nn.Module):
    """A block whose output is added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down, self.last = (nn.Linear(a, b) for a, b in ((6, 8), (8, 12), (12, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.down(F.gelu(self.up(x))))


@pytest.mark.parametrize("function", ["relu", "tanh", "gelu", "silu", "sigmoid", "elu", "leaky_relu", "softplus"])
def test_functions_that_are_no_parts_are_recognised(function: str) -> None:
    torch.manual_seed(0)
    first, second = found_in(Written(function), ROWS)
    assert (first.name, first.reader, first.source, first.function) == ("a", "b", "a", function)
    assert (second.name, second.reader, second.source, second.function) == ("b", "c", "b", "relu")
    assert first.odd is (function == "tanh")


def test_parts_are_followed_through_norms_dropout_pooling_and_flattening() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 10, 3, stride=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(10, 4),
    )
    assert [(h.name, h.reader, h.odd) for h in found_in(net, IMAGES)] == [("0", "3", False), ("3", "8", True)]


def test_flattened_maps_keep_the_weights_of_a_channel_together() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 7))
    (hidden,) = found_in(net, IMAGES)
    with torch.no_grad():
        net[3].weight.view(7, 4, 36)[:, 2] = 0
    incoming, bias, outgoing = hidden.weights(net)
    assert incoming.shape == (4, 27)
    assert bias is not None
    assert outgoing.shape == (7 * 36, 4)
    assert (outgoing.norm(dim=0) == 0).tolist() == [False, False, True, False]


def test_groups_of_a_convolution_read_their_own_channels() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2))
    (hidden,) = found_in(net, IMAGES)
    with torch.no_grad():
        net[2].weight[2:, 1] = 0  # the second group's second channel is channel 4
    outgoing = hidden.weights(net)[2]
    assert (outgoing.norm(dim=0) == 0).tolist() == [False, False, False, False, True, False]


def test_outputs_are_those_after_the_activation_one_row_for_each_position() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    activations = view_of(net, IMAGES, torch.zeros(40), lambda f, y: f.sum()).activations(40)
    (hidden,) = hidden_layers(net, activations)
    rows = hidden.outputs(net, activations)
    torch.testing.assert_close(rows, net[:2](IMAGES).detach().permute(0, 2, 3, 1).reshape(-1, 6))


def test_layers_on_sequences_have_their_neurons_along_the_last_axis() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    (hidden,) = found_in(net, ROWS.view(40, 1, 6).expand(40, 7, 6))
    assert (hidden.source, hidden.odd) == ("1", True)


def test_a_part_that_is_used_twice_does_not_mislead() -> None:
    torch.manual_seed(0)
    assert [(h.name, h.source, h.function) for h in found_in(OneReluForAll(), ROWS)] == [
        ("a", "relu", ""),
        ("b", "b", "relu"),
    ]


def test_sums_of_branches_are_left_out_and_what_is_inside_a_branch_is_found() -> None:
    torch.manual_seed(0)
    assert [(h.name, h.reader, h.function) for h in found_in(Residual(), ROWS)] == [
        ("first", "up", ""),
        ("up", "down", "gelu"),
    ]


class Between(nn.Module):
    """A function that is no part, between parts that are odd."""

    def __init__(self, function: str, *after: nn.Module) -> None:
        super().__init__()
        self.a, self.norm, self.after, self.b = (
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.ModuleList(after),
            nn.Linear(8, 2),
        )
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(torch, self.function)(self.norm(self.a(x)))
        for part in self.after:
            x = part(x)
        return self.b(x)


@pytest.mark.parametrize("after", [(), (nn.Dropout(0.5),), (nn.Flatten(), nn.Identity()), (nn.Tanh(),)])
@pytest.mark.parametrize("function", ["relu", "relu_", "tanh", "tanh_"])
def test_a_function_before_an_odd_part_is_not_taken_for_that_part(function: str, after: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    (hidden,) = found_in(Between(function, *after), ROWS)
    assert hidden.source == ("norm" if not after else f"after.{len(after) - 1}")
    assert hidden.odd is (function.startswith("tanh") and not after)  # a tanh that is no part is not looked for


def test_averages_of_a_relu_that_is_no_part_are_not_odd() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.pool, self.b = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.pool(F.relu(self.a(x))).flatten(1))

    torch.manual_seed(0)
    (hidden,) = found_in(Pooled(), IMAGES)
    assert (hidden.source, hidden.odd) == ("pool", False)


def test_a_reader_that_does_not_listen_tells_nothing_of_what_it_reads() -> None:
    torch.manual_seed(0)
    net = Written("relu")
    nn.init.zeros_(net.c.weight)  # as heads and last layers of a branch often begin
    assert [h.name for h in found_in(net, ROWS)] == ["a"]
    nn.init.normal_(net.c.weight, std=1e-7)
    nn.init.constant_(net.c.bias, 1.0)  # nor does one that only its bias is heard of
    assert [h.name for h in found_in(net, ROWS)] == ["a"]


def test_a_single_layer_has_none_that_are_hidden() -> None:
    assert found_in(nn.Linear(6, 2), ROWS) == []
    assert found_in(nn.Sequential(nn.Flatten(), nn.Softmax(1)), ROWS) == []
