"""Tell which axis of a tensor holds the examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor

from lightning_cx.gradients.errors import AmbiguousLayoutError, UnsupportedGradientError
from lightning_cx.gradients.graph import OF_ONE_TENSOR, VIEWS, Graph, Node, output_shape

Split = Callable[[Tensor], Tensor]  # any leading axes -> [N, T, ...]


class Layout:
    """Finds the axis of the examples from shapes, and asks where shapes cannot tell.

    Args:
        graph: The graph that the nodes belong to.
        batch_size: Number of examples N.
        batch_first: Answer where shapes leave more than one reading, such as two axes that are both N long: True
            (examples lead) or False, or one answer for each parameter name; None refuses such a parameter by name.
    """

    def __init__(self, graph: Graph, batch_size: int, batch_first: bool | Mapping[str, bool] | None) -> None:
        self.graph = graph
        self.batch_size = batch_size
        self.batch_first = batch_first

    def split(self, lead: tuple[int, ...], node: Node, name: str) -> Split:
        """Return a function that brings tensors [*lead, ...] of a node's output to [N, T, ...]."""
        n = self.batch_size
        if n == 1:
            return lambda t: t.reshape(1, prod(lead), *t.shape[len(lead) :])
        places = [axis for axis, size in enumerate(lead) if size == n]
        if 0 not in places and lead and lead[0] and lead[0] % n == 0:
            unstacked = self._unstacked(node, lead[0])
            if unstacked is not None:  # the first axis holds the examples and something else
                split = self.split((*unstacked, *lead[1:]), node, name)
                return lambda t: split(t.reshape(*unstacked, *t.shape[1:]))
            if not places:
                return self._split_rows(lead, node, name)
        if not places:
            raise UnsupportedGradientError(
                f"{node.name()} of {name}",
                f"{lead[0]} rows are no multiple of the batch size {n}"
                if len(lead) == 1
                else f"no axis of {lead} has the batch size {n}",
            )
        axis = places[0]
        if len(places) > 1 and not self._ask(f"more than one axis of {lead} may hold the {n} examples", node, name):
            axis = places[1]
        return lambda t: t.movedim(axis, 0).reshape(n, prod(lead) // n, *t.shape[len(lead) :])

    def _split_rows(self, lead: tuple[int, ...], node: Node, name: str) -> Split:
        n, rows = self.batch_size, lead[0]
        if self._ask(f"{rows} rows may be stacked example by example or position by position", node, name):
            return lambda t: t.reshape(n, prod(lead) // n, *t.shape[len(lead) :])
        return lambda t: t.reshape(rows // n, n, *t.shape[1:]).movedim(1, 0).reshape(n, -1, *t.shape[len(lead) :])

    def _unstacked(self, node: Node, rows: int) -> tuple[int, ...] | None:
        """The leading axes that were stacked into `rows`, seen in the nearest view."""
        queue, seen = [node], {node}
        while queue:
            here = queue.pop(0)
            neighbours = [parent for parent, _, _ in self.graph.parents.get(here, [])]
            neighbours += [child for child, _ in here.next_functions if child is not None]
            for near in neighbours:
                if hasattr(near, "variable"):  # a parameter with as many rows has nothing to do with the batch
                    continue
                shape = output_shape(near) if near._input_metadata else ()
                touches_view = near.name() in VIEWS or here.name() in VIEWS
                lead = _stacked_to(shape, rows) if touches_view else None
                if lead is not None:
                    return lead
                if near not in seen and len(shape) > 0 and shape[0] == rows:
                    seen.add(near)
                    queue.append(near)
        return None

    def _ask(self, why: str, node: Node, name: str) -> bool:
        """Return the caller's word on whether examples lead.

        Raises:
            AmbiguousLayoutError: If the caller said nothing about this parameter.
        """
        if isinstance(self.batch_first, Mapping):
            answer = self.batch_first.get(name)
        else:
            answer = None if self._turns_axes() else self.batch_first
        if answer is None:
            raise AmbiguousLayoutError(
                f"{node.name()} of {name}",
                f"{why}, so the axis of the examples is ambiguous: use a batch of another size, or pass "
                "batch_first={parameter name: True or False} to GradientTap, which "
                "lightning_cx.gradients.find_layout finds out",
            )
        return answer

    def _turns_axes(self) -> bool:
        """Whether first and second axis change places somewhere, so that one answer does not fit all parameters."""
        turns = (node for node in self.graph.parents if node.name() == "TransposeBackward0")
        return any(len(output_shape(node)) > 2 and {node._saved_dim0, node._saved_dim1} == {0, 1} for node in turns)


def _stacked_to(shape: tuple[int, ...], rows: int) -> tuple[int, ...] | None:
    """The leading axes, two or more, whose product is `rows`."""
    return next(
        (shape[:k] for k in range(2, len(shape) + 1) if prod(shape[:k]) == rows and rows not in shape[:k]), None
    )


def infer_batch_size(loss: Tensor) -> int:
    """Read the number of examples off the graph of a scalar loss: the first axis of what it averages over.

    Examples have to lead there: of a loss over [T, N, C] the number of positions is read, unless an embedding shows
    that its indices are [N, T].

    Raises:
        ValueError: If the branches of the loss disagree or show no axis; pass `batch_size` then.
    """
    sizes: set[int] = set()
    tables: list[tuple[int, ...]] = []
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or hasattr(node, "variable"):
            continue
        seen.add(node)
        shape = output_shape(node)
        if len(shape) == 0:
            waiting.extend(child for child, _ in node.next_functions)
        elif not _is_of_parameters(node):
            sizes.add(_unflattened(node, shape[0]))
            tables += _looked_up(node)
    if len(sizes) == 1 and any(next(iter(sizes)) == shape[1] != shape[0] > 1 for shape in tables):
        sizes.update(shape[0] for shape in tables)
    if len(sizes) != 1:
        raise ValueError(f"the batch size cannot be read off the loss (candidates {sorted(sizes)}): pass batch_size=")
    return sizes.pop()


def _is_of_parameters(node: Node) -> bool:
    """Whether a node is made of one parameter alone, as the inside of a penalty is."""
    while not hasattr(node, "variable"):
        children = {child for child, _ in node.next_functions}
        if len(children) != 1 or None in children or node.name() not in OF_ONE_TENSOR:
            return False
        node = children.pop()
    return True


def _looked_up(node: Node) -> list[tuple[int, ...]]:
    """Shapes of the indices of all embeddings below a node that look up more than one axis of them."""
    waiting, seen, shapes = [node], {node}, []
    while waiting:
        here = waiting.pop()
        if here.name() == "EmbeddingBackward0" and here._saved_indices.dim() > 1:
            shapes.append(tuple(here._saved_indices.shape))
        fresh = {child for child, _ in here.next_functions if child is not None} - seen
        seen |= fresh
        waiting += fresh
    return shapes


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
