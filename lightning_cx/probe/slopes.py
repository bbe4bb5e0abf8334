"""Partial derivatives of a loss with respect to the outputs it was computed from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def reachable(start: Any, cut: set[Any]) -> dict[Any, list[Any]]:
    """Nodes on the way from `start` down to the nodes of `cut`, where the way ends, each with its children."""
    children: dict[Any, list[Any]] = {}
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node is None or node in children:
            continue
        children[node] = [] if node in cut else [child for child, _ in node.next_functions if child is not None]
        waiting += children[node]
    return children


def partial_slopes(loss: Tensor, outputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """D loss / d output for each output with the others held fixed, and the outputs whose slope is a constant.

    An autoencoder returns its code and the reconstruction made from it: the slope of the code is that of the
    penalty on the code alone, without what flows back through the decoder.

    Args:
        loss: A scalar.
        outputs: Tensors that it depends on.
    """
    nodes = {t.grad_fn for t in outputs}
    nested = any(nodes & reachable(t.grad_fn, nodes - {t.grad_fn}).keys() - {t.grad_fn} for t in outputs)
    if nested:
        slopes = [_one_slope(loss, t, [o for o in outputs if o is not t]) for t in outputs]
    else:
        slopes = _slopes(loss, outputs)
    found = [(t, s) for t, s in zip(outputs, slopes, strict=True) if s is not None]
    flat = [t for t, s in found if s.grad_fn is None or nodes.isdisjoint(reachable(s.grad_fn, nodes))]
    plain = (torch.zeros_like(t) if s is None else s.detach() for t, s in zip(outputs, slopes, strict=True))
    return tuple(plain), flat


def _one_slope(loss: Tensor, output: Tensor, fixed: Sequence[Tensor]) -> Tensor | None:
    handles = [t.register_hook(torch.zeros_like) for t in fixed]
    try:
        return _slopes(loss, [output])[0]
    finally:
        for handle in handles:
            handle.remove()


def _slopes(loss: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    # The graph of the slope tells whether it depends on the output at all: sgn in |f - y| does, a mean does not.
    return torch.autograd.grad(loss, list(outputs), create_graph=True, allow_unused=True)
