"""Where the examples lie in a tensor, in a form that survives reshaping.

In row-major order the example of element e is (e // stride) % N: the *stride* of the examples says where they lie,
whether they have an axis of their own ([N, T, d]: T d, [T, N, d]: d) or share one with something else ([N T, d]: T d,
[T N, d]: d). A view leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import Tensor

Shape = tuple[int, ...]
SHARED = 0  # the place of a tensor that all examples share


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
    """The stride of examples that lie on `axis`, each `inner` entries long."""
    return prod(shape[axis + 1 :]) * inner


def fits(shape: Shape, stride: int, n: int) -> bool:
    """Whether a tensor of this shape falls into examples of this stride."""
    return stride > 0 and prod(shape) % (stride * n) == 0


def candidates(shape: Shape, n: int) -> tuple[list[int], list[int]]:
    """Strides that examples may have in a tensor: on an axis of their own, and on an axis shared with something."""
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
