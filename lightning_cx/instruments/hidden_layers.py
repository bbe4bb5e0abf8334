"""Which layers of a network are hidden, and which one reads them: told from what its parts put out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHECKED = 4
"""Examples on which a guess of what a layer reads is checked: one wrong number in a thousand shows."""

AGREEMENT = 0.02
"""Relative deviation up to which a guess is right; half precision agrees to .01."""

HEARD = 2e-5
"""Share of its output that a reader makes of what it reads, at least; the rest is its bias. What float32 rounds away is
half a percent of that."""

MAX_OUTPUTS = 1 << 14
"""Positions at which the neurons of a convolution, or of a layer on sequences, are looked at; evenly spaced ones."""

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
}
# Parts through which a neuron that is turned round comes out turned round: those that do nothing in eval mode, those
# without a state, and norms, whose shift belongs to the neuron.
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_ODD = (nn.Flatten, nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Softshrink, *_POOLS)
_ODD_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class HiddenLayer:
    """A layer whose neurons another one reads, each by itself.

    Attributes:
        name: Of the layer.
        reader: Name of the layer that reads it.
        source: Name of the part whose output is read.
        function: What is done to that output on the way, if no part does it.
        odd: Whether the way turns round what comes in turned round.
    """

    name: str
    reader: str
    source: str
    function: str
    odd: bool

    def outputs(self, module: nn.Module, activations: Mapping[str, Tensor]) -> Tensor:
        """What its neurons offer, [n, m]: one row for each example and position."""
        x = _FUNCTIONS[self.function](activations[self.source])
        rows = x.movedim(_axis(module.get_submodule(self.name)), -1).flatten(0, -2)
        return rows[:: max(1, -(-len(rows) // MAX_OUTPUTS))]

    def weights(self, module: nn.Module) -> tuple[Tensor, Tensor | None, Tensor]:
        """Incoming weights [m, d], bias [m] or None, and outgoing weights [o, m], on the host."""
        layer, reader = module.get_submodule(self.name), module.get_submodule(self.reader)
        incoming, bias = _tensors(layer)
        outgoing = _tensors(reader)[0]
        groups = int(getattr(reader, "groups", 1))
        m = len(incoming)
        by_neuron = outgoing.reshape(groups, len(outgoing) // groups, m // groups, -1).transpose(1, 2)
        return incoming.flatten(1), bias, by_neuron.reshape(m, -1).T


def weight_layers(module: nn.Module, activations: Mapping[str, Tensor]) -> list[str]:
    """Linear and convolution layers, in order of use."""
    kinds = (nn.Linear, *_CONVOLUTIONS)
    return [name for name in activations if isinstance(module.get_submodule(name), kinds)]


def hidden_layers(module: nn.Module, activations: Mapping[str, Tensor]) -> list[HiddenLayer]:
    """Find the hidden layers and who reads them.

    What a layer reads is guessed from what came before it, the output of a part or a common function of it, and the
    guess is checked: the layer, given that, has to put out what it did. So the order of the parts is used, but not
    believed. Layers that are read through a sum of branches or through attention are not found.

    Args:
        module: The model; its parts are not run.
        activations: Outputs of its parts on some examples, [n, ...], by name, in order of use.

    Returns:
        Hidden layers in order of use.
    """
    few = {name: values[:CHECKED] for name, values in activations.items()}
    order, names = list(few), weight_layers(module, few)
    found: list[HiddenLayer] = []
    for layer, reader in pairwise(names):
        between = order[order.index(layer) : order.index(reader)]
        guesses = list(_guesses(module, few, layer, reader, between))
        error, source, function = min(guesses, default=(float("inf"), "", ""), key=lambda guess: guess[0])
        if error <= AGREEMENT:
            way = between[1 : between.index(source) + 1]
            odd = function in ("", "tanh") and _is_odd(module, few, layer, way)
            found.append(HiddenLayer(layer, reader, source, function, odd))
    return found


def _guesses(
    module: nn.Module, few: Mapping[str, Tensor], layer: str, reader: str, between: list[str]
) -> Iterator[tuple[float, str, str]]:
    """How far what the reader would put out is from what it did, for each guess; the nearest part first."""
    axis = _axis(module.get_submodule(layer))
    neurons = len(_tensors(module.get_submodule(layer))[0])
    read = module.get_submodule(reader)
    wanted = _without_bias(read, few[reader])
    if not wanted.norm() > HEARD * few[reader].norm():
        return  # what does not listen agrees with every guess
    for source in reversed(between):
        values = few[source]
        if values.dim() > 1 and values.shape[axis] == neurons:
            for function, of in _FUNCTIONS.items():
                made = _applied(read, of(values), axis)
                if made is not None and made.shape == wanted.shape:
                    error = (made - wanted).norm() / wanted.norm()
                    yield float(error), source, function


def _applied(layer: nn.Module, x: Tensor, axis: int) -> Tensor | None:
    """What the layer makes of it, without its bias and without running it; None where it does not fit."""
    weight, _ = _tensors(layer)
    if isinstance(layer, nn.Linear):
        if axis == 1:
            x = x.flatten(1)  # positions of a neuron stay together
        return F.linear(x, weight) if x.shape[-1] == weight.shape[1] else None
    groups = int(getattr(layer, "groups", 1))
    convolve = next(of for kind, of in _CONVOLUTIONS.items() if isinstance(layer, kind))
    if (
        getattr(layer, "padding_mode", "") != "zeros"
        or x.dim() != weight.dim()
        or x.shape[1] != weight.shape[1] * groups
    ):
        return None
    return convolve(x, weight, None, layer.stride, layer.padding, layer.dilation, groups)


def _without_bias(layer: nn.Module, output: Tensor) -> Tensor:
    bias = _tensors(layer)[1]
    if bias is None:
        return output
    return output - (bias if isinstance(layer, nn.Linear) else bias.view(-1, *[1] * (output.dim() - 2)))


def _is_odd(module: nn.Module, few: Mapping[str, Tensor], layer: str, way: list[str]) -> bool:
    """Whether each part puts out what an odd one makes of what the part before it put out.

    The names alone would not do: ``dropout(relu(x))`` with relu as a function passes for a dropout.
    """
    x = few[layer]
    for name in way:
        made = _turned_with(module.get_submodule(name), x)
        if made is None or made.shape != few[name].shape:
            return False
        x = few[name]
        if not (made - x).norm() <= AGREEMENT * x.norm():
            return False
    return True


def _turned_with(part: nn.Module, x: Tensor) -> Tensor | None:
    """What a part that turns round what comes in turned round makes of it; None for any other part."""
    if isinstance(part, _IDLE):
        return x
    if isinstance(part, _ODD):
        return part.forward(x)
    if isinstance(part, _ODD_NORMS) and part.running_mean is not None and part.running_var is not None:
        mean, variance, weight, bias = (
            value if value is None else value.detach().float().cpu()
            for value in (part.running_mean, part.running_var, part.weight, part.bias)
        )
        return F.batch_norm(x, mean, variance, weight, bias, eps=part.eps)
    return None


def _tensors(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    return weight.detach().float().cpu(), bias.detach().float().cpu() if isinstance(bias, Tensor) else None


def _axis(layer: nn.Module) -> int:
    """Along which axis of its output a layer has its neurons."""
    return -1 if isinstance(layer, nn.Linear) else 1
