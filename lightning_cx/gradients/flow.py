"""Follow the examples through the graph, from the loss down to every node that consumes a parameter.

Shapes alone cannot tell where the examples lie: a table of N positions, N features, a weight made of N rows and a
batch that was reordered half-way all have an axis as long as the batch, and Gram matrices read along it pass the sum
check. What tells is that examples do not act on each other. Each axis of what the loss averages over is supposed to
hold the examples, in turn, and sent down the graph: a supposition dies where a node mixes its axis (a softmax along
it, a layer that sums over it, a parameter that has it), and usually one survives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lightning_cx.gradients import mixing  # noqa: F401  (registers its transfers)
from lightning_cx.gradients.graph import REARRANGING, Node, output_shape
from lightning_cx.gradients.places import SHARED, Shape, candidates, locate, stride_at
from lightning_cx.gradients.tails import Tail, tails_of
from lightning_cx.gradients.transfer import MixedError, Passage, send_down

Key = tuple[Node, int]  # one output of one node
_PRODUCTS = {"MmBackward0": (0, 1), "AddmmBackward0": (1, 2)}
_DATA_INPUTS = {"MmBackward0": 0, "AddmmBackward0": 1, "ConvolutionBackward0": 0, "BmmBackward0": 0}
_ELEMENTWISE = frozenset({"AddBackward0", "DivBackward0", "ExpandBackward0", "MulBackward0", "SubBackward0"})


@dataclass
class Reading:
    """Where the examples lie under one supposition.

    Attributes:
        places: The stride of the examples in each output of a node, `SHARED` where all examples share it.
        lost: Why the place is not known, where it is not.
        coupled: Nodes in which examples meet: a place of their own and shared by all, or two places.
        spread: Whether the examples had to be spread over several axes somewhere.
        own: Whether they have an axis of their own somewhere.
    """

    places: dict[Key, int] = field(default_factory=dict)
    lost: dict[Key, str] = field(default_factory=dict)
    coupled: set[Node] = field(default_factory=set)
    spread: bool = False
    own: bool = False

    def update(self, other: Reading) -> None:
        """Add what another summand of the loss has shown; a place of one's own is kept."""
        for key, place in other.places.items():
            self.places[key] = self.places.get(key) or place
        self.lost.update(other.lost)
        self.coupled |= other.coupled


class Flow:
    """The places of N examples in every tensor of a graph.

    Args:
        root: The node of the loss.
        batch_size: Number of examples N.
        batch_first: Which supposition to take where several survive: True the one in which the examples lead in what
            the loss averages over, False the last; None leaves `ambiguous` set.

    Attributes:
        reading: What was found.
        interacts: Whether examples act on each other, as far as the graph shows it.
        ambiguous: Why more than one reading is possible, or empty.
        died: Why suppositions died where none survived, or empty.
    """

    def __init__(self, root: Node, batch_size: int, batch_first: bool | None) -> None:
        self._n = batch_size
        self.reading = Reading()
        self.interacts = False
        self.ambiguous = self.died = ""
        if batch_size > 1:
            self._read(root, batch_first)

    def shared(self, node: Node) -> bool:
        """Whether a node computes something that all examples share, such as a weight made of parameters."""
        return self.reading.places.get((node, 0), -1) == SHARED

    # Suppositions

    def _read(self, root: Node, batch_first: bool | None) -> None:
        tails, open_tails, dead = list(tails_of(root)), [], []
        for tail in tails:
            survivors = self._survivors(tail)
            if len(survivors) == 1:
                self._settle(tail, survivors[0])
            else:
                (open_tails if survivors else dead).append(tail)
        for tail in open_tails:  # what the others have settled may decide
            survivors = self._survivors(tail)
            if len(survivors) > 1 and batch_first is None:
                self.ambiguous = f"more than one axis of {tail.shape}, which the loss averages, may hold the"
            if survivors:
                self._settle(tail, survivors[0 if batch_first in (True, None) else -1])
        alike = Counter((tail.shape, tail.node.name(), tail.via.name()) for tail in tails if tail not in dead)
        if batch_first is None and any(count % self._n == 0 for count in alike.values()):
            # As many summands as examples: one for each step, or one for each example and the steps on an axis.
            self.ambiguous = "the loss is summed one by one over what may as well be the"
        self._cross()
        self.interacts = self.interacts or bool(self.reading.coupled) or any(self._reaches(tail.node) for tail in dead)

    def _settle(self, tail: Tail, reading: Reading) -> None:
        self.reading.update(reading)
        self.interacts = self.interacts or not tail.added

    def _reaches(self, node: Node) -> bool:
        """Whether a summand that no supposition fits is made of what has examples: it lets them act on each other."""
        waiting, seen = [node], {node}
        while waiting:
            here = waiting.pop()
            if self.reading.places.get((here, 0)):
                return True
            fresh = {child for child, _ in here.next_functions if child is not None} - seen
            seen |= fresh
            waiting += fresh
        return False

    def _survivors(self, tail: Tail) -> list[Reading]:
        """The readings under which one summand of the loss makes sense, outermost axis first."""
        clashing: list[Reading] = []
        for strides in candidates(tail.shape, self._n):
            found = []
            for stride in strides:
                if tail.via.name().startswith("NllLoss") and _on_axis(tail.shape, stride, 1, self._n):
                    continue
                try:
                    reading, clash = self._send(tail.node, tail.output, stride)
                except MixedError as mixed:
                    self.died = self.died or str(mixed)
                    continue
                (clashing if clash else found).append(reading)
            for better in (lambda r: not r.spread, lambda r: not r.lost, lambda r: r.own):
                found = [reading for reading in found if better(reading)] or found
            if found:
                return found
        return clashing[:1]  # two summands read the same tensor along two axes: examples meet in it

    def _send(self, node: Node, output: int, stride: int) -> tuple[Reading, bool]:
        """Send one supposition down the graph; also tell whether it clashes with what is settled.

        Raises:
            MixedError: If it cannot be.
        """
        known, new = self.reading, Reading()
        clash = False
        waiting: list[tuple[Key, int | str]] = [((node, output), stride)]
        while waiting:
            key, place = waiting.pop()
            here = key[0]
            if hasattr(here, "variable"):
                if place != SHARED and isinstance(place, int):
                    raise MixedError("a parameter has an axis of its own for the examples")
                continue
            settled = known.places.get(key)
            before = new.places.get(key, settled)
            lost = key in new.lost or key in known.lost
            if isinstance(place, str):
                if place and before is None and not lost:
                    new.lost[key] = place
                    waiting += [(child, place) for child in _children(here)]
                elif before:
                    new.coupled.add(here)
                continue
            if before == place:
                continue
            if before is not None or lost:
                new.coupled.add(here)
                if before and place:  # two axes: along the paths of one supposition that cannot be
                    if settled != before:
                        raise MixedError(f"{here.name()} is reached along two axes")
                    clash = True
                    waiting += self._below(new, key, place)
                    continue
                if place == SHARED:
                    continue
            new.places[key] = place
            waiting += self._below(new, key, place)
        return new, clash

    def _below(self, reading: Reading, key: Key, place: int) -> Iterator[tuple[Key, int | str]]:
        node, output = key
        children = node.next_functions
        if place == SHARED:
            if any(_loses(node, child, number, self._n) for child, number in _children(node)) and _fed_with_data(node):
                reading.coupled.add(node)
            yield from ((child, SHARED) for child in _children(node))
            return
        shapes = [None if child is None else _shape(child, number) for child, number in children]
        passage = Passage(node, output, _shape(node, output), shapes, place, self._n)
        reading.spread = reading.spread or passage.axis < 0
        reading.own = reading.own or (passage.axis >= 0 and passage.shape[passage.axis] == self._n)
        if _mixes_rows(passage):
            reading.coupled.add(node)
        for (child, number), below in zip(children, send_down(passage), strict=True):
            if child is not None:
                yield (child, number), below

    # Products that compare examples with examples

    def _cross(self) -> None:
        """Examples on both sides of a matrix product, as in contrastive losses: the far side has its own axis."""
        for (node, output), place in list(self.reading.places.items()):
            if place == SHARED or node.name() not in _PRODUCTS:
                continue
            found = locate(_shape(node, output), place, self._n)
            far = _PRODUCTS[node.name()][1 - found[0]] if found is not None else 0
            child, number = node.next_functions[far]
            if child is None or self.reading.places.get((child, number)) != SHARED or _of_constants(child):
                continue
            shape = _shape(child, number)
            axis = 1 if far == _PRODUCTS[node.name()][1] else 0
            if len(shape) == 2 and shape[axis] == self._n:
                self._send_across(child, number, stride_at(shape, axis))

    def _send_across(self, node: Node, output: int, stride: int) -> None:
        settled, self.reading = self.reading, Reading()
        try:
            crossed, _ = self._send(node, output, stride)
        except MixedError:
            self.reading = settled
            return
        self.reading = settled
        for key, place in crossed.places.items():
            if place != SHARED:
                settled.places[key] = settled.places.get(key) or place
                settled.coupled.add(key[0])


def _loses(node: Node, child: Node, number: int, n: int) -> bool:
    """Whether a node sums over an axis that is as long as the batch."""
    summed = node.name().startswith(("Mean", "Sum", "Amax", "Max", "Logsumexp", "Var", "Std"))
    return summed and n in _shape(child, number) and n not in output_shape(node)


def _mixes_rows(passage: Passage) -> bool:
    """Whether a constant matrix, such as an adjacency, mixes as many rows as there are examples."""
    left = _PRODUCTS.get(passage.name, (0, 0))[0]
    right = _PRODUCTS.get(passage.name, (0, 0))[1]
    if passage.name not in _PRODUCTS or passage.axis != 0 or passage.inputs[left] is not None:
        return False
    rows, child = passage.inputs[right], passage.node.next_functions[right][0]
    return rows is not None and rows[0] % passage.n == 0 and child is not None and _fed_with_data(child)


def _fed_with_data(node: Node) -> bool:
    """Whether a layer with an input that has no gradient, which data and constants have not, stands below."""
    waiting, seen = [node], {node}
    while waiting:
        here = waiting.pop()
        layer = _DATA_INPUTS.get(here.name())
        if layer is not None and here.next_functions[layer][0] is None:
            return True
        fresh = {child for child, _ in here.next_functions if child is not None} - seen
        seen |= fresh
        waiting += fresh
    return False


def _children(node: Node) -> Iterable[Key]:
    return [(child, output) for child, output in node.next_functions if child is not None]


def _shape(node: Node, output: int) -> Shape:
    return tuple(node.variable.shape) if hasattr(node, "variable") else output_shape(node, output)


def _on_axis(shape: Shape, stride: int, axis: int, n: int) -> bool:
    found = locate(shape, stride, n)
    return found is not None and found[0] == axis


def _of_constants(node: Node) -> bool:
    """Whether a node is made of parameters and constants alone, as far as one can see."""
    while node.name() in REARRANGING and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    if hasattr(node, "variable"):
        return True
    if node.name() == "EmbeddingBackward0":  # every entry once and in order is no batch
        indices = node._saved_indices
        return indices.dim() == 1 and bool((indices == indices.new_ones(()).expand_as(indices).cumsum(0) - 1).all())
    children = [child for child, _ in node.next_functions]
    return node.name() in _ELEMENTWISE and all(child is None or hasattr(child, "variable") for child in children)
