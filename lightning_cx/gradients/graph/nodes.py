"""What the package knows of each type of autograd node: one record a type, in one registry.

Everything that a walk over the graph of a loss asks of a node (whether its parameters' gradients can be read, how the
axis of examples passes it, whether it only rearranges or adds) is a field of its `NodeRecord`. The records stand in
the modules of `rules`, each beside its contraction rule; `register_node` takes one for a node of your own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from lightning_cx._torch import output_metadata, output_shape
from lightning_cx.gradients.errors import UnsupportedGradientError
from lightning_cx.gradients.factors.products import Rows, Use, working

if TYPE_CHECKING:
    from lightning_cx.gradients.graph.example_axis import AxisMove, ExampleAxis, Strides
    from lightning_cx.gradients.graph.weights import Operand, Source

Node = Any  # torch.autograd.graph.Node; saved tensors are attributes that its type does not declare
Capture = Callable[[Tensor], Use]  # the gradient of a node's output -> the gradients of one of its inputs


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


@dataclass(frozen=True)
class NodeRecord:
    """All that the package knows of one type of autograd node; the defaults say nothing about it.

    A rule runs twice removed from the user's backward. When a tap attaches, it checks that it can read the node and
    returns a capture; when the backward reaches the node, the capture turns the gradient of the node's output into a
    `Use`.

    Attributes:
        rule: How the per-example gradients of an input that is a parameter follow; None refuses such an input, unless
            the batch has one example.
        moves: Where the examples lie in each input, given where they lie in an output; None goes by the shapes, as
            broadcasting does.
        saves: Names of what is read off the node, without `_saved_`.
        rearranges: Whether it only rearranges or picks entries, so that inner products of gradients stay as they are.
        reshapes: Whether it is a view of another shape.
        transposes: Whether it is the transpose of a matrix.
        in_place: Whether every entry stays where it is, but for a factor or a transposition.
        repeats: Whether it repeats entries, perhaps over the examples.
        scale: The number that it multiplies its only differentiable input by, None where it does anything else.
        shortcut: For a node that makes a weight of parameters: the use of the parameter from that of the weight,
            without a backward for each example; None where there is no quicker way.
        cut_start: For a node that cuts a stretch out of an axis: where an output begins on an axis of a given size;
            None if it is not one stretch.
        adds: Whether a sum over examples stays one through it (products and quotients: if all else is a number).
        joins: Whether it puts several tensors into one.
        multiplies: Whether it is the product, entry by entry, of what it saves as `self` and `other`.
        is_loss: Whether it is a loss that is a sum or mean over examples of something of their own.
        reduces: Whether it makes one number of those along an axis.
        sums: Whether it sums, rather than averages, over what the loss is made of.
        divisor: The constant number that it divides by, if it does.
        divides_unevenly: Whether it averages over something else than the number of its targets.
        counts: Then, what each of its targets counts for: nothing if ignored, else the weight of its class.
        class_axis: Axis of its input that holds classes, and so no examples.
        couples: Whether examples act on each other in it.
        matrices: Which inputs are the left and right factor of its matrix product.
        data_input: Which input is the data that a layer is applied to.
        statistics_only: Whether all that it saves beside its inputs are statistics of them.
        elementwise: Whether it combines two tensors entry by entry.
        indices: Name of the saved indices into a table.
        plan_key: What of it a plan depends on beside names, shapes and edges; None if that has not been sorted out, so
            that plans of graphs which have such a node are not remembered.
        hides: What to do about parameters that it hides; empty if it hides none.
    """

    rule: Callable[[Site], Capture | Joint] | None = None
    moves: Callable[[AxisMove], Strides] | None = None
    saves: tuple[str, ...] = ()
    rearranges: bool = False
    reshapes: bool = False
    transposes: bool = False
    in_place: bool = False
    repeats: bool = False
    scale: Callable[[Node], float | None] | None = None
    shortcut: Callable[[Source, Use], Use | None] | None = None
    cut_start: Callable[[Node, int, int], int | None] | None = None
    adds: bool | Callable[[Node], bool] = False
    joins: bool = False
    multiplies: bool = False
    is_loss: bool = False
    reduces: bool = False
    sums: Callable[[Node], bool] | None = None
    divisor: Callable[[Node], Tensor | None] | None = None
    divides_unevenly: Callable[[Node], bool] | None = None
    counts: Callable[[Node], Tensor] | None = None
    class_axis: int | None = None
    couples: Callable[[Node], bool] | None = None
    matrices: tuple[int, int] | None = None
    data_input: int | None = None
    statistics_only: bool = False
    elementwise: bool = False
    indices: str = ""
    plan_key: tuple[str, ...] | None = None
    hides: str = ""


RECORDS: dict[str, NodeRecord] = {}
_FAMILIES: dict[str, NodeRecord] = {}  # by the beginning of the name
_UNKNOWN = NodeRecord()
_NATIVE = re.compile(r"[A-Z]\w*Backward\d+")  # a custom Function has no number


def register_node(record: NodeRecord, *names: str) -> None:
    """Teach the tap a type of autograd node.

    Args:
        record: What is to be known of it.
        names: Names of the nodes as `node.name()` gives them, for a custom `torch.autograd.Function` its class's name
            and "Backward"; "MaxPool*" stands for all that begin so and have no record of their own.

    Raises:
        ValueError: If one of PyTorch's own nodes has a record already.

    Example:
        >>> import torch
        >>> from lightning_cx.gradients import NodeRecord, Products, first_input, per_example_gram, register_node
        >>> class Twice(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x, weight):
        ...         ctx.save_for_backward(x, weight)
        ...         return 2 * x @ weight.T
        ...     @staticmethod
        ...     def backward(ctx, gradient):
        ...         x, weight = ctx.saved_tensors
        ...         return 2 * gradient @ weight, 2 * gradient.T @ x
        >>> def rule(site):
        ...     split = site.split(keep=1)  # [..., d] -> [N, T, d]
        ...     return lambda gradient: Products(2 * split(gradient), split(site.node.saved_tensors[0]))
        >>> register_node(NodeRecord(rule=rule, moves=first_input), "TwiceBackward")
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> per_example_gram(net, Twice.apply(x, net.weight).sum(1).mean())
        tensor([[ 4.,  0.],
                [ 0., 16.]], dtype=torch.float64)
    """
    for name in names:
        if name.endswith("*"):
            _FAMILIES[name[:-1]] = record
        elif name in RECORDS and _NATIVE.fullmatch(name):
            raise ValueError(f"{name} has a record already; one record holds all that is known of a node.")
        else:
            RECORDS[name] = record
    _of_family.cache_clear()


def record_of(node: Node) -> NodeRecord:
    """Return what is known of a node."""
    name = node.name()
    return RECORDS.get(name) or _of_family(name)


@cache
def _of_family(name: str) -> NodeRecord:
    beginnings = [beginning for beginning in _FAMILIES if name.startswith(beginning)]
    return _FAMILIES[max(beginnings, key=len)] if beginnings else _UNKNOWN


def is_native(node: Node) -> bool:
    """Return whether a node is one of PyTorch's own: a function of its output gradients that may be called again."""
    return _NATIVE.fullmatch(node.name()) is not None


def signed(number: int) -> int:
    """Return an axis as it was written: autograd gives negative ones as unsigned numbers."""
    return number - (1 << 64) if number >= 1 << 63 else number


@dataclass(frozen=True)
class Site:
    """A node that consumes a parameter, as its rule sees it.

    Attributes:
        node: The node.
        operand: The parameter, or tensor made of one, and which input it is.
        axis: Where the examples lie in the tensors of the graph.
    """

    node: Node
    operand: Operand
    axis: ExampleAxis

    @property
    def batch_size(self) -> int:
        return self.axis.batch_size

    def refuse(self, why: str) -> NoReturn:
        """Decline to read this use of the parameter."""
        raise UnsupportedGradientError(f"{self.node.name()} of {self.operand.name}", why)

    def refuse_as_data(self) -> None:
        """Decline if the parameter stands where a layer expects its data."""
        if self.operand.index == 0:
            self.refuse("the input of the layer is made of parameters, and so is not one for each example")

    def split(self, keep: int) -> Callable[[Tensor], Tensor]:
        """Return a function to working precision and [N, T, ...].

        It takes tensors whose leading axes are those of the node's output, all but its last `keep`.
        """
        shape = output_shape(self.node)
        if len(shape) == keep:
            self.refuse(f"it spans every axis of {shape}, examples included")
        split = self.split_rows(shape[: len(shape) - keep])
        return lambda tensor: split(working(tensor))

    def split_rows(self, lead: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """Return a function that brings tensors [*lead, ...] to [N, T, ...], `lead` the output's leading axes."""
        return self.axis.split(lead, self.node, self.operand.name)

    def examples(self) -> tuple[int, int]:
        """Return the axis of the node's output that holds the examples, and the length of each of them there."""
        return self.axis.locate(self.node, self.operand.name)

    def frames(self) -> Callable[[Tensor], Tensor]:
        """Return a function from [examples and frames, ...] to [N, frames, ...], the examples on the first axis."""
        n = self.batch_size
        if n == 1:
            return lambda tensor: tensor.unsqueeze(0)
        axis, _ = self.examples()
        if axis != 0:
            self.refuse(f"the first axis of {output_shape(self.node)} does not hold the {n} examples")
        return self.split_rows(output_shape(self.node)[:1])


def capture_of(site: Site) -> Capture | Joint:
    """Return the capture of one use of one parameter.

    Raises:
        UnsupportedGradientError: If no rule reads this node, or the rule declines; names node and parameter.
    """
    rule = record_of(site.node).rule
    if rule is not None:
        return rule(site)
    if site.batch_size == 1 and is_native(site.node) and len(output_metadata(site.node)) == 1:
        return _of_one_example(site)
    site.refuse("no rule reads this node")


def _of_one_example(site: Site) -> Capture:
    """The gradient of a single example is that of the batch, which any node of PyTorch's own computes."""
    node, index, shape = site.node, site.operand.index, site.operand.shape

    def capture(gradient: Tensor) -> Use:
        results = node(gradient)
        result = results[index] if isinstance(results, tuple) else results
        return Rows(working(result).sum_to_size(shape).unsqueeze(0))

    return capture
