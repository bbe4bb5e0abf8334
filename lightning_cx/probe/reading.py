"""What a pass over the probe shows, and how its chunks become one matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.batch import padded_cat
from lightning_cx.functional import sketching
from lightning_cx.gradients import GradientSample


@dataclass(frozen=True)
class ProbeReading:
    """Outputs and residuals of the model on the fixed probe.

    Attributes:
        outputs: Model outputs f, [n, C] float64.
        residuals: r, target less prediction, [n, C] float64: y - f for squared errors, onehot - softmax for cross
            entropy, y - rate for Poisson; else minus the derivative of each example's loss with respect to its outputs.
        features: The view of the inputs in which neighbours are sought, [n, d] float64.
        coupled: Whether an example's residual depends on the others in its chunk (in-batch losses, class
            weights); the residual is then its share of the chunk's loss.
        source: In words, which tensor was taken for the model's output.
        gradients: Per-example gradients of the first of the examples, in eval mode, where asked for.
        mixed: Whether the others change the direction of a residual, not only its size (mixup, in-batch negatives): it
            then does not say what the example's own output should become.
        loss: Mean loss of an example; nan where it is not known.
        drawn: Whether residuals depend on random numbers that the loss draws, even in eval mode (a diffusion's times
            and noise, the code of a variational autoencoder): they are then those of one draw, the same each time.
        no_residual: Why the derivative is no residual, in words; empty where it is one.
        flat: Why the size of a residual says nothing, in words: the loss is piecewise linear, and no example is right
            yet. Empty elsewhere.
    """

    outputs: Tensor
    residuals: Tensor
    features: Tensor
    coupled: bool = False
    source: str = ""
    gradients: GradientSample | None = None
    mixed: bool = False
    loss: float = math.nan
    drawn: bool = False
    no_residual: str = ""
    flat: str = ""

    def __str__(self) -> str:
        n, c = self.residuals.shape
        energy = self.residuals.square().sum().item() / n
        coupled = ", examples coupled" if self.coupled else ""
        return f"probe of {n} examples with {c} outputs ({self.source}): residual energy {energy:.4g}{coupled}"


MAX_OUTPUTS = 1024  # wider outputs are folded to this width: energies keep their mean, with relative sd sqrt(2/1024)


class Columns:
    """Rows [n, C] float64 on the host, put together from tensors [n_i, ...] of several chunks.

    Sequences of different lengths are padded with zeros axis by axis, so that a column stays one coordinate. More
    than `MAX_OUTPUTS` columns are folded by signs and target columns that depend on the coordinate alone.
    """

    def __init__(self) -> None:
        self._chunks: list[list[Tensor]] = []  # as they came, while they are narrow
        self._folded: list[Tensor | None] = []

    def add(self, tensors: Sequence[Tensor], scale: float = 1) -> None:
        """Add the rows of one chunk: tensors [n_i, ...], whose columns stand side by side.

        Raises:
            ValueError: If there are more or fewer tensors than in the chunks before.
        """
        if self._chunks and len(self._chunks[0]) != len(tensors):
            raise ValueError(
                f"the model showed {len(self._chunks[0])} output tensors on one part of the probe and {len(tensors)} "
                "on another: pass ProbeSet(loss_fn=...) with outputs that do not depend on the data"
            )
        wide = sum(t[0].numel() for t in tensors) > MAX_OUTPUTS
        self._folded.append(fold(tensors) * scale if wide else None)
        self._chunks.append([t[:0].cpu() if wide else t.double().cpu() * scale for t in tensors])

    def rows(self) -> Tensor:
        """All rows, in the order in which they came."""
        if any(part is not None for part in self._folded):
            # One chunk that is too wide folds them all: folded and plain columns do not mean the same.
            pairs = zip(self._folded, self._chunks, strict=True)
            return torch.cat([fold(chunk) if part is None else part for part, chunk in pairs])
        columns = [padded_cat(_of_one_rank(list(parts))).flatten(1) for parts in zip(*self._chunks, strict=True)]
        columns = [column.reshape(len(column), -1) for column in columns]
        rows = torch.cat(columns, 1)
        return fold(columns) if rows.shape[1] > MAX_OUTPUTS else rows


def _of_one_rank(parts: list[Tensor]) -> list[Tensor]:
    """A `squeeze()` in a model drops an axis that is one long in some chunk only."""
    if len({part.dim() for part in parts}) == 1 and parts[0].dim() > 1:
        return parts
    return [part.reshape(len(part), -1) for part in parts]


def fold(tensors: Sequence[Tensor]) -> Tensor:
    """Fold [n, ...] tensors to [n, MAX_OUTPUTS] by random signs and target columns of the coordinates (count sketch).

    Inner products of rows keep their mean, whatever the widths of other chunks: the hash sees the coordinate only.
    """
    folded = torch.zeros(len(tensors[0]), MAX_OUTPUTS, dtype=torch.float64)
    for number, tensor in enumerate(tensors):
        drawn = sketching.coordinate_hash(tuple(tensor.shape[1:]), number, tensor.device)
        columns, signs = drawn % MAX_OUTPUTS, (drawn // MAX_OUTPUTS % 2 * 2 - 1).double()
        for row, values in zip(folded, tensor, strict=True):  # one by one: double precision of all would not fit
            sums = signs.new_zeros(MAX_OUTPUTS).index_add_(0, columns, values.flatten().double() * signs)
            row += sums.cpu()
    return folded
