"""Which neuron of one layer is which of another: hidden neurons have no names, and odd ones no sign."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

Symmetry: TypeAlias = Literal["odd", "even", "none"]
"""Of an activation: odd ones (tanh) let a neuron change the sign of its incoming and outgoing weights together, even
ones (cosine, square) that of its incoming weights alone, others (ReLU) neither."""

CHANCE_DRAWS = 16
"""Random layers that chance is told by: the mean of so many matchings is known within a twentieth of its value."""


@dataclass(frozen=True, eq=False)
class NeuronMatch:
    """Neurons of one layer, each with its partner in another.

    Attributes:
        distance: Norm of what is left between the weights of one and those of the other, after the best permutation
            and the best signs; nan where a weight is not finite.
        relative: Distance over the norm of the weights of `one`; nan if that is 0.
        permutation: ``[m]`` int64, neuron of `other` that stands for each neuron of `one`; empty if not finite.
        signs: ``[m]`` float64, +1 or -1, by which that neuron is turned.
    """

    distance: float
    relative: float
    permutation: Tensor
    signs: Tensor

    def __str__(self) -> str:
        moved = int((self.permutation != torch.arange(len(self.permutation))).sum())
        turned = int((self.signs < 0).sum())
        return (
            f"{self.relative:.2g} of the weights' norm apart, with {moved} of {len(self.signs)} neurons renamed and "
            f"{turned} turned"
        )


def permutation_sign_distance(one: Any, other: Any, symmetry: Symmetry = "odd") -> NeuronMatch:
    """Say how far two networks with one hidden layer are apart, whatever order and sign their neurons have.

    The minimum over permutations and signs of ``|(W, a) - (W', a')|``, with W the incoming weights, bias as a further
    column, and a the outgoing ones: a sum over neurons, so that an assignment problem gives it exactly. Near 0, two
    runs found the same function by the same neurons; plain distances of two such runs are as large as those of
    strangers.

    Args:
        one: Incoming ``[m, d]`` and outgoing weights ``[o, m]`` as a pair; or ``[m, p]``, all weights of a neuron in
            its row, all of which a sign turns.
        other: The same of the other network, with as many neurons.
        symmetry: Of the activation: "odd" lets a sign turn all weights of a neuron, "even" the incoming ones, and
            "none" nothing.

    Returns:
        NeuronMatch, its distance at least 0.

    Raises:
        ValueError: If the shapes differ or do not fit, or `symmetry` is not known.

    References:
        THEORY section 9; Chen, Lu & Hecht-Nielsen 1993, "On the geometry of feedforward neural network error
        surfaces", for the group of symmetries; Ainsworth, Hayase & Srinivasa 2023, "Git Re-Basin", for assignments.

    Example:
        >>> one = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]])
        >>> other = torch.tensor([[-3.0, -4.0], [1.0, 2.0]]), torch.tensor([[-6.0, 5.0]])
        >>> match = permutation_sign_distance(one, other)
        >>> match.distance, match.permutation.tolist(), match.signs.tolist()
        (0.0, [1, 0], [1.0, -1.0])
    """
    if symmetry not in ("odd", "even", "none"):
        raise ValueError(f'symmetry is "odd", "even" or "none", got {symmetry!r}.')
    (incoming, outgoing), (their_incoming, their_outgoing) = _neurons(one), _neurons(other)
    if incoming.shape != their_incoming.shape or outgoing.shape != their_outgoing.shape:
        raise ValueError(
            f"both networks need the same shape, got {[list(part.shape) for part in (incoming, outgoing.T)]} and "
            f"{[list(part.shape) for part in (their_incoming, their_outgoing.T)]}."
        )
    mine, theirs = torch.cat([incoming, outgoing], 1), torch.cat([their_incoming, their_outgoing], 1)
    if not bool(mine.isfinite().all() & theirs.isfinite().all()):
        return NeuronMatch(math.nan, math.nan, torch.zeros(0, dtype=torch.int64), mine.new_zeros(0))
    turned, kept = incoming @ their_incoming.T, outgoing @ their_outgoing.T
    if symmetry == "odd":
        turned, kept = turned + kept, torch.zeros_like(kept)
    agreement = (turned if symmetry == "none" else turned.abs()) + kept
    rows, columns = (torch.as_tensor(index) for index in linear_sum_assignment(agreement.numpy(), maximize=True))
    signs = torch.where(turned[rows, columns] < 0, -1.0, 1.0).double()
    signs = torch.ones_like(signs) if symmetry == "none" else signs
    # From the weights themselves: a difference of squared norms would round at 1e-8 of them.
    theirs = theirs[columns].clone()
    width = theirs.shape[1] if symmetry == "odd" else incoming.shape[1]
    theirs[:, :width] *= signs[:, None]
    distance, size = float((mine - theirs).norm()), float(mine.norm())
    return NeuronMatch(distance, distance / size if size > 0 else math.nan, columns, signs)


def _neurons(layer: Any) -> tuple[Tensor, Tensor]:
    """Incoming ``[m, d]`` and outgoing weights ``[m, o]`` in float64, neurons in rows."""
    is_pair = isinstance(layer, tuple) and len(layer) == 2
    incoming, outgoing = layer if is_pair else (layer, None)
    incoming = as_tensor(incoming).detach().cpu().double()
    outgoing = incoming.new_zeros(0, len(incoming)) if outgoing is None else as_tensor(outgoing).detach().cpu().double()
    if incoming.ndim != 2 or outgoing.ndim != 2 or outgoing.shape[1] != len(incoming):
        raise ValueError(
            f"m neurons have incoming weights [m, d] and outgoing ones [o, m], got {list(incoming.shape)} and "
            f"{list(outgoing.shape)}."
        )
    return incoming, outgoing.T


@dataclass(frozen=True, eq=False)
class Alignment:
    """How well the neurons of a layer stand for those of a teacher.

    Attributes:
        cosines: ``[k]`` float64, cosine of each of the teacher's neurons with its partner, -1 to 1, 0 to 1 up to sign.
            The smaller layer has only so many partners: k is the teacher's width, or the own one where that is less.
        teacher: ``[k]`` int64, the teacher's neurons.
        student: ``[k]`` int64, their partners.
        value: Mean over all of the teacher's neurons, with 0 for one without a partner; nan if there is none, or a
            weight is not finite.
        chance: The same for random neurons, the mean over 16 random layers.
    """

    cosines: Tensor
    teacher: Tensor
    student: Tensor
    value: float
    chance: float

    def __str__(self) -> str:
        return f"alignment with the teacher's neurons {self.value:.3f} (random ones: {self.chance:.3f})"


def teacher_alignment(weights: Any, teacher: Any, sign: bool = True, seed: int = 0) -> Alignment:
    """Say whether the neurons of a layer have found those of the network that made the targets.

    Each of the teacher's neurons gets a partner of its own, so that the sum of cosines of incoming weights is largest.
    1 for all of them: recovered. `chance` is what random directions would show, much above 0 with many neurons in few
    dimensions.

    Args:
        weights: ``[m, d]`` incoming weights, bias as a further column.
        teacher: ``[t, d]`` those of the teacher.
        sign: Take absolute cosines, for odd and even activations.
        seed: Of the random layers.

    Returns:
        Alignment; neurons without weights have cosine 0.

    Raises:
        ValueError: If the two see different inputs.

    References:
        THEORY sections 8 and 9; Mei, Montanari & Nguyen 2018 for the mean-field view of neurons.

    Example:
        >>> teacher = torch.eye(3)[:2]
        >>> found = teacher_alignment(torch.tensor([[0.0, -2.0, 0.0], [0.0, 0.0, 1.0], [3.0, 0.0, 0.0]]), teacher)
        >>> found.value, found.student.tolist()
        (1.0, [2, 0])
    """
    mine, theirs = (as_tensor(values).detach().cpu().double() for values in (weights, teacher))
    if mine.ndim != 2 or theirs.ndim != 2 or mine.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"both need weights [m, d] of the same inputs, got {list(mine.shape)} and {list(theirs.shape)}."
        )
    if not theirs.numel() or not bool(mine.isfinite().all() & theirs.isfinite().all()):
        none = torch.zeros(0, dtype=torch.int64)
        return Alignment(mine.new_zeros(0), none, none, math.nan, math.nan)
    cosines, rows, columns = _matched(mine, theirs, sign)
    draw = torch.Generator().manual_seed(seed)
    random = [torch.randn(mine.shape, generator=draw, dtype=torch.float64) for _ in range(CHANCE_DRAWS)]
    chance = [float(_matched(layer, theirs, sign)[0].sum()) / len(theirs) for layer in random]
    return Alignment(cosines, rows, columns, float(cosines.sum()) / len(theirs), sum(chance) / CHANCE_DRAWS)


def _matched(mine: Tensor, theirs: Tensor, sign: bool) -> tuple[Tensor, Tensor, Tensor]:
    similarity = cosine_similarity(theirs, mine)
    similarity = similarity.abs() if sign else similarity
    rows, columns = (torch.as_tensor(index) for index in linear_sum_assignment(similarity.numpy(), maximize=True))
    return similarity[rows, columns], rows, columns


def cosine_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Cosines between the rows of two matrices, ``[m, d]`` and ``[k, d]`` float64, as ``[m, k]``; 0 for a zero row."""
    return (_directions(one) @ _directions(other).T).clamp(-1.0, 1.0)


def _directions(rows: Tensor) -> Tensor:
    # The largest entry first: squares of 1e200 would overflow.
    scaled = rows / rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) if rows.numel() else rows
    return scaled / scaled.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
