"""The neurons of a layer: copies, dead and silent ones, and which of them is which of another network's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import betainc
from torch import Tensor

from lightning_cx.functional.convergence import jacobian_rank
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.linalg import effective_rank, eigh


@dataclass(frozen=True, eq=False)
class NeuronReport:
    """The neurons of one layer; what was not given is None.

    Attributes:
        similarity: ``[m, m]`` float64, cosines between incoming weights, -1 to 1.
        groups: Neurons that look at the same thing, in groups of two or more, each ascending.
        duplicates: Share of neurons that could go, since another of their group stays: 0 to 1.
        duplicates_by_chance: The share that random directions of as many inputs would have.
        silent: ``[m]`` bool, whether nothing listens to a neuron.
        dead: ``[m]`` bool, whether its output is the same for all examples, zero or not.
        zero: ``[m]`` bool, whether that output is zero.
        rank: Numerical rank of the Gram matrix of the outputs.
        effective_rank: exp of the entropy of its eigenvalues, 1 to `rank_limit`.
        rank_limit: The most that either can be: neurons or examples, whichever are fewer.
        alignment: With the teacher's neurons.
    """

    similarity: Tensor
    groups: tuple[tuple[int, ...], ...]
    duplicates: float
    duplicates_by_chance: float
    silent: Tensor | None = None
    dead: Tensor | None = None
    zero: Tensor | None = None
    rank: int | None = None
    effective_rank: float | None = None
    rank_limit: int | None = None
    alignment: Alignment | None = None

    def __str__(self) -> str:
        parts = [f"{len(self.similarity)} neurons: {self.duplicates:.0%} are copies"]
        parts[0] += f" (by chance {self.duplicates_by_chance:.0%})"
        if self.dead is not None and self.zero is not None:
            parts.append(f"{int(self.dead.sum())} dead ({int(self.zero.sum())} always zero)")
        if self.silent is not None:
            parts.append(f"{int(self.silent.sum())} silent")
        if self.rank is not None:
            parts.append(f"outputs of rank {self.rank} of {self.rank_limit}, effectively {self.effective_rank:.1f}")
        if self.alignment is not None:
            parts.append(str(self.alignment))
        return ", ".join(parts)


DUPLICATE_COSINE = 0.99
"""Cosine from which on two neurons look at the same thing: 8 degrees. What goes into their activation functions
correlates by it where the inputs are white."""


def neuron_report(
    weights_in: Any,
    weights_out: Any = None,
    activations: Any = None,
    bias: Any = None,
    teacher: Any = None,
    sign: bool = True,
    threshold: float = DUPLICATE_COSINE,
) -> NeuronReport:
    """Find which neurons of a layer do work of their own.

    Copies: neurons whose incoming weights have a cosine of at least `threshold`, up to sign, linked into groups; one
    of each group would do. Dead: the same output for every example. Silent: outgoing weights of about 0. Rank: how many
    different features the layer offers to the next, from ``A^T A`` of its outputs A, not centred.

    With few inputs, random directions come close to each other as well: `duplicates_by_chance` is what m of them
    show, ``1 - (1 - p)^(m - 1)`` for each neuron, with p the chance of a cosine over the threshold.

    Args:
        weights_in: ``[m, ...]`` incoming weights; those of a convolution are flattened.
        weights_out: ``[o, m]`` outgoing weights, or None.
        activations: ``[n, m]`` outputs after the activation function, or None.
        bias: ``[m]``, taken as one more incoming weight, or None.
        teacher: ``[t, d]`` incoming weights of the network that made the targets, bias as last column if `bias` is
            given; or None.
        sign: Whether w and -w are the same thing, as for odd and even activations; not for ReLU.
        threshold: Cosine from which on neurons are copies.

    Returns:
        NeuronReport. A neuron without incoming weights is no copy. From fewer than 32 examples `dead` and `zero` are
        None, from fewer than 2 also the ranks. Where a weight is not finite, duplicates are nan and alignment is, where
        an output is not, dead, zero and ranks are None.

    Raises:
        ValueError: If shapes do not fit, or `threshold` is not in (0, 1).

    References:
        THEORY sections 8 and 9; Fukumizu & Amari 2000 for copies and silent neurons as flat directions; Lu et al. 2020,
        "Dying ReLU and initialization"; Roy & Vetterli 2007 for the effective rank.

    Example:
        >>> weights = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]])
        >>> outputs = torch.tanh(torch.linspace(-1, 1, 40)[:, None] @ weights[:, :1].T)
        >>> report = neuron_report(weights, torch.tensor([[1.0, 1.0, 0.0]]), outputs)
        >>> report.groups, report.dead.tolist(), report.silent.tolist(), report.rank
        (((0, 1),), [False, False, True], [False, False, True], 2)
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is a cosine between 0 and 1, got {threshold}.")
    weights = _incoming(weights_in, bias)
    similarity = cosine_similarity(weights, weights)
    is_finite = bool(weights.isfinite().all())
    groups = _groups((similarity.abs() if sign else similarity) >= threshold) if is_finite else ()
    m = len(weights)
    spare = sum(len(group) - 1 for group in groups) / m if m and is_finite else math.nan
    dead, zero, rank, effective, limit = _outputs(activations, m)
    return NeuronReport(
        similarity,
        groups,
        spare,
        chance_of_duplicates(m, weights.shape[1], sign, threshold),
        _silent(weights_out, m),
        dead,
        zero,
        rank,
        effective,
        limit,
        None if teacher is None else teacher_alignment(weights, teacher, sign),
    )


def chance_of_duplicates(neurons: int, inputs: int, sign: bool = True, threshold: float = DUPLICATE_COSINE) -> float:
    """Compute the share of random neurons that have another closer than `threshold`; nan for none.

    The squared cosine of random directions in d dimensions follows a Beta(1/2, (d - 1)/2) law.

    Example:
        >>> round(chance_of_duplicates(64, 2), 3), round(chance_of_duplicates(64, 20), 3)
        (0.997, 0.0)
    """
    if neurons < 1 or inputs < 1:
        return math.nan
    beyond = 1.0 if inputs == 1 else 1 - float(betainc(0.5, (inputs - 1) / 2, threshold**2))
    return 1 - (1 - (beyond if sign else beyond / 2)) ** (neurons - 1)


def _incoming(weights: Any, bias: Any) -> Tensor:
    weights = as_tensor(weights).detach().cpu().double()
    if weights.ndim < 2:
        raise ValueError(f"incoming weights of m neurons have shape [m, d], got {list(weights.shape)}.")
    weights = weights.flatten(1) if weights.numel() else weights.reshape(len(weights), -1 if len(weights) else 0)
    if bias is None:
        return weights
    bias = as_tensor(bias).detach().cpu().double()
    if bias.shape != (len(weights),):
        raise ValueError(f"{len(weights)} neurons have one bias each, got shape {list(bias.shape)}.")
    return torch.cat([weights, bias[:, None]], 1)


def cosine_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Compute cosines ``[m, k]`` between the rows of ``[m, d]`` and ``[k, d]`` float64; 0 for a zero row."""
    return (_directions(one) @ _directions(other).T).clamp(-1.0, 1.0)


def _directions(rows: Tensor) -> Tensor:
    # The largest entry first: squares of 1e200 would overflow.
    scaled = rows / rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) if rows.numel() else rows
    return scaled / scaled.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _groups(linked: Tensor) -> tuple[tuple[int, ...], ...]:
    """Find connected components of two neurons or more."""
    seen: set[int] = set()
    groups = []
    neighbours = [row.nonzero().flatten().tolist() for row in linked]
    for start in range(len(neighbours)):
        group, waiting = set(), [start]
        while waiting:
            neuron = waiting.pop()
            if neuron not in seen:
                seen.add(neuron)
                group.add(neuron)
                waiting.extend(neighbours[neuron])
        if len(group) > 1:
            groups.append(tuple(sorted(group)))
    return tuple(groups)


MIN_EXAMPLES = 32
"""Examples from which on a neuron that never fires is called dead: one that fires for every tenth is quiet on 32 with
probability .03."""

CONSTANT_RANGE = 1e-6
"""Range of an output, relative to the largest output of the layer, below which it is constant: float32 rounds there."""


def _outputs(
    activations: Any, neurons: int
) -> tuple[Tensor | None, Tensor | None, int | None, float | None, int | None]:
    """Return dead and zero neurons, rank, effective rank and the most that it can be."""
    if activations is None:
        return None, None, None, None, None
    outputs = as_tensor(activations).detach().cpu()
    if outputs.ndim != 2 or outputs.shape[1] != neurons:
        raise ValueError(f"outputs of {neurons} neurons have shape [n, {neurons}], got {list(outputs.shape)}.")
    n = len(outputs)
    if n < 2 or not neurons or not bool(outputs.isfinite().all()):
        return None, None, None, None, None
    dead = zero = None
    largest = outputs.abs().amax(0)
    if n >= MIN_EXAMPLES:
        dead = outputs.amax(0) - outputs.amin(0) <= CONSTANT_RANGE * largest.max()
        zero = dead & (largest <= CONSTANT_RANGE * largest.max())
    scaled = outputs.double() / largest.max().clamp_min(torch.finfo(torch.float32).tiny)
    gram = scaled.T @ scaled if neurons <= n else scaled @ scaled.T
    values = eigh(gram)[0].clamp_min(0)
    effective = float(effective_rank(values)) if float(values.max()) > 0 else 0.0
    return dead, zero, jacobian_rank(values), effective, min(n, neurons)


SILENT_NORM = 1e-3
"""Norm of outgoing weights, relative to the largest of the layer, below which a neuron is not listened to: at that size
it moves the outputs by less than a thousandth of what its neighbours do."""


def _silent(weights_out: Any, neurons: int) -> Tensor | None:
    if weights_out is None:
        return None
    weights = as_tensor(weights_out).detach().cpu().double()
    if weights.ndim != 2 or weights.shape[1] != neurons:
        raise ValueError(f"outgoing weights of {neurons} neurons have shape [o, {neurons}], got {list(weights.shape)}.")
    sizes = weights.abs().amax(0) if len(weights) else weights.new_zeros(neurons)
    if not bool(sizes.isfinite().all()):
        return None
    norms = (weights / sizes.max()).norm(dim=0) if neurons and float(sizes.max()) > 0 else sizes
    return norms <= SILENT_NORM * norms.max() if neurons else norms > 0


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


Symmetry: TypeAlias = Literal["odd", "even", "none"]
"""Of an activation: odd ones (tanh) let a neuron change the sign of its incoming and outgoing weights together, even
ones (cosine, square) that of its incoming weights alone, others (ReLU) neither."""


def permutation_sign_distance(one: Any, other: Any, symmetry: Symmetry = "odd") -> NeuronMatch:
    """Compute the distance of two one-hidden-layer networks, whatever order and sign their neurons have.

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
    """Return incoming ``[m, d]`` and outgoing weights ``[m, o]`` in float64, neurons in rows."""
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


CHANCE_DRAWS = 16
"""Random layers that chance is told by: the mean of so many matchings is known within a twentieth of its value."""


def teacher_alignment(weights: Any, teacher: Any, sign: bool = True, seed: int = 0) -> Alignment:
    """Measure whether the neurons of a layer have found those of the network that made the targets.

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
