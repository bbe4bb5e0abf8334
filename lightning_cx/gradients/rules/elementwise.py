"""Rules of parameters that are spread over the examples and then shift or scale them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_cx.gradients.graph import output_shape
from lightning_cx.gradients.rules.registry import Capture, Site, rule
from lightning_cx.gradients.uses import Rows, Use, working


def _broadcast(site: Site, factor: Callable[[], Tensor | float]) -> Capture:
    """A parameter that is spread over the examples and then shifts or scales them."""
    shape, target, n = output_shape(site.node), site.operand.shape, site.batch_size
    aligned: tuple[int, ...] = (1,) * (len(shape) - len(target)) + target
    lead = _leading(shape, aligned, n)
    if lead is None:
        site.refuse(f"a parameter of shape {target} has an axis of its own for the examples of {shape}")
    time_first = aligned[0] != 1
    split = None if time_first else site.layout.split(shape[:lead], site.node, site.operand.name)
    summed = [axis for axis, size in enumerate(aligned) if size == 1 and axis >= lead]

    def capture(gradient: Tensor) -> Use:
        scale = factor()
        values = working(gradient) * (working(scale) if isinstance(scale, Tensor) else scale)
        values = values.sum(summed, keepdim=True) if summed else values
        values = values.movedim(1, 0) if split is None else split(values).sum(1)
        return Rows(values.reshape(n, *target))

    return capture


def _leading(shape: tuple[int, ...], aligned: tuple[int, ...], n: int) -> int | None:
    """How many leading axes hold examples and positions; where a parameter has an axis of its own they do not."""
    if aligned[:1] != (1,):
        return 2 if shape[1:2] == (n,) and aligned[1] == 1 else None
    ones = next((axis for axis, size in enumerate(aligned) if size != 1), None)
    if ones is not None:
        return ones
    return 2 if len(shape) > 2 or (len(shape) == 2 and shape[1] == n != shape[0]) else 1  # a scalar


@rule("AddBackward0", "SubBackward0")
def _shift(site: Site) -> Capture:
    sign = -1.0 if site.node.name() == "SubBackward0" and site.operand.index == 1 else 1.0
    alpha = site.node._saved_alpha if site.operand.index == 1 else 1
    return _broadcast(site, lambda: sign * alpha)


@rule("MulBackward0")
def _scale(site: Site) -> Capture:
    node = site.node
    return _broadcast(site, lambda: node._saved_other if site.operand.index == 0 else node._saved_self)


@rule("DivBackward0")
def _divide(site: Site) -> Capture:
    node = site.node
    if site.operand.index == 0:
        site.refuse("the parameter stands over the fraction line")
    return _broadcast(site, lambda: -working(node._saved_self) / working(node._saved_other).square())


@rule("ExpandBackward0")
def _expand(site: Site) -> Capture:
    return _broadcast(site, lambda: 1.0)
