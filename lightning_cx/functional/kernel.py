"""Kernels: how many directions the eigenvalues of a Gram matrix really use, and how fast they fall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.decay import theil_sen
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.principal import principal_eigenvalues

FIRST_RANK = 3
"""The largest two eigenvalues are left out: the constant and the scale of the inputs, no part of a power law."""

EXAMPLES_PER_RANK = 8
"""Eigenvalues beyond n / 8 tell more about which n examples were drawn than about the kernel (THEORY 8)."""

MIN_RANKS = 5
"""Ranks that a line is drawn through at least, which 56 examples have."""

SPLITS = 5
"""Random splits of the examples into halves, two refits each: their standard deviation is known within a quarter."""


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """Count the directions that share the variance: ``(sum lambda)^2 / sum lambda^2``.

    Args:
        eigenvalues: ``[..., r]`` of a positive semi-definite matrix in any order; negative ones, which rounding
            makes, count as 0.

    Returns:
        ``[...]`` float64 between 1 (one direction) and r (all alike); nan if all are 0 or any is not finite.

    References:
        Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement", eq. 2.

    Example:
        >>> float(participation_ratio(torch.tensor([2., 2., 0.])))
        2.0
    """
    share = _shares(eigenvalues)
    return 1 / share.square().sum(-1)


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """Count directions by entropy, which forgives small eigenvalues less: ``exp(-sum p log p)``.

    Args:
        eigenvalues: ``[..., r]`` of a positive semi-definite matrix in any order; negative ones, which rounding
            makes, count as 0. ``p`` is their share of the sum.

    Returns:
        ``[...]`` float64 between 1 and r, never below the participation ratio; nan if all are 0 or any is not
        finite.

    References:
        Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1.

    Example:
        >>> round(float(effective_rank(torch.tensor([2., 2., 0.]))), 9)
        2.0
    """
    share = _shares(eigenvalues)
    return torch.special.entr(share).sum(-1).exp()


def gram_participation_ratio(gram: Tensor) -> Tensor:
    """Count the directions that a Gram matrix uses without diagonalising it: ``(tr K)^2 / |K|_F^2``.

    Args:
        gram: ``[..., n, n]`` positive semi-definite.

    Returns:
        ``[...]`` float64, the `participation_ratio` of the eigenvalues; nan for a zero, empty or non-finite
        matrix.

    Example:
        >>> float(gram_participation_ratio(torch.eye(3)))
        3.0
    """
    gram = as_tensor(gram)
    gram = gram.double()
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    share = gram / trace[..., None, None]  # before squaring: squares of 1e200 would overflow
    whole = share.diagonal(dim1=-2, dim2=-1).sum(-1)  # 1, or 0 / 0 where there is nothing to share
    return whole / share.square().sum((-2, -1))


@dataclass(frozen=True, eq=False)
class EigenvalueDecay:
    """How fast the eigenvalues of a kernel fall with their rank; tensors are float64 on the device of the Gram matrix.

    Attributes:
        exponent: ``[]`` beta of ``lambda_k ~ k^-beta``: 0 all alike, above 1 their sum converges.
        spread: ``[]`` standard deviation of beta over random halves of the examples.
        last_rank: Last rank that was fitted; 0 where there were too few.
    """

    exponent: Tensor
    spread: Tensor
    last_rank: int

    def __str__(self) -> str:
        if not self.last_rank:
            return (
                "eigenvalue decay unknown: it takes 56 examples, or the Gram matrix has too low a rank or is not finite"
            )
        ranks = f"ranks {FIRST_RANK} to {self.last_rank}"
        return f"eigenvalues fall as k^-{self.exponent:.2f} +- {self.spread:.2f} over {ranks}"


def eigenvalue_decay(gram: Tensor) -> EigenvalueDecay:
    """Say how fast a kernel's eigenvalues fall, ``lambda_k ~ k^-beta``: the faster, the later come its fine details.

    beta is minus the Theil-Sen slope of ``log lambda_k`` against ``log k`` over the ranks k from 3 to n / 8. Its
    spread is the standard deviation of the same fit, over the same ranks, to 10 random halves of the examples: the
    delete-half jackknife's standard error.

    Read it as a trend, in time or between networks. It describes the Gram matrix, not the kernel behind it: all
    directions that n examples cannot tell apart lift the eigenvalues together, most where beta is near 1. Gaussian
    features of variance ``k^-1.2`` at n = 512 read 1.10 if there are 4096 of them and 1.04 if there are 100 000.

    Args:
        gram: ``[n, n]`` positive semi-definite, any float dtype.

    Returns:
        EigenvalueDecay. Eigenvalues that are rounding end the ranks early; where fewer than 5 ranks are left, as with
        n < 56 or a zero or non-finite matrix, all is nan. The spread alone is nan where a half has too low a rank.

    Raises:
        ValueError: If the matrix is not square.

    References:
        THEORY section 8; Sen 1968 for the slope; Shao & Wu 1989, "A general theory for jackknife variance
        estimation", for the halves.

    Example:
        >>> x = torch.arange(1.0, 129) / 128
        >>> print(eigenvalue_decay(torch.minimum(x[:, None], x)))  # Brownian motion: (k - 1/2)^-2
        eigenvalues fall as k^-2.12 +- 0.05 over ranks 3 to 16
    """
    gram = as_tensor(gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"a Gram matrix is square, got shape {list(gram.shape)}.")
    gram = gram.detach()
    n = gram.shape[0]
    eigenvalues = _principal_eigenvalues(gram)[: n // EXAMPLES_PER_RANK]
    last = eigenvalues.numel()
    if last < FIRST_RANK + MIN_RANKS - 1:
        unknown = eigenvalues.new_full((), torch.nan)
        return EigenvalueDecay(unknown, unknown, 0)
    halves = [_rank_exponent(_principal_eigenvalues(gram[half][:, half])[:last]) for half in _random_halves(n)]
    return EigenvalueDecay(_rank_exponent(eigenvalues), torch.stack(halves).std(), last)


def _principal_eigenvalues(gram: Tensor) -> Tensor:
    return principal_eigenvalues(gram, gram.shape[0], center=False)


def _rank_exponent(eigenvalues: Tensor) -> Tensor:
    ranks = torch.arange(1, eigenvalues.numel() + 1, device=eigenvalues.device)
    return theil_sen(ranks[FIRST_RANK - 1 :].double().log(), -eigenvalues[FIRST_RANK - 1 :].log())


def _random_halves(n: int) -> Iterator[Tensor]:
    """Draw the same halves every time, so that two readings differ by their Gram matrices only."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(SPLITS):
        order = torch.randperm(n, generator=generator)
        yield from order[: n // 2 * 2].chunk(2)


def _shares(eigenvalues: Tensor) -> Tensor:
    """Divide by the sum, by way of the maximum, whose sum cannot overflow; 0 / 0 and inf / inf are nan."""
    eigenvalues = as_tensor(eigenvalues)
    eigenvalues = eigenvalues.double()
    if eigenvalues.shape[-1] == 0:
        return eigenvalues.new_full((*eigenvalues.shape[:-1], 1), torch.nan)
    positive = eigenvalues.clamp_min(0.0)
    relative = positive / positive.amax(-1, keepdim=True)
    return relative / relative.sum(-1, keepdim=True)
