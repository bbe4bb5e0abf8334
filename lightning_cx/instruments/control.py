"""The control a sceptic asks for: the same instrument on the same numbers, with the examples shuffled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_cx.gradients import GradientSample
from lightning_cx.instruments.base import Instrument, Observation, Reading
from lightning_cx.probe import ProbeReading
from lightning_cx.tensorboard import tags

Control: TypeAlias = Literal["shuffle"] | None

SEED = 20  # of the orders; the same number of examples is shuffled alike at every step, so that steps can be compared


class ShuffledTwin:
    """Shows an instrument what its twin sees, after the examples have swapped places among the features.

    Whatever the twin still finds is not in the data: it is what the method makes of any numbers of these sizes.

    Args:
        twin: Another instrument of the same kind and settings, without a control of its own.
        order_free: Tags of numbers that do not depend on which example is which; they have no twin.
    """

    def __init__(self, twin: Instrument, order_free: Iterable[str] = ()) -> None:
        self.twin = twin
        self._order_free = frozenset(order_free)

    def beside(self, reading: Reading, observation: Observation) -> Reading:
        """Add the twin's numbers to a reading, under tags that end in `_shuffled`."""
        found = self.twin.measure(shuffled(observation)).scalars
        twins = {tags.shuffled(tag): value for tag, value in found.items() if tag not in self._order_free}
        return replace(reading, scalars={**reading.scalars, **twins})


def checked(control: Control) -> Control:
    """Refuse a control that is not known.

    Raises:
        ValueError: If it is neither None nor "shuffle".
    """
    if control not in (None, "shuffle"):
        raise ValueError(f'control must be None or "shuffle", got {control!r}.')
    return control


def state_of(twin: ShuffledTwin | None) -> dict[str, Any]:
    """What a checkpoint has to hold of the twin."""
    return {} if twin is None else {"shuffled": twin.twin.state_dict()}


def load_state(twin: ShuffledTwin | None, state: dict[str, Any]) -> None:
    """Take up what `state_of` gave; a checkpoint without a twin leaves it at its beginning."""
    if twin is not None and "shuffled" in state:
        twin.twin.load_state_dict(state["shuffled"])


def shuffled(observation: Observation) -> Observation:
    """The same observation, with gradients and residuals given to other examples; features stay where they are.

    Example:
        >>> import torch
        >>> gram = torch.diag(torch.arange(3.0))
        >>> seen = shuffled(Observation(0, gradients=GradientSample(3, gram=gram)))
        >>> sorted(seen.gradients.gram.diagonal().tolist())
        [0.0, 1.0, 2.0]
    """
    gradients, probe = observation.gradients, observation.probe
    return replace(
        observation,
        gradients=None if gradients is None else _of_gradients(gradients),
        probe=None if probe is None else _of_probe(probe),
    )


def _order(examples: int) -> Tensor:
    return torch.randperm(examples, generator=torch.Generator().manual_seed(SEED))


def _of_gradients(sample: GradientSample) -> GradientSample:
    order = _order(sample.batch_size)

    def both(gram: Tensor | None) -> Tensor | None:
        return None if gram is None else gram[order.to(gram.device)][:, order.to(gram.device)]

    def rows(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[order.to(values.device)]

    layers = {
        name: replace(layer, gram=both(layer.gram), squared_norms=rows(layer.squared_norms), rows=rows(layer.rows))
        for name, layer in sample.layers.items()
    }
    return replace(
        sample,
        gram=both(sample.gram),
        squared_norms=rows(sample.squared_norms),
        projections=rows(sample.projections),
        layers=layers,
    )


def _of_probe(probe: ProbeReading) -> ProbeReading:
    order = _order(len(probe.residuals))
    gradients = None if probe.gradients is None else _of_gradients(probe.gradients)
    return replace(probe, outputs=probe.outputs[order], residuals=probe.residuals[order], gradients=gradients)
