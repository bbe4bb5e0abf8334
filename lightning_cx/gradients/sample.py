"""The record of what one tap saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lightning_cx.functional import NoiseScale

EXACT = "exact"
CONTRIBUTION = "contribution"
UNVERIFIED = "unverified"
COUNT_UNEVENLY = "examples count unequally: longer sequences, or classes of a larger weight, count more"


@dataclass(frozen=True)
class LayerGradients:
    """Per-example gradient data of one parameter.

    Attributes:
        node: The autograd nodes that consume the parameter, as PyTorch names them.
        gram: Inner products of the parameter's per-example gradients, [N, N] float64, where asked for.
        squared_norms: Their squared norms, [N] float64, where asked for.
        rows: The gradients themselves, [N, *parameter], where asked for.
        projections: Their inner products with this parameter's part of the fixed directions, [N, k] float64, where
            asked for.
    """

    node: str
    gram: Tensor | None = None
    squared_norms: Tensor | None = None
    rows: Tensor | None = None
    projections: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """What one process's share of a batch comes to; small enough to be sent to the other processes.

    Attributes:
        batch_size: Number of examples n in this process.
        squared_norms: |g_i|^2, [n] float64, where asked for.
        centred_norms: Norms of the gradients less their mean over the share, [n] float64; None without a Gram matrix.
        noise: Noise scale of the share alone; None without a Gram matrix.
        projections: Inner products with fixed random directions, [n, k] float64, where asked for.
        coordinates: Fixed entries of the gradients, [n, c] float64, where asked for.
    """

    batch_size: int
    squared_norms: Tensor | None = None
    centred_norms: Tensor | None = None
    noise: NoiseScale | None = None
    projections: Tensor | None = None
    coordinates: Tensor | None = None


@dataclass(frozen=True)
class GradientSample:
    """Per-example gradients of one batch, as far as they were asked for.

    A row g_i is N times the share of example i in the batch gradient: the derivative of the example's own loss
    where examples do not meet and count alike (`exact`), and its contribution where they do not (`contribution`).
    Where a few examples could not be run without the others, nobody compared (`unverified`): rows are exact if the
    loss is the mean of the examples' own.

    Attributes:
        batch_size: Number of examples N.
        status: `"exact"`, `"contribution"` or `"unverified"`; says what the numbers mean. A tap alone takes the loss
            for the mean of the examples' own losses; where that is not known, `calibrate` compares.
        gram: Inner products <g_i, g_j>, [N, N] float64.
        squared_norms: |g_i|^2, [N] float64.
        projections: Inner products with fixed random directions, [N, k] float64; the same directions for the
            same seed and parameter names, with E<g, R>^2 = |g|^2.
        coordinates: Fixed entries of the gradients, [N, c] float64; the same ones for the same seed and parameters.
        layers: What is known of each parameter, by name.
        coverage: The sum check 1^T K 1 / |N grad|^2; 1 when every use of every parameter was read, nan where it
            could not be made (no Gram, a parameter penalty, zero gradient).
        notes: What a reader should know, in words: unused parameters, penalties left out, coupled examples.
        sums: Sum over the examples of each parameter's gradients, where asked for; None where a penalty on a parameter
            is mixed into it. Parameters that got no gradient are missing.
        blocks: Where processes share a batch, the share of each, this one's included; everything else here is of this
            process alone.
        squared_sum: Then, |sum_i g_i|^2 over the examples of all processes, [] float64; None where it is not known.
        multiple: The gradient that training steps along is this multiple of the mean of the rows: 1 where the loss is
            a mean over the examples, N where it is a sum.
    """

    batch_size: int
    status: str = EXACT
    gram: Tensor | None = None
    squared_norms: Tensor | None = None
    projections: Tensor | None = None
    coordinates: Tensor | None = None
    layers: Mapping[str, LayerGradients] = field(default_factory=dict)
    coverage: float = float("nan")
    notes: tuple[str, ...] = ()
    sums: Mapping[str, Tensor] | None = None
    blocks: tuple[Block, ...] = ()
    squared_sum: Tensor | None = None
    multiple: float = 1.0

    def __str__(self) -> str:
        lines = [
            f"per-example gradients of {self.batch_size} examples over {len(self.layers)} parameters: {self.status}"
        ]
        if self.gram is not None:
            batch_norm = self.gram.sum().clamp_min(0).sqrt().item() / self.batch_size
            lines.append(f"  batch gradient norm {batch_norm:.4g}, sum check {self.coverage:.6f}")
        if self.squared_norms is not None:
            norms = self.squared_norms.sqrt()
            lines.append(f"  example norms from {norms.min():.4g} to {norms.max():.4g}, median {norms.median():.4g}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
