"""Read the number of examples off a loss."""

from __future__ import annotations

from torch import Tensor

from lightning_cx.gradients.graph import OF_ONE_TENSOR, VIEWS, Node, output_shape


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
