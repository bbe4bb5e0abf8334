"""The registry of rules: one for each autograd node that can consume a parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from lightning_cx.gradients.errors import UnsupportedGradientError
from lightning_cx.gradients.graph import Node, Operand
from lightning_cx.gradients.layout import Layout
from lightning_cx.gradients.uses import Use, working

Capture = Callable[[Tensor], Use]


@dataclass(frozen=True)
class Joint:
    """A capture whose node has several outputs and whose operands share costly work, as recurrent layers do.

    Attributes:
        prepare: What all operands of the node need, from the node and the gradients of all its outputs (None: zero);
            run once a backward.
        use: The use of the operand at hand, from what was prepared.
    """

    prepare: Callable[[Node, Sequence[Tensor | None]], Any]
    use: Callable[[Any], Use]

    def given(self, once: Callable[[Callable[..., Any]], Any]) -> Capture:
        """The plain capture, where `once` runs a preparation or remembers what it gave."""
        return lambda _: self.use(once(self.prepare))


@dataclass(frozen=True)
class Site:
    """A node that consumes a parameter, as a rule sees it."""

    node: Node
    operand: Operand
    layout: Layout

    @property
    def batch_size(self) -> int:
        return self.layout.batch_size

    def refuse(self, why: str) -> NoReturn:
        raise UnsupportedGradientError(f"{self.node.name()} of {self.operand.name}", why)

    def split(self, shape: tuple[int, ...], keep: int) -> Callable[[Tensor], Tensor]:
        """How to bring tensors of `shape`, whose last `keep` axes may differ, to [N, T, ...] in working precision."""
        lead = shape[: len(shape) - keep]
        if not lead:
            self.refuse(f"it spans every axis of {shape}, examples included")
        split = self.layout.split(lead, self.node, self.operand.name)
        return lambda tensor: split(working(tensor))

    def require_batch_first(self, shape: tuple[int, ...]) -> None:
        if shape[0] != self.batch_size:
            self.refuse(f"the first axis of {shape} is not the batch size {self.batch_size}")


Rule = Callable[[Site], Capture | Joint]
RULES: dict[str, Rule] = {}
COUPLING: dict[str, Callable[[Node], bool]] = {}  # nodes that mix examples, with the test for when they do


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the autograd nodes with these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def plan(site: Site) -> Capture | Joint:
    """Return the capture of one use of one parameter.

    Raises:
        UnsupportedGradientError: If no rule reads this node, or the rule declines; names node and parameter.
    """
    found = RULES.get(site.node.name())
    if found is None:
        site.refuse("no rule reads this node")
    return found(site)
