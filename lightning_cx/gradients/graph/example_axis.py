"""How the axis of examples moves through the graph, from the loss down to every node that consumes a parameter.

Shapes alone cannot tell where the examples lie: a table of N positions, N features, a weight made of N rows and a
batch that was reordered half-way all have an axis as long as the batch, and Gram matrices read along it pass the sum
check. What tells is that examples do not act on each other. Each axis of what the loss averages over is supposed to
hold the examples, in turn, and sent down the graph: a supposition dies where a node mixes its axis (a softmax along
it, a layer that sums over it, a parameter that has it), and usually one survives.

Why strides: in row-major order the example of element e is (e // stride) % N. The *stride* of the examples says where
they lie, whether they have an axis of their own ([N, T, d]: T d, [T, N, d]: d) or share one with something else
([N T, d]: T d, [T N, d]: d), and a view leaves it as it is; the number of an axis says less and would have to be
worked out anew at each view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from math import prod

from torch import Tensor

from lightning_cx._torch import has_saved, is_leaf, output_metadata, output_shape, saved
from lightning_cx.gradients.errors import AmbiguousLayoutError, UnsupportedGradientError
from lightning_cx.gradients.graph.loss_terms import LossTerm, loss_terms
from lightning_cx.gradients.graph.nodes import Node, record_of, signed
from lightning_cx.gradients.graph.walk import input_edges, inputs, walk

Shape = tuple[int, ...]
EVEN = 1e-6  # up to which counts are the same
Key = tuple[Node, int]  # one output of one node
Strides = list["int | str"]  # for each input the stride of the examples, or why it is not known any more
SHARED = 0  # the stride of a tensor that all examples share


class MixedError(Exception):
    """A node mixes entries along the supposed axis of examples, so it is another axis."""


# Strides


def locate(shape: Shape, stride: int, n: int) -> tuple[int, int] | None:
    """Return the axis that holds the examples and the length of what they are interleaved with inside it.

    None if examples are spread over more than one axis.
    """
    below = 1
    for axis in range(len(shape) - 1, -1, -1):
        if stride < below * shape[axis]:
            inner, rest = divmod(stride, below)
            return (axis, inner) if rest == 0 and shape[axis] % (inner * n) == 0 else None
        below *= shape[axis]
    return None


def stride_at(shape: Shape, axis: int, inner: int = 1) -> int:
    """Return the stride of examples that lie on `axis`, each `inner` entries long."""
    return prod(shape[axis + 1 :]) * inner


def candidates(shape: Shape, n: int) -> tuple[list[int], list[int]]:
    """Return strides that examples may have: on an axis of their own, and on an axis shared with something."""
    own = [stride_at(shape, axis) for axis, size in enumerate(shape) if size == n]
    shared = [
        stride_at(shape, axis, inner)
        for axis, size in enumerate(shape)
        if size > n and size % n == 0
        for inner in range(size // n, 0, -1)
        if size // n % inner == 0
    ]
    return own, shared


def gather(lead: Shape, stride: int, n: int) -> Callable[[Tensor], Tensor]:
    """Return a function that brings tensors [*lead, ...], examples `stride` rows apart, to [N, T, ...]."""
    rows = prod(lead)

    def split(tensor: Tensor) -> Tensor:
        rest = tensor.shape[len(lead) :]
        if stride * n == rows:
            return tensor.reshape(n, stride, *rest)
        return tensor.reshape(rows // (n * stride), n, stride, *rest).movedim(1, 0).reshape(n, rows // n, *rest)

    return split


# One node


class AxisMove:
    """One output of a node, the stride of the examples in it, and the shapes of the node's inputs.

    Attributes:
        node: The node.
        name: Its name.
        output: Which output.
        shape: Shape of that output.
        inputs: Shapes of the inputs; None for data and constants.
        stride: Stride of the examples in the output.
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
        """Return the error of a node that mixes along the axis."""
        return MixedError(f"{self.name} {what}")

    def everywhere(self, stride: int | str) -> Strides:
        """Return the same for all inputs."""
        return [stride] * len(self.inputs)

    def at(self, index: int, axis: int) -> int | str:
        """Return the stride of examples on an axis of an input, in the order that they have in the output."""
        shape = self.inputs[index]
        if shape is None:
            return SHARED
        if not 0 <= axis < len(shape) or shape[axis] % (self.inner * self.n):
            return f"{self.name} changes how many rows there are"
        return stride_at(shape, axis, self.inner)

    def saved_axis(self, name: str, rank: int) -> int:
        """Return an axis that the node saved, counted from the front."""
        return signed(saved(self.node, name)) % max(rank, 1)


def in_order(move: AxisMove) -> Strides:
    """Views and copies: entries stay in row-major order."""
    return move.everywhere(move.stride)


def first_input(move: AxisMove) -> Strides:
    """Layers: the examples lie in the first input, on the same axis; the others are weights."""
    return [move.at(0, move.axis), *[SHARED] * (len(move.inputs) - 1)]


def by_shape(move: AxisMove) -> Strides:
    """Nodes of which nothing else is said: reductions over saved axes, and broadcasting from the right."""
    if has_saved(move.node, "keepdim") and has_saved(move.node, "dim"):
        return _reduced(move)
    return [aligned(move, i) for i in range(len(move.inputs))]


def aligned(move: AxisMove, index: int) -> int | str:
    """Return the stride in an input that was broadcast to the output, or that has its leading axes."""
    shape, out, axis = move.inputs[index], move.shape, move.axis
    if shape is None:
        return SHARED
    if shape == out:
        return move.stride
    if axis < 0:
        return f"{move.name} follows after the examples were spread over several axes"
    missing = len(out) - len(shape)
    if missing >= 0 and all(size in (1, out[missing + k]) for k, size in enumerate(shape)):
        return SHARED if axis < missing or shape[axis - missing] == 1 else move.at(index, axis - missing)
    if shape[: axis + 1] == out[: axis + 1]:
        return move.at(index, axis)
    return f"{move.name} changes the shape in a way that is not known"


def _reduced(move: AxisMove) -> Strides:
    """Sums, means, maxima and the like over some axes."""
    shape = move.inputs[0]
    if shape is None or move.axis < 0:
        return move.everywhere("" if shape is None else f"{move.name} sums after examples were spread")
    if saved(move.node, "keepdim"):
        return [move.at(0, move.axis)]
    dims = saved(move.node, "dim")
    dims = dims if isinstance(dims, tuple) else (dims,)
    gone = {signed(d) % max(len(shape), 1) for d in dims} or set(range(len(shape)))
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    return [move.at(0, kept[move.axis])]


# The whole graph


@dataclass
class Reading:
    """Where the examples lie under one supposition.

    Attributes:
        strides: The stride of the examples in each output of a node, `SHARED` where all examples share it.
        lost: Why it is not known, where it is not.
        coupled: Nodes in which examples meet: with a stride and shared by all, or with two strides.
        spread: Whether the examples had to be spread over several axes somewhere.
        own: Whether they have an axis of their own somewhere.
        clash: Whether a stride differs from what another summand of the loss has settled.
    """

    strides: dict[Key, int] = field(default_factory=dict)
    lost: dict[Key, str] = field(default_factory=dict)
    coupled: set[Node] = field(default_factory=set)
    spread: bool = False
    own: bool = False
    clash: bool = False

    def update(self, other: Reading) -> None:
        """Add what another summand of the loss has shown; a stride that is known is kept."""
        for key, stride in other.strides.items():
            self.strides[key] = self.strides.get(key) or stride
        self.lost.update(other.lost)
        self.coupled |= other.coupled


class ExampleAxis:
    """Where N examples lie in every tensor of a graph.

    Args:
        root: The node of the loss.
        batch_size: Number of examples N.
        batch_first: Which supposition to take where several survive: True the one in which the examples lead in what
            the loss averages over, False the last; None refuses such a graph.
        parameters: Identities of the leaves that are parameters; others, such as inputs of which a penalty takes the
            gradient, are data. None takes all for parameters.

    Attributes:
        interacts: Whether examples act on each other, as far as the graph shows it.
        guessed: Nodes at which no supposition was left, so that the only axis as long as the batch was taken.
    """

    def __init__(
        self, root: Node, batch_size: int, batch_first: bool | None, parameters: Set[int] | None = None
    ) -> None:
        self.batch_size = self._n = batch_size
        self._parameters = parameters
        self.interacts = False
        self.guessed: set[Node] = set()
        self._batch_first = batch_first
        self._reading = Reading()
        self._ambiguous = self._died = ""  # why more than one reading is possible, or none
        if batch_size > 1:
            self._read(root)

    def shared(self, node: Node) -> bool:
        """Whether a node computes something that all examples share, such as a weight made of parameters."""
        return self._reading.strides.get((node, 0), -1) == SHARED

    def split(self, lead: Shape, node: Node, name: str) -> Callable[[Tensor], Tensor]:
        """Return a function that brings tensors [*lead, ...] of a node's first output to [N, T, ...].

        Raises:
            AmbiguousLayoutError: If the graph leaves more than one reading and the caller said nothing.
            UnsupportedGradientError: If the rows of the node are not the examples, or cannot be told to be.
        """
        n = self._n
        if n == 1:
            return lambda t: t.reshape(1, prod(lead), *t.shape[len(lead) :])
        shape = output_shape(node)
        rows, rest = divmod(self._stride(node, name), prod(shape[len(lead) :]))
        if rest or rows < 1 or prod(lead) % (rows * n):
            raise UnsupportedGradientError(
                f"{node.name()} of {name}", f"an axis that it computes over holds the {n} examples of {shape}"
            )
        return gather(lead, rows, n)

    def locate(self, node: Node, name: str) -> tuple[int, int]:
        """Return the axis of a node's output that holds the examples, and what they are interleaved with there.

        Raises:
            AmbiguousLayoutError: As in `split`.
            UnsupportedGradientError: As in `split`.
        """
        shape = output_shape(node)
        found = locate(shape, self._stride(node, name), self._n)
        if found is None:
            raise UnsupportedGradientError(f"{node.name()} of {name}", f"examples are spread over axes of {shape}")
        return found

    def _stride(self, node: Node, name: str) -> int:
        reading, where = self._reading, f"{node.name()} of {name}"
        if self._ambiguous:
            raise AmbiguousLayoutError(
                where,
                f"{self._ambiguous} {self._n} examples, so their axis is ambiguous: use a batch of another "
                "size, or pass batch_first=True or False, which lightning_cx.gradients.find_layout determines",
            )
        outputs = [(node, output) for output in range(len(output_metadata(node)))]
        stride = next((reading.strides[key] for key in outputs if reading.strides.get(key)), None)
        if stride is not None:
            return stride
        lost = next((reading.lost[key] for key in outputs if key in reading.lost), None)
        if lost is not None and "reorders" in lost:
            raise UnsupportedGradientError(where, f"{lost} between it and the loss, so rows are not the examples")
        if self.shared(node):
            raise UnsupportedGradientError(where, "its output is shared by all examples")
        return self._guess(node, where, lost or self._died)

    def _guess(self, node: Node, where: str, why: str) -> int:
        """Where examples act on each other no supposition survives: take the one axis that is as long as the batch."""
        shape, n = output_shape(node), self._n
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

    # Suppositions

    def _read(self, root: Node) -> None:
        terms, open_terms, dead = list(loss_terms(root)), [], []
        for term in terms:
            survivors = self._survivors(term)
            if len(survivors) == 1:
                self._settle(term, survivors[0])
            else:
                (open_terms if survivors else dead).append(term)
        for term in open_terms:  # what the others have settled may decide
            survivors = self._survivors(term)
            if len(survivors) > 1 and self._batch_first is None:
                self._ambiguous = f"more than one axis of {term.shape}, which the loss averages, may hold the"
            if survivors:
                self._settle(term, survivors[0 if self._batch_first in (True, None) else -1])
        alike = Counter((term.shape, term.node.name(), term.via.name()) for term in terms if term not in dead)
        if self._batch_first is None and any(count % self._n == 0 for count in alike.values()):
            # As many summands as examples: one for each step, or one for each example and the steps on an axis.
            self._ambiguous = "the loss is summed one by one over what may as well be the"
        self._cross()
        # A summand that no supposition fits, but that is made of what has examples, lets them act on each other.
        strides = self._reading.strides
        mixed = any(strides.get((node, 0)) for term in dead for node in walk(term.node))
        self.interacts = self.interacts or bool(self._reading.coupled) or mixed

    def _settle(self, term: LossTerm, reading: Reading) -> None:
        self._reading.update(reading)
        self.interacts = self.interacts or not term.added

    def _survivors(self, term: LossTerm) -> list[Reading]:
        """The readings under which one summand of the loss makes sense, outermost axis first."""
        clashing: list[Reading] = []
        classes = record_of(term.via).class_axis
        for strides in candidates(term.shape, self._n):
            found = []
            for stride in strides:
                if classes is not None and (locate(term.shape, stride, self._n) or (-1,))[0] == classes:
                    continue
                try:
                    reading = self._send(term.node, term.output, stride, self._reading)
                except MixedError as mixed:
                    self._died = self._died or str(mixed)
                    continue
                (clashing if reading.clash else found).append(reading)
            for better in (lambda r: not r.spread, lambda r: not r.lost, lambda r: r.own):
                found = [reading for reading in found if better(reading)] or found
            if found:
                return found
        return clashing[:1]  # two summands read the same tensor along two axes: examples meet in it

    def _send(self, node: Node, output: int, stride: int, known: Reading) -> Reading:
        """Send one supposition down the graph, past what is settled.

        The steps of this walk are pairs of a tensor and a stride, since one tensor may be reached with two strides.

        Raises:
            MixedError: If it cannot be.
        """
        new = Reading()
        for _ in walk(((node, output), stride), partial(self._pass, new, known)):
            pass
        return new

    def _pass(self, new: Reading, known: Reading, step: tuple[Key, int | str]) -> Sequence[tuple[Key, int | str]]:
        """Note the stride of one tensor; return what follows for the inputs of its node."""
        key, stride = step
        node = key[0]
        if is_leaf(node):
            is_data = self._parameters is not None and id(node.variable) not in self._parameters
            if stride != SHARED and isinstance(stride, int) and not is_data:
                raise MixedError("a parameter has an axis of its own for the examples")
            return ()
        settled = known.strides.get(key)
        before = new.strides.get(key, settled)
        lost = key in new.lost or key in known.lost
        if isinstance(stride, str):
            if stride and before is None and not lost:
                new.lost[key] = stride
                return [(child, stride) for child in _children(node)]
            if before:
                new.coupled.add(node)
            return ()
        if before == stride:
            return ()
        if before is not None or lost:
            new.coupled.add(node)
            if before and stride:  # two axes: along the paths of one supposition that cannot be
                if settled != before:
                    raise MixedError(f"{node.name()} is reached along two axes")
                new.clash = True
                return self._below(new, key, stride)
            if stride == SHARED:
                return ()
        new.strides[key] = stride
        return self._below(new, key, stride)

    def _below(self, reading: Reading, key: Key, stride: int) -> list[tuple[Key, int | str]]:
        node, output = key
        if stride == SHARED:
            if _sums_over(node, self._n) and _fed_with_data(node):
                reading.coupled.add(node)
            return [(child, SHARED) for child in _children(node)]
        edges = input_edges(node)
        shapes = [None if child is None else output_shape(child, number) for child, number in edges]
        move = AxisMove(node, output, output_shape(node, output), shapes, stride, self._n)
        reading.spread = reading.spread or move.axis < 0
        reading.own = reading.own or (move.axis >= 0 and move.shape[move.axis] == self._n)
        if _mixes_rows(move):
            reading.coupled.add(node)
        strides = (record_of(node).moves or by_shape)(move)
        # What holds no number, as the rest of a cut in two, tells nothing and mixes nothing.
        held = [edge[0] is not None and 0 not in (shape or ()) for edge, shape in zip(edges, shapes, strict=True)]
        return [(edge, below) for edge, below, some in zip(edges, strides, held, strict=True) if some]

    def counts_evenly(self, node: Node, entries: Tensor) -> bool:
        """Return whether what a loss counts adds up to the same for each example.

        Args:
            node: The node of a loss whose input has classes on its second axis.
            entries: What each of its targets counts for.
        """
        child, number = input_edges(node)[0]
        shape = () if child is None else output_shape(child, number)
        stride = self._reading.strides.get((child, number)) if child is not None else None
        place = locate(shape, stride, self._n) if stride else None
        if place is None or place[0] == 1:
            return False
        lead = (*shape[:1], *shape[2:])
        own = gather(lead, stride_at(lead, max(place[0] - 1, 0), place[1]), self._n)(entries.reshape(lead)).double()
        sums = own.reshape(self._n, -1).sum(1)
        return bool(((sums - sums.mean()).abs() <= EVEN * sums.mean()).all())

    # Products that compare examples with examples

    def _cross(self) -> None:
        """Examples on both sides of a matrix product, as in contrastive losses: the far side has its own axis."""
        strides = self._reading.strides
        for (node, output), stride in list(strides.items()):
            matrices = record_of(node).matrices
            if stride == SHARED or matrices is None:
                continue
            found = locate(output_shape(node, output), stride, self._n)
            far = matrices[1 - found[0]] if found is not None else 0
            child, number = input_edges(node)[far]
            if child is None or strides.get((child, number)) != SHARED or _of_constants(child):
                continue
            shape = output_shape(child, number)
            axis = 1 if far == matrices[1] else 0
            if len(shape) == 2 and shape[axis] == self._n:
                self._send_across(child, number, stride_at(shape, axis))

    def _send_across(self, node: Node, output: int, stride: int) -> None:
        try:
            crossed = self._send(node, output, stride, Reading())
        except MixedError:
            return
        for key, own in crossed.strides.items():
            if own != SHARED:
                self._reading.strides[key] = self._reading.strides.get(key) or own
                self._reading.coupled.add(key[0])


def _children(node: Node) -> list[Key]:
    return [(child, output) for child, output in input_edges(node) if child is not None]


def _sums_over(node: Node, n: int) -> bool:
    """Whether a node reduces an axis that is as long as the batch."""
    if not record_of(node).reduces or n in output_shape(node):
        return False
    return any(n in output_shape(*child) for child in _children(node))


def _mixes_rows(move: AxisMove) -> bool:
    """Whether a constant matrix, such as an adjacency, mixes as many rows as there are examples."""
    matrices = record_of(move.node).matrices
    if matrices is None or move.axis != 0 or move.inputs[matrices[0]] is not None:
        return False
    rows, child = move.inputs[matrices[1]], input_edges(move.node)[matrices[1]][0]
    return rows is not None and rows[0] % move.n == 0 and child is not None and _fed_with_data(child)


def _fed_with_data(node: Node) -> bool:
    """Whether a layer with an input that has no gradient, which data and constants have not, stands below."""

    def is_fed(here: Node) -> bool:
        data = record_of(here).data_input
        return data is not None and here.next_functions[data][0] is None

    return any(is_fed(here) for here in walk(node))


def _of_constants(node: Node) -> bool:
    """Whether a node is made of parameters and constants alone, as far as one can see."""
    *_, node = walk(node, lambda here: inputs(here)[:1] if record_of(here).rearranges else ())
    if is_leaf(node):
        return True
    record = record_of(node)
    if record.indices:  # every entry once and in order is no batch
        indices = saved(node, record.indices)
        return indices.dim() == 1 and bool((indices == indices.new_ones(()).expand_as(indices).cumsum(0) - 1).all())
    combines = record.elementwise or record.repeats
    return combines and all(is_leaf(child) for child in inputs(node))
