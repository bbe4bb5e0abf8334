"""Kernels: how many directions the eigenvalues of a Gram matrix really use."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor


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


def _shares(eigenvalues: Tensor) -> Tensor:
    """Divide by the sum, by way of the maximum, whose sum cannot overflow; 0 / 0 and inf / inf are nan."""
    eigenvalues = as_tensor(eigenvalues)
    eigenvalues = eigenvalues.double()
    if eigenvalues.shape[-1] == 0:
        return eigenvalues.new_full((*eigenvalues.shape[:-1], 1), torch.nan)
    positive = eigenvalues.clamp_min(0.0)
    relative = positive / positive.amax(-1, keepdim=True)
    return relative / relative.sum(-1, keepdim=True)
