"""How the place of the examples passes an autograd node, from its output to its inputs."""

from __future__ import annotations

from collections.abc import Callable

from lightning_cx.gradients.graph import VIEWS, Node
from lightning_cx.gradients.places import SHARED, Shape, locate, stride_at

Inputs = list["int | str"]  # for each input its place, or why it is not known any more


class MixedError(Exception):
    """The node lets entries of the supposed axis of examples act on each other, so it is another axis."""


class Passage:
    """One output of a node, the place of the examples in it, and the shapes of the node's inputs.

    Attributes:
        node: The node.
        name: Its name.
        output: Which output.
        shape: Shape of that output.
        inputs: Shapes of the inputs; None for data and constants.
        stride: The place of the examples in the output.
        n: Number of examples.
        axis: The axis of the output that holds them, -1 if they are spread over several.
        inner: What they are interleaved with on that axis.
    """

    __slots__ = ("axis", "inner", "inputs", "n", "name", "node", "output", "shape", "stride")

    def __init__(self, node: Node, output: int, shape: Shape, inputs: list[Shape | None], stride: int, n: int) -> None:
        self.node, self.name, self.output, self.shape, self.inputs = node, node.name(), output, shape, inputs
        self.stride, self.n = stride, n
        self.axis, self.inner = locate(shape, stride, n) or (-1, 0)

    def refuse(self, what: str) -> MixedError:
        return MixedError(f"{self.name} {what}")

    def everywhere(self, place: int | str) -> Inputs:
        return [place] * len(self.inputs)

    def at(self, index: int, axis: int) -> int | str:
        """The place of examples on an axis of an input, in the order that they have in the output."""
        shape = self.inputs[index]
        if shape is None:
            return SHARED
        if not 0 <= axis < len(shape) or shape[axis] % (self.inner * self.n):
            return f"{self.name} changes how many rows there are"
        return stride_at(shape, axis, self.inner)

    def saved_axis(self, name: str, rank: int) -> int:
        return signed(getattr(self.node, name)) % max(rank, 1)


def signed(number: int) -> int:
    """Autograd gives negative axes as unsigned numbers."""
    return number - (1 << 64) if number >= 1 << 63 else number


Transfer = Callable[[Passage], Inputs]
TRANSFERS: dict[str, Transfer] = {}


def transfer(*names: str) -> Callable[[Transfer], Transfer]:
    """Register how places pass the nodes with these names."""

    def register(function: Transfer) -> Transfer:
        TRANSFERS.update(dict.fromkeys(names, function))
        return function

    return register


# Nodes that act along every axis but examples and channels.
_SPATIAL = (
    "AvgPool", "MaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "MkldnnAdaptive", "MkldnnMaxPool",
    "Upsample", "ReflectionPad", "ReplicationPad", "GridSampler", "Im2Col", "Col2Im",
)  # fmt: skip


def send_down(passage: Passage) -> Inputs:
    """Return the place of the examples in each input of a node.

    Raises:
        MixedError: If examples cannot lie there.
    """
    node = passage.node
    found = TRANSFERS.get(passage.name)
    if found is not None:
        return found(passage)
    if hasattr(node, "_saved_keepdim") and hasattr(node, "_saved_dim"):
        return _reduced(passage)
    if passage.axis > 1 and passage.name.startswith(_SPATIAL):
        raise passage.refuse("acts along it")
    return _entry_by_entry(passage)


def _entry_by_entry(passage: Passage) -> Inputs:
    """Broadcasting from the right, as most nodes do; pooling and the like keep their leading axes."""
    return [_aligned(passage, i) for i in range(len(passage.inputs))]


def _aligned(passage: Passage, index: int) -> int | str:
    shape, out, axis = passage.inputs[index], passage.shape, passage.axis
    if shape is None:
        return SHARED
    if shape == out:
        return passage.stride
    if axis < 0:
        return f"{passage.name} follows after the examples were spread over several axes"
    missing = len(out) - len(shape)
    if missing >= 0 and all(size in (1, out[missing + k]) for k, size in enumerate(shape)):
        return SHARED if axis < missing or shape[axis - missing] == 1 else passage.at(index, axis - missing)
    if shape[: axis + 1] == out[: axis + 1]:
        return passage.at(index, axis)
    return f"{passage.name} changes the shape in a way that is not known"


def _reduced(passage: Passage) -> Inputs:
    """Sums, means, maxima and the like over some axes."""
    shape = passage.inputs[0]
    if shape is None or passage.axis < 0:
        return passage.everywhere("" if shape is None else f"{passage.name} sums after examples were spread")
    dims = passage.node._saved_dim
    dims = dims if isinstance(dims, tuple) else (dims,)
    gone = {signed(d) % max(len(shape), 1) for d in dims} or set(range(len(shape)))
    if passage.node._saved_keepdim:
        return [passage.at(0, passage.axis)]
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    return [passage.at(0, kept[passage.axis])]


@transfer(*VIEWS, "AliasBackward0", "CloneBackward0", "ToCopyBackward0", "ContiguousBackward0")
@transfer("SqueezeBackward0", "SqueezeBackward1", "SqueezeBackward2", "UnsqueezeBackward0")
def _view(passage: Passage) -> Inputs:
    return passage.everywhere(passage.stride)


@transfer("TBackward0", "TransposeBackward0", "TransposeBackward1", "PermuteBackward0")
def _turn(passage: Passage) -> Inputs:
    rank = len(passage.shape)
    order = list(range(rank))
    if passage.name == "PermuteBackward0":
        order = [signed(axis) % rank for axis in passage.node._saved_dims]
    elif rank > 1:
        pair = (0, 1) if passage.name == "TBackward0" else None
        a, b = pair or (passage.saved_axis("_saved_dim0", rank), passage.saved_axis("_saved_dim1", rank))
        order[a], order[b] = order[b], order[a]
    if passage.axis < 0:
        return [f"{passage.name} turns axes over which the examples are spread"]
    return [passage.at(0, order[passage.axis])]


@transfer("ExpandBackward0", "RepeatBackward0")
def _spread(passage: Passage) -> Inputs:
    shape = passage.inputs[0]
    axis = passage.axis - (len(passage.shape) - len(shape or ()))
    if passage.axis < 0:
        return ["" if shape is None else f"{passage.name} spreads what examples share an axis with"]
    return [SHARED if shape is None or axis < 0 or shape[axis] == 1 else passage.at(0, axis)]


@transfer("SelectBackward0", "UnbindBackward0")
def _select(passage: Passage) -> Inputs:
    cut = passage.saved_axis("_saved_dim", len(passage.shape) + 1)
    return [passage.at(0, passage.axis + (passage.axis >= cut))]


@transfer("StackBackward0")
def _stack(passage: Passage) -> Inputs:
    new = passage.saved_axis("_saved_dim", len(passage.shape))
    if passage.axis == new:
        return passage.everywhere("StackBackward0 puts examples together that were read one by one")
    return [passage.at(i, passage.axis - (passage.axis > new)) for i in range(len(passage.inputs))]


@transfer("SliceBackward0", "SplitBackward0", "UnsafeSplitBackward0", "SplitWithSizesBackward0")
def _slice(passage: Passage) -> Inputs:
    cut, shape = passage.saved_axis("_saved_dim", len(passage.shape)), passage.inputs[0]
    start = 0
    if passage.axis == cut and shape is not None and shape != passage.shape:
        start = _start(passage, cut, shape[cut])
        if start % (passage.inner * passage.n):
            return [f"{passage.name} picks or reorders rows"]
    return [passage.at(0, passage.axis)]


def _start(passage: Passage, cut: int, size: int) -> int:
    """Where on the cut axis an output begins; 1, which no batch divides, if it is not one stretch."""
    node = passage.node
    if passage.name == "SliceBackward0":
        begin = signed(node._saved_start)
        return (begin + size if begin < 0 else begin) if node._saved_step == 1 else 1
    if passage.name == "SplitWithSizesBackward0":
        return sum(node._saved_split_sizes[: passage.output])
    return passage.output * node._saved_split_size


@transfer("CatBackward0")
def _cat(passage: Passage) -> Inputs:
    if passage.axis != passage.saved_axis("_saved_dim", len(passage.shape)):
        return [passage.at(i, passage.axis) for i in range(len(passage.inputs))]
    unit = passage.inner * passage.n
    if any(shape is None or len(shape) <= passage.axis or shape[passage.axis] % unit for shape in passage.inputs):
        return passage.everywhere("CatBackward0 picks or reorders rows")
    return [passage.at(i, passage.axis) for i in range(len(passage.inputs))]


@transfer("MmBackward0", "BmmBackward0", "AddmmBackward0", "BaddbmmBackward0", "MvBackward0", "AddmvBackward0")
def _product(passage: Passage) -> Inputs:
    """Rows of the left operand become rows, columns of the right one columns; a batch of products leads in both."""
    batched, axis = "bmm" in passage.name.lower(), passage.axis
    shifted = passage.name.startswith(("Add", "Badd"))
    left, right = (1, 2) if shifted else (0, 1)
    places: Inputs = passage.everywhere(SHARED)
    if axis < 0:
        return passage.everywhere(f"{passage.name} follows after the examples were spread over several axes")
    if shifted:
        places[0] = _aligned(passage, 0)
    if batched and axis == 0:
        places[left], places[right] = passage.at(left, 0), passage.at(right, 0)
    elif axis == int(batched):
        places[left] = passage.at(left, axis)
    else:
        places[right] = passage.at(right, axis)
    return places


@transfer("EmbeddingBackward0", "EmbeddingBagBackward0")
def _look_up(passage: Passage) -> Inputs:
    if passage.axis == len(passage.shape) - 1:
        raise passage.refuse("looks up this axis in a table")
    return passage.everywhere(SHARED)
