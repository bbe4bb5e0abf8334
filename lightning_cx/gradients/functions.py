"""Per-example gradient data of a loss at hand, in one call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_cx._torch import is_leaf, output_shape, saved
from lightning_cx.gradients.factors.products import working
from lightning_cx.gradients.graph.nodes import Node, record_of
from lightning_cx.gradients.graph.walk import inputs, root_of, walk
from lightning_cx.gradients.graph.weights import is_of_parameters
from lightning_cx.gradients.sample import GradientSample
from lightning_cx.gradients.tap import GradientTap


def per_example_gram(
    module: nn.Module,
    loss: Tensor,
    batch_size: int | None = None,
    batch_first: bool | None = True,
) -> Tensor:
    """Inner products of the gradients of single examples: who agrees with whom on where the weights should go.

    K_ij = <g_i, g_j>, g_i the gradient of example i's loss over all trainable parameters of `module`.

    Args:
        module: The model; parameters that the loss does not reach count as zero.
        loss: Mean of the examples' losses, a scalar with a graph, or the losses themselves, [N]. The graph is
            kept, so that `loss.backward()` still works afterwards; no `.grad` is touched.
        batch_size: Number of examples N; None reads the first axis of what the loss averages over. Pass it where
            time leads there.
        batch_first: Whether the examples lead in what the loss averages over, asked only where nothing in the graph
            tells two axes apart, as in a layer on [N, N, d] that mixes neither; None refuses such a graph.

    Returns:
        The Gram matrix, [N, N] float64.

    Raises:
        UnsupportedGradientError: If a parameter is used in a way that the tap cannot read, by name.
        ValueError: If the batch size cannot be read off the graph, or nothing is trainable.

    Example:
        >>> import torch
        >>> from lightning_cx.gradients import per_example_gram
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> per_example_gram(net, net(x).sum(1).mean())
        tensor([[1., 0.],
                [0., 4.]], dtype=torch.float64)
    """
    gram = _sample(module, loss, batch_size, batch_first, gram=True).gram
    assert gram is not None
    return gram


def per_example_norms(
    module: nn.Module,
    loss: Tensor,
    batch_size: int | None = None,
    batch_first: bool | None = True,
) -> Tensor:
    """Norms of the gradients of single examples: which examples pull hardest on the weights.

    Args:
        module: The model.
        loss: Mean of the examples' losses, or the losses themselves, [N]; as in `per_example_gram`.
        batch_size: Number of examples N; as in `per_example_gram`.
        batch_first: As in `per_example_gram`.

    Returns:
        |g_i|, [N] float64, at less cost than the Gram matrix.

    Raises:
        UnsupportedGradientError: As in `per_example_gram`.
        ValueError: As in `per_example_gram`.

    Example:
        >>> import torch
        >>> from lightning_cx.gradients import per_example_norms
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> per_example_norms(net, net(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).sum(1).mean())
        tensor([1., 2.], dtype=torch.float64)
    """
    squared_norms = _sample(module, loss, batch_size, batch_first, gram=False).squared_norms
    assert squared_norms is not None
    return squared_norms.clamp_min(0).sqrt()


def per_example_gradients(
    module: nn.Module,
    loss: Tensor,
    batch_size: int | None = None,
    batch_first: bool | None = True,
) -> dict[str, Tensor]:
    """The gradients of single examples themselves: N times the memory of the model, all of it at once.

    Args:
        module: The model.
        loss: Mean of the examples' losses, or the losses themselves, [N]; as in `per_example_gram`.
        batch_size: Number of examples N; as in `per_example_gram`.
        batch_first: As in `per_example_gram`.

    Returns:
        For each trainable parameter its gradients [N, *parameter], in float64 for a float64 model and else in
        float32; zeros where the loss does not reach it.

    Raises:
        UnsupportedGradientError: As in `per_example_gram`.
        ValueError: As in `per_example_gram`.

    Example:
        >>> import torch
        >>> from lightning_cx.gradients import per_example_gradients
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> per_example_gradients(net, net(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).sum(1).mean())["weight"]
        tensor([[[1., 0.]],
                [[0., 2.]]])
    """
    sample = _sample(module, loss, batch_size, batch_first, gram=False, rows=True)
    gradients = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rows = sample.layers[name].rows if name in sample.layers else None
            zeros = working(parameter.detach()).new_zeros(())
            gradients[name] = zeros.expand(sample.batch_size, *parameter.shape).clone() if rows is None else rows
    return gradients


def _sample(
    module: nn.Module,
    loss: Tensor,
    batch_size: int | None,
    batch_first: bool | None,
    gram: bool,
    rows: bool = False,
) -> GradientSample:
    if loss.dim() == 1:
        batch_size = len(loss) if batch_size is None else batch_size
        loss = loss.mean()
    if batch_size is None:
        batch_size = infer_batch_size(loss)
    tap = GradientTap(
        module.named_parameters(), batch_size, gram, not (gram or rows), batch_first=batch_first, rows=rows
    )
    return ride(tap, loss, dict(module.named_parameters()))


def ride(tap: GradientTap, loss: Tensor, parameters: Mapping[str, Tensor]) -> GradientSample:
    """Run a backward of the loss for the tap alone; the graph is kept and no `.grad` touched.

    Raises:
        UnsupportedGradientError: If a parameter is used in a way that the tap cannot read, by name.
    """
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    tap.attach(loss)
    try:
        gradients = torch.autograd.grad(loss, list(trainable.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(trainable, gradients, strict=True):
            tap.compare_with(name, gradient)  # nothing is accumulated here, so the tap's own hook does not see it
        return tap.finish()
    finally:
        tap.detach()


def infer_batch_size(loss: Tensor) -> int:
    """Read the number of examples off the graph of a scalar loss: the first axis of what it averages over.

    Examples have to lead there: of a loss over [T, N, C] the number of positions is read, unless an embedding shows
    that its indices are [N, T].

    Raises:
        ValueError: If the branches of the loss disagree or show no axis; pass `batch_size` then.
    """
    sizes: set[int] = set()
    tables: list[tuple[int, ...]] = []
    root = root_of(loss)
    for node in () if root is None else walk(root, lambda here: () if output_shape(here) else inputs(here)):
        shape = output_shape(node)
        if shape and not is_of_parameters(node):
            sizes.add(_unflattened(node, shape[0]))
            tables += _looked_up(node)
    if len(sizes) == 1 and any(next(iter(sizes)) == shape[1] != shape[0] > 1 for shape in tables):
        sizes.update(shape[0] for shape in tables)
    if len(sizes) != 1:
        raise ValueError(f"the batch size cannot be read off the loss (candidates {sorted(sizes)}): pass batch_size=")
    return sizes.pop()


def _looked_up(node: Node) -> list[tuple[int, ...]]:
    """Shapes of the indices of all embeddings below a node that look up more than one axis of them."""
    tables = [(here, record_of(here).indices) for here in walk(node)]
    shapes = [tuple(saved(here, indices).shape) for here, indices in tables if indices]
    return [shape for shape in shapes if len(shape) > 1]


def _unflattened(node: Node, rows: int) -> int:
    """Follow positions that were stacked for the loss, [N T, C], back to [N, T, C]."""

    def only_input(here: Node) -> list[Node]:
        children = inputs(here)
        alone = len(children) == 1 and not is_leaf(children[0])
        return children if alone and output_shape(here)[:1] == (rows,) else []

    above = None
    for here in walk(node, only_input):
        shape = output_shape(here)
        if above is not None and record_of(above).reshapes and len(shape) > 2 and shape[0] * shape[1] == rows:
            return shape[0]
        above = here
    return rows
