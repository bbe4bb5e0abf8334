"""Object where shapes suggest an axis of examples but the graph around it says otherwise.

A table of N positions, a weight computed from N rows and a batch that was reordered half-way all have an axis as
long as the batch; only what stands around them tells that its entries are not the examples. Gram matrices read
there would pass the sum check and be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lightning_cx.gradients.graph import REARRANGING, Graph, Node, output_shape

_TURNING = frozenset({"PermuteBackward0", "TBackward0", "TransposeBackward0"})
_KEEPING_ORDER = REARRANGING - _TURNING - {"SelectBackward0", "SliceBackward0", "UnbindBackward0"}
_ELEMENTWISE = frozenset(
    {"AddBackward0", "DivBackward0", "ExpandBackward0", "MulBackward0", "SubBackward0", "WhereBackward0"}
)
# Inputs of these nodes that the whole batch shares: weights, shifts, tables.
_SHARED_INPUTS = {
    "AddmmBackward0": (2,),
    "ConvolutionBackward0": (1, 2),
    "CudnnBatchNormBackward0": (1, 2),
    "EmbeddingBackward0": (0,),
    "MmBackward0": (1,),
    "NativeBatchNormBackward0": (1, 2),
    "NativeGroupNormBackward0": (1, 2),
    "NativeLayerNormBackward0": (1, 2),
}
_MEAN = 1  # as ATen numbers the reductions of a loss
_PRODUCTS = frozenset({"AddmmBackward0", "MmBackward0"})
_REORDERING = frozenset(
    {
        "CatBackward0",
        "FlipBackward0",
        "GatherBackward0",
        "IndexAddBackward0",
        "IndexBackward0",
        "IndexCopyBackward0",
        "IndexPutBackward0",
        "IndexSelectBackward0",
        "MaskedSelectBackward0",
        "RollBackward0",
        "ScatterAddBackward0",
        "ScatterBackward0",
        "SortBackward0",
        "TakeBackward0",
        "TopkBackward0",
    }
)


class Flow:
    """What happens to the examples' axis between a consumer of parameters and the loss."""

    def __init__(self, graph: Graph, batch_size: int) -> None:
        self._graph, self._n = graph, batch_size
        if batch_size == 1:  # every axis of one example is its own
            self._shared, self._weights, self._reordered = {}, {}, {}
            return
        self._shared = self._spread_down(self._broadcasts(), _keeps_first_axis)
        self._weights = self._spread_down(self._shared_inputs(), _keeps_entries)
        self._reordered = self._spread_up(node for node in graph.parents if self._reorders(node))

    def objection(self, node: Node) -> str | None:
        """Why the rows of a consumer's output are not the examples, or None."""
        if node in self._shared:
            return f"its output is shared by all examples: {self._shared[node].name()} broadcasts it over them"
        if node in self._reordered:
            return f"{self._reordered[node].name()} picks or reorders rows before it, so rows are not the examples"
        if node in self._weights and (self._weights[node].name() not in _PRODUCTS or self._of_constants(node)):
            return f"its output serves as a weight of {self._weights[node].name()}"
        return None

    def meets_other_examples(self, node: Node) -> bool:
        """Whether a consumer's output is the right-hand side of a matrix product, as in contrastive losses."""
        return node in self._weights

    def _of_constants(self, node: Node) -> bool:
        if node.name() == "EmbeddingBackward0":  # every entry once and in order is no batch
            indices = node._saved_indices
            return indices.dim() == 1 and bool((indices == indices.new_ones(()).expand_as(indices).cumsum(0) - 1).all())
        children = [child for child, _ in node.next_functions]
        return node.name() in _ELEMENTWISE and all(child is None or hasattr(child, "variable") for child in children)

    def _broadcasts(self) -> Iterable[tuple[Node, Node]]:
        """Edges on which a tensor without the axis of the examples meets one that has it."""
        for node, parents in self._graph.parents.items():
            for parent, index, output in parents:
                if parent.name() in _ELEMENTWISE and not hasattr(node, "variable"):
                    here, out = output_shape(node, output), output_shape(parent)
                    if self._lacks_examples(here, out) and not _grows(parent, index, out):
                        yield node, parent

    def _lacks_examples(self, here: tuple[int, ...], out: tuple[int, ...]) -> bool:
        n, missing = self._n, len(out) - len(here)
        if not here or out[0] % n or (missing == 0 and here[0] == out[0]):
            return False
        return (missing > 0 or here[0] == 1) and (out[0] == n or not (len(out) > 2 and out[1] == n))

    def _shared_inputs(self) -> Iterable[tuple[Node, Node]]:
        for node, parents in self._graph.parents.items():
            for parent, index, output in parents:
                bias = parent.name() == "AddmmBackward0" and index == 0 and len(output_shape(node, output)) == 1
                if bias or index in _SHARED_INPUTS.get(parent.name(), ()):
                    yield node, parent

    def _reorders(self, node: Node) -> bool:
        if node.name() not in _REORDERING or all(child is None for child, _ in node.next_functions):
            return False
        shape, n = output_shape(node), self._n
        if not shape or shape[0] % n or (shape[0] != n and shape[1:2] == (n,)):
            return False  # a later layer refuses such rows, or they are steps of time
        dims = _axes(node, len(shape))
        return (dims is None or 0 in dims) and not (node.name() == "IndexBackward0" and _keeps_examples(node, n))

    def _spread_down(self, edges: Iterable[tuple[Node, Node]], passes: Callable[[Node, int], bool]) -> dict[Node, Node]:
        """Mark nodes towards the inputs of flagged edges; each mark is the node that caused it."""
        marked: dict[Node, Node] = {}
        waiting = list(edges)
        while waiting:
            node, cause = waiting.pop()
            if node in marked or hasattr(node, "variable"):
                continue
            marked[node] = cause
            functions = enumerate(node.next_functions)
            waiting += [(child, cause) for i, (child, _) in functions if child is not None and passes(node, i)]
        return marked

    def _spread_up(self, nodes: Iterable[Node]) -> dict[Node, Node]:
        marked: dict[Node, Node] = {}
        waiting = [(parent, node) for node in nodes for parent, _, _ in self._graph.parents[node]]
        while waiting:
            node, cause = waiting.pop()
            if node not in marked:
                marked[node] = cause
                waiting += [(parent, cause) for parent, _, _ in self._graph.parents.get(node, [])]
        return marked


def _grows(parent: Node, index: int, out: tuple[int, ...]) -> bool:
    """Whether both sides of a broadcast are spread, as where every example is compared with every other."""
    others = [(child, output) for i, (child, output) in enumerate(parent.next_functions) if i != index]
    return any(child is not None and _input_shape(child, output) != out for child, output in others)


def _input_shape(child: Node, output: int) -> tuple[int, ...]:
    return tuple(child.variable.shape) if hasattr(child, "variable") else output_shape(child, output)


def _keeps_first_axis(node: Node, index: int) -> bool:
    """Whether the first axis of a node's output is the first axis of its input `index`, at least in order."""
    if node.name() in _KEEPING_ORDER:
        return True
    child, output = node.next_functions[index]
    here, out = _input_shape(child, output), output_shape(node)
    return len(here) == len(out) and here[0] == out[0] and index not in _SHARED_INPUTS.get(node.name(), ())


def _keeps_entries(node: Node, index: int) -> bool:
    """Whether a node hands on its input entry by entry: a weight before it is a weight behind it."""
    child, output = node.next_functions[index]
    if node.name() in REARRANGING or node.name() in _ELEMENTWISE:
        return True
    single = sum(other is not None for other, _ in node.next_functions) == 1
    return single and node.name() not in _SHARED_INPUTS and _input_shape(child, output) == output_shape(node)


def _axes(node: Node, rank: int) -> set[int] | None:
    """The axes along which a node moves entries; None if it does not say."""
    for name in ("_saved_dims", "_saved_dim"):
        if hasattr(node, name):
            saved = getattr(node, name)
            saved = saved if isinstance(saved, tuple) else (saved,)
            return {(axis - (1 << 64) if axis >= 1 << 63 else axis) % rank for axis in saved}
    return None


def _keeps_examples(node: Node, n: int) -> bool:
    """Whether an index takes one entry of each example in order, as in `x[arange(n), last]`, or leaves them alone."""
    indices = node._saved_indices
    if not indices or indices[0] is None:
        return True
    return any(i is not None and i.dim() == 1 and len(i) == n and i.tolist() == list(range(n)) for i in indices)


def shares_are_uneven(graph: Graph, batch_size: int) -> bool:
    """Whether a cross entropy divides by class weights, or by how many examples were not ignored, instead of by N."""
    nodes = {parent for uses in graph.parents.values() for parent, _, _ in uses}
    for node in nodes:
        if node.name() in ("NllLossBackward0", "NllLoss2DBackward0") and node._saved_reduction == _MEAN:
            ignored = node._saved_target.numel() == batch_size != float(node._saved_total_weight)
            if node._saved_weight is not None or ignored:
                return True
    return False
