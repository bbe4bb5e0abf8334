"""Kernels: how many directions the eigenvalues of a Gram matrix really use, and how fast they fall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.complexity.axis import principal_eigenvalues
from lightning_cx.functional.complexity.decay import theil_sen
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.linalg import effective_rank, participation_ratio

FIRST_RANK = 3
"""The largest two eigenvalues are left out: the constant and the scale of the inputs, no part of a power law."""

EXAMPLES_PER_RANK = 8
"""Eigenvalues beyond n / 8 tell more about which n examples were drawn than about the kernel (THEORY 8)."""

MIN_RANKS = 5
"""Ranks that a line is drawn through at least, which 56 examples have."""

SPLITS = 5
"""Random splits of the examples into halves, two refits each: their standard deviation is known within a quarter."""


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


# --- In how many directions the examples pull, with an error that holds near saturation too.


GROUPS = 10
"""Tenths of the examples that are left out in turn. Over 40 draws each, counts from 5 of 127 to 29 of 31, the
errors claimed were .82 to 1.27 times the true ones; those of random halves, as the decay has them, fell to .35 where
the counts still grow with n. Leaving out single examples would take n eigendecompositions."""


@dataclass(frozen=True, eq=False)
class KernelDimension:
    """How many directions the examples pull in; tensors are float64 on the device of the Gram matrix.

    Attributes:
        participation_ratio: ``[]`` from 1 to n - 1 (n without centring), `participation_ratio` of the eigenvalues.
        participation_error: ``[]`` its standard error, by leaving out tenths of the examples.
        effective_rank: ``[]`` in the same range and never smaller, `effective_rank` of the eigenvalues.
        effective_error: ``[]`` its standard error.
        examples: n.
    """

    participation_ratio: Tensor
    participation_error: Tensor
    effective_rank: Tensor
    effective_error: Tensor
    examples: int

    def __str__(self) -> str:
        if not bool(self.participation_ratio.isfinite()):
            return "dimension unknown: the Gram matrix is constant, zero, empty or not finite"
        strong = f"{self.participation_ratio:.1f} +- {self.participation_error:.1f} strong directions"
        entropy = f"{self.effective_rank:.1f} +- {self.effective_error:.1f} by entropy"
        return f"{strong} among {self.examples} examples ({entropy})"


def kernel_dimension(gram: Tensor, center: bool = True) -> KernelDimension:
    """Count the directions in which the examples pull, twice: weighted by strength, and by entropy.

    Both counts grow with the number of examples until that exceeds them by far: compare readings of one n. Near n - 1
    the examples have little in common, and what is counted is the examples.

    The errors are the jackknife's over tenths: with theta_g the count without the g-th group of d = n // 10 examples,
    ``(n - d) / (10 d) sum_g (theta_g - mean theta)^2``.

    Args:
        gram: ``[n, n]`` positive semi-definite, any float dtype.
        center: Whether to take off the mean over the examples first, which is one direction of its own.

    Returns:
        KernelDimension; all nan for a constant (zero without centring), empty or non-finite matrix. The errors alone
        are nan with fewer than 10 examples.

    Raises:
        ValueError: If the matrix is not square.

    References:
        THEORY section 3, condition b; Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and
        measurement", eq. 2; Roy & Vetterli 2007, definition 1; Shao & Wu 1989, "A general theory for jackknife
        variance estimation", for the errors.

    Example:
        >>> print(kernel_dimension(torch.eye(20)))
        19.0 +- 0.0 strong directions among 20 examples (19.0 +- 0.0 by entropy)
    """
    gram = as_tensor(gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"a Gram matrix is square, got shape {list(gram.shape)}.")
    gram = gram.detach()
    whole, error = _counts(gram, center), _errors(gram, center)
    return KernelDimension(whole[0], error[0], whole[1], error[1], gram.shape[0])


def _counts(gram: Tensor, center: bool) -> Tensor:
    eigenvalues = principal_eigenvalues(gram, gram.shape[0], center)
    return torch.stack([participation_ratio(eigenvalues), effective_rank(eigenvalues)])


def _errors(gram: Tensor, center: bool) -> Tensor:
    n, left_out = gram.shape[0], gram.shape[0] // GROUPS
    if not left_out:
        return torch.full((2,), torch.nan, dtype=torch.float64, device=gram.device)
    counts = torch.stack([_counts(gram[kept][:, kept], center) for kept in _without_groups(n, left_out, gram.device)])
    return ((n - left_out) / left_out * counts.var(0, unbiased=False)).sqrt()


def _without_groups(n: int, left_out: int, device: torch.device) -> Iterator[Tensor]:
    """Leave out the same groups every time, so that two readings differ by their Gram matrices only."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(device)
    for start in range(0, GROUPS * left_out, left_out):
        yield torch.cat([order[:start], order[start + left_out :]])
