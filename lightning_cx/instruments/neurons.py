"""Which neurons of the hidden layers do work of their own, and have they found those of a teacher?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from lightning_cx.functional import neuron_report, neurons
from lightning_cx.instruments.base import Instrument, Needs, ProbePasses
from lightning_cx.instruments.hidden_layers import HiddenLayer, hidden_layers, weight_layers
from lightning_cx.instruments.reading import Reading
from lightning_cx.instruments.teacher import Teacher, layer_of, teacher_weights
from lightning_cx.tensorboard import tags

MAX_CHANCE = 0.05
"""Share of random neurons that look like copies up to which copies are counted: over that, a layer has too few inputs
for its neurons to be told apart."""

SHARES: tuple[str, ...] = (
    tags.NEURONS_DUPLICATES,
    tags.NEURONS_DEAD,
    tags.NEURONS_SILENT,
    tags.NEURONS_RANK,
    tags.NEURONS_EFFECTIVE_RANK,
)
TEACHER: tuple[str, ...] = (tags.NEURONS_ALIGNMENT, tags.NEURONS_ALIGNMENT_CHANCE, tags.NEURONS_TEACHER_DISTANCE)


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

    Raises:
        ValueError: If the teacher has no weights, or `examples` or `every_n_steps` is not positive.

    Example:
        >>> Neurons().needs.passes
        1.0
    """

    def __init__(
        self,
        teacher: Teacher | None = None,
        layers: Sequence[str] | None = None,
        per_layer: bool = False,
        examples: int = 256,
        every_n_steps: int | None = None,
    ) -> None:
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
        del step
        module, activations = passes.module, passes.activations(self.examples)
        everyone = hidden_layers(module, activations)
        found = [layer for layer in everyone if self.layers is None or layer.name in self.layers]
        missing = self._missing(module, activations, found)
        if not found:
            names = (*SHARES, *(TEACHER if self._teacher else ()))
            why = "; ".join(missing.values()) or "the model has no hidden linear or convolution layer that can be told"
            return Reading.refused(names, why)
        reports = {layer: _report(layer, module, activations) for layer in found}
        scalars, refusals = _shares(list(reports.values()))
        for layer, report in reports.items() if self.per_layer else ():
            own, whys = _shares([report])
            scalars |= {tags.of_layer(tag, layer.name): value for tag, value in own.items()}
            refusals |= {tags.of_layer(tag, layer.name): why for tag, why in whys.items()}
        for name, why in missing.items():
            scalars[tags.of_layer(tags.NEURONS_DUPLICATES, name)] = torch.nan
            refusals[tags.of_layer(tags.NEURONS_DUPLICATES, name)] = why
        if self._teacher is not None:
            with_teacher, whys = self._compare(found, everyone, module)
            scalars, refusals = scalars | with_teacher, refusals | whys
        return Reading(scalars, refusals=refusals, texts={tags.NEURONS_CARD: _card(reports, scalars)})

    def _missing(
        self, module: nn.Module, activations: Mapping[str, Tensor], found: Sequence[HiddenLayer]
    ) -> dict[str, str]:
        """Why layers that were asked for are not looked at."""
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
        """Alignment with the teacher and distance from it, and why one of them is nan."""
        assert self._teacher is not None
        first = everyone[0]
        incoming, bias, outgoing = first.weights(module)
        nothing = dict.fromkeys(TEACHER, math.nan)
        try:
            weight, their_bias = layer_of(self._teacher, first.name)
            mine, theirs = _with_bias(incoming, bias, their_bias), _with_bias(weight.flatten(1), their_bias, bias)
            alignment = neurons.teacher_alignment(mine, theirs, first.odd)
        except ValueError as refusal:
            return nothing, dict.fromkeys(TEACHER, str(refusal))
        scalars = {tags.NEURONS_ALIGNMENT: alignment.value, tags.NEURONS_ALIGNMENT_CHANCE: alignment.chance}
        refusals = dict.fromkeys(TEACHER[:2], "a weight is not finite") if math.isnan(alignment.value) else {}
        try:
            if len(everyone) > 1:
                raise ValueError("the distance from a teacher is defined for one hidden layer, and there are more")
            their_outgoing = layer_of(self._teacher, first.reader)[0].flatten(1)
            symmetry = "odd" if first.odd else "none"
            distance = neurons.permutation_sign_distance((mine, outgoing), (theirs, their_outgoing), symmetry).relative
            why = "" if math.isfinite(distance) else "the weights are zero or not finite"
        except ValueError as refusal:
            distance, why = math.nan, str(refusal)
        refusals |= {tags.NEURONS_TEACHER_DISTANCE: why} if why else {}
        return {**scalars, tags.NEURONS_TEACHER_DISTANCE: distance}, refusals


def _report(layer: HiddenLayer, module: nn.Module, activations: Mapping[str, Tensor]) -> neurons.NeuronReport:
    incoming, bias, outgoing = layer.weights(module)
    return neuron_report(incoming, outgoing, layer.outputs(module, activations), bias, sign=layer.odd)


def _with_bias(weights: Tensor, bias: Tensor | None, others: Tensor | None) -> Tensor:
    """Bias as a last column if either network has one."""
    if bias is None and others is None:
        return weights.double()
    column = weights.new_zeros(len(weights)) if bias is None else bias
    return torch.cat([weights, column[:, None]], 1).double()


def _shares(reports: Sequence[neurons.NeuronReport]) -> tuple[dict[str, float], dict[str, str]]:
    """The shares over several layers, each counted by its neurons, and why one of them is nan."""
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
        reasons[tags.NEURONS_DUPLICATES] = f"{chance:.0%} of random neurons would look like copies: too few inputs"
    shares = {tag: sum(a for a, _ in of) / sum(b for _, b in of) if of else math.nan for tag, of in counts.items()}
    return shares, {tag: reasons[tag] for tag, value in shares.items() if math.isnan(value)}


def _card(reports: Mapping[HiddenLayer, neurons.NeuronReport], scalars: Mapping[str, float]) -> str:
    lines = [
        f"- `{layer.name}`, read by `{layer.reader}` from `{layer.source}`"
        f"{f' through {layer.function}' if layer.function else ''}: {report}"
        for layer, report in reports.items()
    ]
    if tags.NEURONS_ALIGNMENT in scalars:
        value, chance = scalars[tags.NEURONS_ALIGNMENT], scalars[tags.NEURONS_ALIGNMENT_CHANCE]
        lines.append(f"- alignment with the teacher's neurons {value:.3f} (random ones: {chance:.3f})")
    return "\n".join(lines)
