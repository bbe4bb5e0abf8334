"""Gradients of a stretch of rows of a parameter, as attention cuts its projections out of one matrix."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_cx.gradients.directions import Directions
from lightning_cx.gradients.sources import Source, output_shape
from lightning_cx.gradients.transfer import signed
from lightning_cx.gradients.uses import Products, Use

_CUTS = frozenset({"SliceBackward0", "SplitBackward0", "SplitWithSizesBackward0", "UnsafeSplitBackward0"})


@dataclass(frozen=True)
class Placed(Use):
    """`part` stands at rows `first` onwards of a parameter with `total` rows; the others have no gradient."""

    part: Use
    first: int
    total: int

    @property
    def shape(self) -> tuple[int, ...]:
        n, _, *rest = self.part.shape
        return (n, self.total, *rest)

    def slab(self, start: int, stop: int) -> Tensor:
        n, rows, *rest = self.part.shape
        inside = slice(max(start - self.first, 0), min(stop - self.first, rows))
        if inside.start >= inside.stop:
            return self.part.slab(0, 1).new_zeros(n, stop - start, *rest)
        found = self.part.slab(inside.start, inside.stop)
        before = self.first + inside.start - start
        whole = found.new_zeros(n, stop - start, *rest)
        whole[:, before : before + found.shape[1]] = found
        return whole

    def gram(self) -> Tensor:
        return self.part.gram()

    def squared_norms(self) -> Tensor:
        return self.part.squared_norms()

    def project(self, directions: Directions) -> Tensor:
        if directions.left is None or not isinstance(self.part, Products):
            return directions.of_rows(self.rows())
        rows = slice(self.first, self.first + self.part.shape[1])
        return self.part.project(Directions(directions.count, directions.core, directions.left[rows], directions.right))


def place(source: Source, use: Use) -> Use | None:
    """The use on the parameter, if only a cut of its rows and a transpose lie between them."""
    *turns, cut = source.nodes
    if not isinstance(use, Products) or any(node.name() != "TBackward0" for node in turns):
        return None
    output = turns[-1].next_functions[0][1] if turns else source.output
    name, total = cut.name(), output_shape(source.leaf)[0]
    if name not in _CUTS or signed(cut._saved_dim) % 2:
        return None
    if name == "SliceBackward0":
        first = signed(cut._saved_start)
        first = first + total if first < 0 else first
        if cut._saved_step != 1:
            return None
    else:
        first = sum(cut._saved_split_sizes[:output]) if "Sizes" in name else output * cut._saved_split_size
    return Placed(use.transposed if len(turns) % 2 else use, first, total)
