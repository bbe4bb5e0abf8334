"""Tell which axis of a tensor holds the examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor

from lightning_cx.gradients.errors import AmbiguousLayoutError, UnsupportedGradientError
from lightning_cx.gradients.graph import VIEWS, Graph, Node, output_shape

Split = Callable[[Tensor], Tensor]  # any leading axes -> [N, T, ...]


class Layout:
    """Finds the axis of the examples from shapes, and asks where shapes cannot tell.

    Args:
        graph: The graph that the nodes belong to.
        batch_size: Number of examples N.
        batch_first: Answer where the first two axes are both N long: True or False, or one answer for each
            parameter name; None refuses such a parameter by name.
    """

    def __init__(self, graph: Graph, batch_size: int, batch_first: bool | Mapping[str, bool] | None) -> None:
        self.graph = graph
        self.batch_size = batch_size
        self.batch_first = batch_first
        self.ambiguous: set[str] = set()

    def axis(self, shape: tuple[int, ...], node: Node, name: str) -> int:
        """Return 0 or 1, the axis of `shape` that holds the examples."""
        n = self.batch_size
        first = len(shape) > 0 and shape[0] == n
        second = len(shape) > 2 and shape[1] == n
        if first and second and n > 1:
            return self._ask(node, name)
        if first or second:
            return 0 if first else 1
        raise UnsupportedGradientError(f"{node.name()} of {name}", f"no axis of {shape} has the batch size {n}")

    def split_leading(self, shape: tuple[int, ...], keep: int, node: Node, name: str) -> Split:
        """Return a function that brings tensors laid out like `shape`, but for its last `keep` axes, to [N, T, ...]."""
        n, lead = self.batch_size, shape[: len(shape) - keep]
        if len(lead) == 1 and lead[0] != n:
            return self.split_rows(lead[0], node, name)
        if self.axis(shape, node, name) == 0:
            return lambda t: t.reshape(n, prod(lead) // n, *t.shape[len(lead) :])
        return lambda t: t.transpose(0, 1).reshape(n, prod(lead) // n, *t.shape[len(lead) :])

    def split_rows(self, rows: int, node: Node, name: str) -> Split:
        """Return a function that brings a tensor [rows, ...] of stacked positions to [N, T, ...]."""
        n = self.batch_size
        if rows == n:
            return lambda t: t.unsqueeze(1)
        if rows % n or not rows:
            raise UnsupportedGradientError(
                f"{node.name()} of {name}", f"{rows} rows are no multiple of the batch size {n}"
            )
        positions = rows // n
        shape = self._unstacked(node, rows)
        # Without any view beside the node, rows are stacked as PyTorch stacks a [N, T, ...] tensor.
        if shape is None or self.axis(shape, node, name) == 0:
            return lambda t: t.reshape(n, positions, *t.shape[1:])
        return lambda t: t.reshape(positions, n, *t.shape[1:]).transpose(0, 1)

    def _unstacked(self, node: Node, rows: int) -> tuple[int, ...] | None:
        """Shape of the tensor whose leading axes were stacked into `rows`, seen in the nearest view."""
        queue, seen = [node], {node}
        while queue:
            here = queue.pop(0)
            neighbours = [parent for parent, _, _ in self.graph.parents.get(here, [])]
            neighbours += [child for child, _ in here.next_functions if child is not None]
            for near in neighbours:
                shape = output_shape(near) if hasattr(near, "_input_metadata") and near._input_metadata else ()
                touches_view = near.name() in VIEWS or here.name() in VIEWS
                if touches_view and len(shape) > 2 and shape[0] * shape[1] == rows:
                    return shape
                if near not in seen and len(shape) > 0 and shape[0] == rows:
                    seen.add(near)
                    queue.append(near)
        return None

    def _ask(self, node: Node, name: str) -> int:
        self.ambiguous.add(name)
        answer = self.batch_first.get(name) if isinstance(self.batch_first, Mapping) else self.batch_first
        if answer is None:
            raise AmbiguousLayoutError(
                f"{node.name()} of {name}",
                f"its first two axes are both {self.batch_size} long, so the axis of the examples is ambiguous: "
                "pass batch_first=True or False, or use a batch of another size",
            )
        return 0 if answer else 1


def infer_batch_size(loss: Tensor) -> int:
    """Read the number of examples off the graph of a scalar loss: the first axis of what it averages over.

    Raises:
        ValueError: If the branches of the loss disagree or show no axis; pass `batch_size` then.
    """
    sizes: set[int] = set()
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or hasattr(node, "variable"):
            continue
        seen.add(node)
        shape = output_shape(node)
        if len(shape) == 0:
            waiting.extend(child for child, _ in node.next_functions)
        else:
            sizes.add(_unflattened(node, shape[0]))
    if len(sizes) != 1:
        raise ValueError(f"the batch size cannot be read off the loss (candidates {sorted(sizes)}): pass batch_size=")
    return sizes.pop()


def _unflattened(node: Node, rows: int) -> int:
    """Follow positions that were stacked for the loss, [N T, C], back to [N, T, C]."""
    while True:
        children = [child for child, _ in node.next_functions if child is not None]
        if len(children) != 1 or hasattr(children[0], "variable"):
            return rows
        shape = output_shape(children[0])
        if node.name() in VIEWS and len(shape) > 2 and shape[0] * shape[1] == rows:
            return shape[0]
        if not shape or shape[0] != rows:
            return rows
        node = children[0]
