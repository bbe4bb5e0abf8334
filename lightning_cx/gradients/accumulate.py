"""Add up, parameter by parameter, what one backward shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_cx.gradients.directions import Directions
from lightning_cx.gradients.graph import Operand
from lightning_cx.gradients.rules import Capture
from lightning_cx.gradients.sample import LayerGradients
from lightning_cx.gradients.sum_check import SumCheck
from lightning_cx.gradients.uses import Products, Rows, Use, add_up

_PLAIN = frozenset({"TBackward0", "ToCopyBackward0", "AliasBackward0"})


@dataclass(frozen=True)
class Request:
    """What a tap was asked for."""

    gram: bool
    norms: bool
    projections: int
    per_layer: bool
    seed: int


@dataclass
class Accumulator:
    """Running totals over parameters, in float64, before any scale.

    A parameter is contracted as soon as the last of its uses has come by, and its factors are let go.
    """

    request: Request
    parameters: Mapping[str, Tensor]
    pending: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, list[str]] = field(default_factory=dict)
    layers: dict[str, LayerGradients] = field(default_factory=dict)
    dtypes: set[torch.dtype] = field(default_factory=set)
    check: SumCheck = field(default_factory=SumCheck)
    gram: Tensor | None = None
    squared_norms: Tensor | None = None
    projections: Tensor | None = None
    _uses: dict[str, list[Use]] = field(default_factory=dict)

    def expect(self, name: str, node: str) -> None:
        """Announce one use of a parameter."""
        self.pending[name] = self.pending.get(name, 0) + 1
        self.nodes.setdefault(name, []).append(node)

    def see(self, operand: Operand, capture: Capture, gradient: Tensor | None) -> None:
        """Take the gradient that arrived for one announced use; None means zero."""
        name = operand.name
        if self.pending[name] == 0:
            raise RuntimeError("the backward ran a second time before finish()")
        self.pending[name] -= 1
        if gradient is not None:
            self.dtypes.add(gradient.dtype)
            self._uses.setdefault(name, []).append(self._on_parameter(operand, capture(gradient)))
        if self.pending[name] == 0 and name in self._uses:
            self._contract(name, add_up(self._uses.pop(name)))

    def fill(self, n: int) -> None:
        """Put zeros where no gradient came by at all."""
        request, like = self.request, next(iter(self.parameters.values()))

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=like.device)

        if request.gram and self.gram is None:
            self.gram = zeros(n, n)
        if request.norms and self.squared_norms is None:
            self.squared_norms = zeros(n)
        if request.projections and self.projections is None:
            self.projections = zeros(n, request.projections)

    def _on_parameter(self, operand: Operand, use: Use) -> Use:
        """Bring the use of a rearranged parameter back to the parameter, where that makes a difference."""
        names = [step.node.name() for step in operand.path]
        if _PLAIN.issuperset(names) and isinstance(use, Products):
            return use.transposed if names.count("TBackward0") % 2 else use
        alone = self.pending[operand.name] == 0 and operand.name not in self._uses
        if not names or (alone and not self.request.projections and all(step.isometric for step in operand.path)):
            return use
        rows = use.rows()
        for step in reversed(operand.path):
            rows = step.lift(rows)
        return Rows(rows)

    def _contract(self, name: str, use: Use) -> None:
        request = self.request
        gram = use.gram().double() if request.gram else None
        if gram is not None:
            self.check.sums[name] = torch.stack([gram.sum(), gram.diagonal().sum()])
        norms = None
        if request.norms:
            norms = use.squared_norms().double() if gram is None else gram.diagonal()
        projections = None
        if request.projections:
            parameter = self.parameters[name]
            shape = tuple(parameter.shape)
            directions = Directions.draw(name, shape, request.projections, request.seed, parameter)
            projections = use.project(directions).double()
        kept = (gram, norms) if request.per_layer else (None, None)
        self.layers[name] = LayerGradients("+".join(self.nodes[name]), *kept)
        self.gram = _plus(self.gram, gram)
        self.squared_norms = _plus(self.squared_norms, norms)
        self.projections = _plus(self.projections, projections)


def _plus(total: Tensor | None, value: Tensor | None) -> Tensor | None:
    if value is None:
        return total
    return value if total is None else total + value
