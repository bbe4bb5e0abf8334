"""The control that a sceptic asks for: the same instrument on the same numbers, with the examples shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import Instrument, Reading
from lightning_cx.probe import ProbeReading

Control: TypeAlias = Literal["shuffle"] | None

SEED = 20  # of the orders; the same number of examples is shuffled alike at every step, so that steps can be compared


class ShuffledControl:
    """Shows a second instrument the same numbers after the examples have been shuffled among the features.

    Whatever this control still finds is not in the data: it is what the method makes of any numbers of these sizes.
    `make` returns that instrument; numbers under the tags `order_free` do not depend on which example is which.
    """

    def __init__(self, control: Control, make: Callable[[], Instrument], order_free: Iterable[str] = ()) -> None:
        if control not in (None, "shuffle"):
            raise ValueError(f'control must be None or "shuffle", got {control!r}.')
        self._shuffled = None if control is None else make()
        self._order_free = frozenset(order_free)

    def beside(self, reading: Reading, show: Callable[[Instrument], Reading]) -> Reading:
        """Add the control's numbers, which `show` measures, to a reading that has any, under `<tag>_shuffled`."""
        if self._shuffled is None or not reading.scalars:
            return reading
        found = show(self._shuffled).scalars
        controls = {quantities.shuffled(tag): value for tag, value in found.items() if tag not in self._order_free}
        return replace(reading, scalars={**reading.scalars, **controls})

    def reset(self) -> None:
        if self._shuffled is not None:
            self._shuffled.reset()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._shuffled is None else {"shuffled": self._shuffled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._shuffled is not None and "shuffled" in state:  # a checkpoint without a control leaves it reset
            self._shuffled.load_state_dict(state["shuffled"])


def shuffled_gradients(sample: GradientSample) -> GradientSample:
    """Return the same gradients, assigned to other examples.

    Example:
        >>> import torch
        >>> gram = torch.diag(torch.arange(3.0))
        >>> sorted(shuffled_gradients(GradientSample(3, gram=gram)).gram.diagonal().tolist())
        [0.0, 1.0, 2.0]
    """
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


def shuffled_probe(probe: ProbeReading) -> ProbeReading:
    """Return the same outputs, residuals and gradients, assigned to other examples; features stay."""
    order = _order(len(probe.residuals))
    gradients = None if probe.gradients is None else shuffled_gradients(probe.gradients)
    return replace(probe, outputs=probe.outputs[order], residuals=probe.residuals[order], gradients=gradients)


def _order(examples: int) -> Tensor:
    return torch.randperm(examples, generator=torch.Generator().manual_seed(SEED))
