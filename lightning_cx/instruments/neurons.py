"""Which neurons of the hidden layers do work of their own, and have they found those of a teacher?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.functional import neuron_report, neurons
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import Instrument, Needs, ProbePasses, Reading

MAX_CHANCE = 0.05
"""Share of random neurons that look like copies up to which copies are counted: over that, a layer has too few inputs
for its neurons to be told apart."""

SHARES = (
    quantities.NEURONS_DUPLICATES,
    quantities.NEURONS_DEAD,
    quantities.NEURONS_SILENT,
    quantities.NEURONS_RANK,
    quantities.NEURONS_EFFECTIVE_RANK,
)
ALIGNMENT = (quantities.NEURONS_ALIGNMENT, quantities.NEURONS_ALIGNMENT_CHANCE)
TEACHER = (*ALIGNMENT, quantities.NEURONS_TEACHER_DISTANCE)


@final
class Neurons(Instrument):
    """Shares of neurons that are copies, dead or silent, and of features that the hidden layers really offer.

    Hidden are linear and convolution layers that another one reads, through an activation function, normalisation,
    pooling or flattening: which one is told from their outputs. Numbers are those of all of these layers together, each
    counted by its neurons, of single ones on request. `neuron_report` says what they mean.

    With a teacher, the first hidden layer is compared with the teacher's: `neurons/alignment` is 1 where each of its
    neurons has been found, and `neurons/alignment_chance` what random neurons would show. A network with one hidden
    layer of the teacher's width has a distance from it as well, over all orders and signs of its neurons.

    Args:
        teacher: The network that made the targets: a module, its state dict, or a file that holds one. Its layers have
            the names of the model's, with or without a prefix.
        layers: Names of the hidden layers to look at; None takes all that are found.
        per_layer: Log the shares of each layer as well, under `<tag>/<layer>`.
        examples: Number of probe examples whose activations are looked at.
        every_n_steps: How often; None follows the monitor.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If the teacher has no weights, or `examples` or `every_n_steps` is not positive.

    Example:
        >>> Neurons().needs.passes
        1.0
    """

    tags = (*SHARES, *TEACHER)

    def __init__(
        self,
        teacher: Teacher | None = None,
        layers: Sequence[str] | None = None,
        per_layer: bool = False,
        examples: int = 256,
        every_n_steps: int | None = None,
        *,
        name: str = "",
    ) -> None:
        super().__init__(name)
        if examples < 1:
            raise ValueError(f"activations need at least one example, got examples={examples}.")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is at least 1, got {every_n_steps}.")
        self.layers = None if layers is None else list(layers)
        self.per_layer, self.examples, self.every_n_steps = per_layer, examples, every_n_steps
        self._teacher = None if teacher is None else teacher_weights(teacher)

    @property
    def needs(self) -> Needs:
        return Needs(passes=self.examples / 256, every_n_steps=self.every_n_steps)

    def on_model(self, step: int, passes: ProbePasses) -> Reading:
        module, activations = passes.module, passes.activations(self.examples)
        everyone = hidden_layers(module, activations)
        found = [layer for layer in everyone if self.layers is None or layer.name in self.layers]
        missing = self._missing(module, activations, found)
        if not found:
            why = "the model has no hidden linear or convolution layer that can be identified"
            return Reading.refused(self.tags if self._teacher else SHARES, "; ".join(missing.values()) or why)
        reports = {}
        for layer in found:
            incoming, bias, outgoing = layer.weights(module)
            outputs = layer.outputs(module, activations)
            reports[layer] = neuron_report(incoming, outgoing, outputs, bias, sign=layer.odd)
        scalars, refusals = _shares(list(reports.values()))
        for layer, report in reports.items() if self.per_layer else ():
            own, whys = _shares([report])
            scalars |= {quantities.of_layer(tag, layer.name): value for tag, value in own.items()}
            refusals |= {quantities.of_layer(tag, layer.name): why for tag, why in whys.items()}
        refusals |= {quantities.of_layer(quantities.NEURONS_DUPLICATES, name): why for name, why in missing.items()}
        scalars |= {quantities.of_layer(quantities.NEURONS_DUPLICATES, name): torch.nan for name in missing}
        if self._teacher is not None:
            with_teacher, whys = self._compare(found, everyone, module)
            scalars, refusals = scalars | with_teacher, refusals | whys
        return Reading(scalars, refusals=refusals, texts={quantities.NEURONS_CARD: _card(reports, scalars)})

    def _missing(
        self, module: nn.Module, activations: Mapping[str, Tensor], found: Sequence[HiddenLayer]
    ) -> dict[str, str]:
        """Return why requested layers are not measured."""
        there, known = {layer.name for layer in found}, weight_layers(module, activations)
        return {
            name: f"no layer was found that reads {name!r} neuron by neuron (an output layer, a sum of branches, or a "
            "function that is not known)"
            if name in known
            else f"{name!r} is no linear or convolution layer of the model; it has {', '.join(known) or 'none'}"
            for name in self.layers or ()
            if name not in there
        }

    def _compare(
        self, found: Sequence[HiddenLayer], everyone: Sequence[HiddenLayer], module: nn.Module
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Return alignment with the teacher and distance from it, and why one of them is nan."""
        assert self._teacher is not None
        first = everyone[0]
        incoming, bias, outgoing = first.weights(module)
        try:
            weight, their_bias = layer_of(self._teacher, first.name)
            mine, theirs = _with_bias(incoming, bias, their_bias), _with_bias(weight.flatten(1), their_bias, bias)
            alignment = neurons.teacher_alignment(mine, theirs, first.odd)
        except ValueError as refusal:
            return dict.fromkeys(TEACHER, math.nan), dict.fromkeys(TEACHER, str(refusal))
        scalars = dict(zip(ALIGNMENT, (alignment.value, alignment.chance), strict=True))
        refusals = dict.fromkeys(ALIGNMENT, "a weight is not finite") if math.isnan(alignment.value) else {}
        try:
            if len(everyone) > 1:
                raise ValueError("the distance from a teacher is defined for one hidden layer, and there are more")
            their_outgoing = layer_of(self._teacher, first.reader)[0].flatten(1)
            symmetry = "odd" if first.odd else "none"
            distance = neurons.permutation_sign_distance((mine, outgoing), (theirs, their_outgoing), symmetry).relative
            why = "" if math.isfinite(distance) else "the weights are zero or not finite"
        except ValueError as refusal:
            distance, why = math.nan, str(refusal)
        refusals |= {quantities.NEURONS_TEACHER_DISTANCE: why} if why else {}
        return {**scalars, quantities.NEURONS_TEACHER_DISTANCE: distance}, refusals


def _with_bias(weights: Tensor, bias: Tensor | None, others: Tensor | None) -> Tensor:
    """Append the bias as a last column if either network has one."""
    if bias is None and others is None:
        return weights.double()
    column = weights.new_zeros(len(weights)) if bias is None else bias
    return torch.cat([weights, column[:, None]], 1).double()


def _shares(reports: Sequence[neurons.NeuronReport]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the shares over several layers, weighted by their neurons, and why one of them is nan."""
    distinct = [r for r in reports if r.duplicates_by_chance <= MAX_CHANCE and math.isfinite(r.duplicates)]
    copies = [(r.duplicates * len(r.similarity), len(r.similarity)) for r in distinct]
    dead = [(int(r.dead.sum()), len(r.dead)) for r in reports if r.dead is not None]
    silent = [(int(r.silent.sum()), len(r.silent)) for r in reports if r.silent is not None]
    ranks = [(r.rank, r.rank_limit) for r in reports if r.rank is not None and r.rank_limit]
    effective = [(r.effective_rank, r.rank_limit) for r in reports if r.effective_rank is not None and r.rank_limit]
    counts = dict(zip(SHARES, (copies, dead, silent, ranks, effective), strict=True))
    reasons = dict.fromkeys(SHARES, "weights or outputs are not finite, or the examples are too few")
    chance = max((r.duplicates_by_chance for r in reports), default=0.0)
    if chance > MAX_CHANCE:
        why = f"{chance:.0%} of random neurons would look like copies: too few inputs"
        reasons[quantities.NEURONS_DUPLICATES] = why
    shares = {tag: sum(a for a, _ in of) / sum(b for _, b in of) if of else math.nan for tag, of in counts.items()}
    return shares, {tag: reasons[tag] for tag, value in shares.items() if math.isnan(value)}


def _card(reports: Mapping[HiddenLayer, neurons.NeuronReport], scalars: Mapping[str, float]) -> str:
    lines = [
        f"- `{layer.name}`, read by `{layer.reader}` from `{layer.source}`"
        f"{f' through {layer.function}' if layer.function else ''}: {report}"
        for layer, report in reports.items()
    ]
    if quantities.NEURONS_ALIGNMENT in scalars:
        value, chance = (scalars[tag] for tag in ALIGNMENT)
        lines.append(f"- alignment with the teacher's neurons {value:.3f} (random ones: {chance:.3f})")
    return "\n".join(lines)


CHECKED = 4
"""Examples on which a guess of what a layer reads is checked: one wrong number in a thousand shows."""

AGREEMENT = 0.02
"""Relative deviation up to which a guess is right; half precision agrees to .01."""

HEARD = 2e-5
"""Share of its output that a reader makes of what it reads, at least; the rest is its bias. What float32 rounds away is
half a percent of that."""

MAX_OUTPUTS = 1 << 14
"""Positions at which the neurons of a convolution, or of a layer on sequences, are looked at; evenly spaced ones."""

_CONVOLUTIONS: dict[type, Callable[..., Tensor]] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_NAMED = (F.relu, torch.tanh, F.gelu, F.silu, torch.sigmoid, F.elu, F.leaky_relu, F.softplus)
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"": lambda x: x, **{of.__name__: of for of in _NAMED}}
# Odd functions, through which a neuron of opposite sign stays one: parts that do nothing in eval mode, those without a
# state, and norms, whose shift belongs to the neuron.
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_ODD = (nn.Flatten, nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Softshrink, *_POOLS)
_ODD_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class HiddenLayer:
    """A layer whose neurons another layer reads one by one."""

    name: str
    reader: str  # name of the layer that reads it
    source: str  # name of the part whose output is read
    function: str  # applied to that output in between, if no part applies it
    odd: bool  # whether everything between the two layers is an odd function

    def outputs(self, module: nn.Module, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs of its neurons, [n, m]: one row for each example and position."""
        x = _FUNCTIONS[self.function](activations[self.source])
        rows = x.movedim(_axis(module.get_submodule(self.name)), -1).flatten(0, -2)
        return rows[:: max(1, -(-len(rows) // MAX_OUTPUTS))]

    def weights(self, module: nn.Module) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return incoming weights [m, d], bias [m] or None, and outgoing weights [o, m], on the host."""
        layer, reader = module.get_submodule(self.name), module.get_submodule(self.reader)
        (incoming, bias), (outgoing, _) = _tensors(layer), _tensors(reader)
        groups, m = int(getattr(reader, "groups", 1)), len(incoming)
        by_neuron = outgoing.reshape(groups, len(outgoing) // groups, m // groups, -1).transpose(1, 2)
        return incoming.flatten(1), bias, by_neuron.reshape(m, -1).T


def weight_layers(module: nn.Module, activations: Mapping[str, Tensor]) -> list[str]:
    """Return the linear and convolution layers, in order of use."""
    kinds = (nn.Linear, *_CONVOLUTIONS)
    return [name for name in activations if isinstance(module.get_submodule(name), kinds)]


def hidden_layers(module: nn.Module, activations: Mapping[str, Tensor]) -> list[HiddenLayer]:
    """Find the hidden layers and the layers that read them.

    What a layer reads is guessed from what came before it, the output of a part or a common function of it, and the
    guess is checked: the layer, given that, has to put out what it did. So the order of the parts is used, but not
    believed. Layers that are read through a sum of branches or through attention are not found. No part is run.
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
    """Yield the error of the reader's recomputed output for each guess of its input, the nearest part first."""
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
    """Return the layer's output for an input, without its bias and without running it; None if it does not fit."""
    weight, _ = _tensors(layer)
    if isinstance(layer, nn.Linear):
        if axis == 1:
            x = x.flatten(1)  # positions of a neuron stay together
        return F.linear(x, weight) if x.shape[-1] == weight.shape[1] else None
    groups, is_plain = int(getattr(layer, "groups", 1)), getattr(layer, "padding_mode", "") == "zeros"
    convolve = next(of for kind, of in _CONVOLUTIONS.items() if isinstance(layer, kind))
    if not is_plain or x.dim() != weight.dim() or x.shape[1] != weight.shape[1] * groups:
        return None
    return convolve(x, weight, None, layer.stride, layer.padding, layer.dilation, groups)


def _without_bias(layer: nn.Module, output: Tensor) -> Tensor:
    bias = _tensors(layer)[1]
    if bias is None:
        return output
    return output - (bias if isinstance(layer, nn.Linear) else bias.view(-1, *[1] * (output.dim() - 2)))


def _is_odd(module: nn.Module, few: Mapping[str, Tensor], layer: str, way: list[str]) -> bool:
    """Return whether each part's output is an odd function of the previous part's output.

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
    """Return the output of a part that is an odd function; None for any other part."""
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
    """Return the axis of a layer's output along which its neurons lie."""
    return -1 if isinstance(layer, nn.Linear) else 1


Teacher: TypeAlias = nn.Module | Mapping[str, Tensor] | str | Path


def teacher_weights(teacher: Teacher) -> dict[str, Tensor]:
    """Take the weights of a teacher by name, from a module, its state dict, or a checkpoint that holds one."""
    if isinstance(teacher, nn.Module):
        teacher = teacher.state_dict()
    if isinstance(teacher, str | Path):
        if not Path(teacher).is_file():
            raise ValueError(f"there is no file {str(teacher)!r}: pass a checkpoint, a state dict or a module.")
        teacher = _from_file(Path(teacher))
    state: Any = teacher.get("state_dict", teacher) if isinstance(teacher, Mapping) else {}
    weights = {name: value.detach().cpu() for name, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError("the teacher has no weights: pass a module, its state dict, or a file that holds one.")
    return weights


def _from_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler runs into what it finds: there is no one type
        raise ValueError(
            f"the file {str(path)!r} is not read as weights ({type(error).__name__}): load it yourself, and pass the "
            'module or its state dict, as torch.load(path, weights_only=False)["state_dict"] if you trust the file.'
        ) from error


def layer_of(weights: Mapping[str, Tensor], layer: str) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the teacher's layer of the same name, up to a prefix.

    A student that is wrapped, as `net.0`, has a teacher that is not, as `0`, and the other way round.
    """
    names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    same = [name for name in names if name == layer]
    alike = same or [name for name in names if layer.endswith(f".{name}") or name.endswith(f".{layer}")]
    if len(alike) != 1:
        raise ValueError(f"the teacher has {len(alike)} layers that could be {layer!r}; it has {', '.join(names)}")
    weight = weights[f"{alike[0]}.weight"]
    if weight.dim() < 2:
        raise ValueError(f"the teacher's layer {alike[0]!r} is no linear or convolution layer, as {layer!r} is one")
    return weight, weights.get(f"{alike[0]}.bias")
