"""Bring the tensors of a node to one row of positions for each example."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import Tensor

from lightning_cx.gradients.errors import AmbiguousLayoutError, UnsupportedGradientError
from lightning_cx.gradients.flow import Flow
from lightning_cx.gradients.graph import Node, output_shape
from lightning_cx.gradients.places import SHARED, candidates, fits, gather, locate

Split = Callable[[Tensor], Tensor]  # any leading axes -> [N, T, ...]


class Layout:
    """Where the examples lie in the tensors of one graph.

    Args:
        root: The node of the loss.
        batch_size: Number of examples N.
        batch_first: Whether the examples lead in what the loss averages over, where the graph leaves two readings;
            None refuses such a graph.
    """

    def __init__(self, root: Node, batch_size: int, batch_first: bool | None) -> None:
        self.batch_size = batch_size
        self.flow = Flow(root, batch_size, batch_first)
        self._batch_first = batch_first
        self.guessed: set[Node] = set()

    def split(self, lead: tuple[int, ...], node: Node, name: str) -> Split:
        """Return a function that brings tensors [*lead, ...] of a node's first output to [N, T, ...].

        Raises:
            AmbiguousLayoutError: If the graph leaves more than one reading and the caller said nothing.
            UnsupportedGradientError: If the rows of the node are not the examples, or cannot be told to be.
        """
        n = self.batch_size
        if n == 1:
            return lambda t: t.reshape(1, prod(lead), *t.shape[len(lead) :])
        stride, shape = self.place(node, name), output_shape(node)
        rows, rest = divmod(stride, prod(shape[len(lead) :]))
        if rest or not fits(lead, rows, n):
            raise UnsupportedGradientError(
                f"{node.name()} of {name}", f"an axis that it computes over holds the {n} examples of {shape}"
            )
        return gather(lead, rows, n)

    def place(self, node: Node, name: str) -> int:
        """The stride of the examples in a node's output.

        Raises:
            AmbiguousLayoutError: As in `split`.
            UnsupportedGradientError: As in `split`.
        """
        flow, where = self.flow, f"{node.name()} of {name}"
        if flow.ambiguous:
            raise AmbiguousLayoutError(
                where,
                f"{flow.ambiguous} {self.batch_size} examples, so their axis is ambiguous: use a batch of another "
                "size, or pass batch_first=True or False, which lightning_cx.gradients.find_layout finds out",
            )
        place = next((flow.reading.places[key] for key in self._outputs(node) if flow.reading.places.get(key)), None)
        if place is not None:
            return place
        lost = next((flow.reading.lost[key] for key in self._outputs(node) if key in flow.reading.lost), None)
        if lost is not None and "reorders" in lost:
            raise UnsupportedGradientError(where, f"{lost} between it and the loss, so rows are not the examples")
        if flow.reading.places.get((node, 0)) == SHARED:
            raise UnsupportedGradientError(where, "its output is shared by all examples")
        return self._guess(node, where, lost or flow.died)

    def axis(self, node: Node, name: str) -> tuple[int, int]:
        """The axis of a node's output that holds the examples, and what they are interleaved with inside it."""
        shape, stride = output_shape(node), self.place(node, name)
        found = locate(shape, stride, self.batch_size)
        if found is None:
            raise UnsupportedGradientError(f"{node.name()} of {name}", f"examples are spread over axes of {shape}")
        return found

    def _outputs(self, node: Node) -> list[tuple[Node, int]]:
        return [(node, output) for output in range(len(node._input_metadata))]

    def _guess(self, node: Node, where: str, why: str) -> int:
        """Where examples act on each other no supposition survives: take the one axis that is as long as the batch."""
        shape, n = output_shape(node), self.batch_size
        own, stacked = candidates(shape, n)
        if not own and stacked and shape[0] % n == 0 and self._batch_first is not None:
            own = [stacked[0] if self._batch_first else stacked[-1]]
        if not own:
            raise UnsupportedGradientError(
                where,
                f"{shape[0]} rows are no multiple of the batch size {n}"
                if len(shape) == 2 and shape[0] % n
                else f"no axis of {shape} is known to hold the {n} examples" + (f": {why}" if why else ""),
            )
        if len(own) > 1 and self._batch_first is None:
            raise AmbiguousLayoutError(where, f"more than one axis of {shape} may hold the {n} examples")
        self.guessed.add(node)
        return own[0 if self._batch_first in (True, None) else -1]
