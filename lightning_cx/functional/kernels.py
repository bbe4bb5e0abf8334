"""Kernels: the spectrum of a Gram matrix, its alignment with a target, and the shares of blocks of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.complexity.basis import level_index, mean_by_level
from lightning_cx.functional.complexity.spectrum import theil_sen
from lightning_cx.functional.inputs import as_gram, as_tensor
from lightning_cx.functional.linalg import (
    MIN_EIGENVALUE,
    centred,
    effective_rank,
    participation_ratio,
    principal_eigenvalues,
    principal_modes,
)
from lightning_cx.functional.noise import jackknife_covariance, jackknife_estimates, signal_and_noise, with_interval

FIRST_RANK = 3
"""The largest two eigenvalues are left out: the constant and the scale of the inputs, no part of a power law."""


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


EXAMPLES_PER_RANK = 8
"""Eigenvalues beyond n / 8 tell more about which n examples were drawn than about the kernel (THEORY 8)."""

MIN_RANKS = 5
"""Ranks that a line is drawn through at least, which 56 examples have."""


def eigenvalue_decay(gram: Tensor) -> EigenvalueDecay:
    """Fit how fast a kernel's eigenvalues fall, ``lambda_k ~ k^-beta``: the faster, the later come its fine details.

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
    gram = as_gram(gram)
    n = gram.shape[0]
    eigenvalues = _principal_eigenvalues(gram)[: n // EXAMPLES_PER_RANK]
    last = eigenvalues.numel()
    if last < FIRST_RANK + MIN_RANKS - 1:
        unknown = eigenvalues.new_full((), torch.nan)
        return EigenvalueDecay(unknown, unknown, 0)
    halves = [_rank_exponent(_principal_eigenvalues(gram[half][:, half])[:last]) for half in _random_halves(n)]
    return EigenvalueDecay(_rank_exponent(eigenvalues), torch.stack(halves).std(), last)


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
    gram = as_gram(gram)
    whole, error = _counts(gram, center), _errors(gram, center)
    return KernelDimension(whole[0], error[0], whole[1], error[1], gram.shape[0])


def _principal_eigenvalues(gram: Tensor) -> Tensor:
    return principal_eigenvalues(gram, gram.shape[0], center=False)


def _rank_exponent(eigenvalues: Tensor) -> Tensor:
    ranks = torch.arange(1, eigenvalues.numel() + 1, device=eigenvalues.device)
    return theil_sen(ranks[FIRST_RANK - 1 :].double().log(), -eigenvalues[FIRST_RANK - 1 :].log())


SPLITS = 5
"""Random splits of the examples into halves, two refits each: their standard deviation is known within a quarter."""


def _random_halves(n: int) -> Iterator[Tensor]:
    """Draw the same halves every time, so that two readings differ by their Gram matrices only."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(SPLITS):
        order = torch.randperm(n, generator=generator)
        yield from order[: n // 2 * 2].chunk(2)


def _counts(gram: Tensor, center: bool) -> Tensor:
    eigenvalues = principal_eigenvalues(gram, gram.shape[0], center)
    return torch.stack([participation_ratio(eigenvalues), effective_rank(eigenvalues)])


GROUPS = 10
"""Tenths of the examples that are left out in turn. Over 40 draws each, counts from 5 of 127 to 29 of 31, the
errors claimed were .82 to 1.27 times the true ones; those of random halves, as the decay has them, fell to .35 where
the counts still grow with n. Leaving out single examples would take n eigendecompositions."""


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


CHANCE_DEVIATIONS = 1.96
"""Standard deviations above the mean that 2 to 5% of random pairings exceed (1000 or more of each, 30 to 100
examples, numbers and classes): the law leans to the right where a target has one output."""

HALF = 0.5 - 1e-12
"""A cumulative share this close to one half counts as one half: rounding cannot choose the mode."""


@dataclass(frozen=True, eq=False)
class CumulativePower:
    """How much of a target lies in the leading modes of a kernel; every tensor is float64.

    Attributes:
        power: ``[r]`` share of the target's energy in the leading 1, 2, ... r modes, of those that are more than
            rounding; ascending in ``[0, 1]``. What r modes leave out, the kernel cannot fit on these examples.
        area: ``[]`` in ``[0, 1]``, the area under `power` over the share of modes taken: .5 for a target that knows
            nothing of the kernel, near 1 where the first modes hold it.
        null_sd: ``[]`` standard deviation of the area for such a target.
    """

    power: Tensor
    area: Tensor
    null_sd: Tensor

    @property
    def chance_high(self) -> Tensor:
        """``[]`` area that about 95% of targets which know nothing of the kernel stay below; never above 1."""
        return (0.5 + CHANCE_DEVIATIONS * self.null_sd).clamp_max(1.0)

    def __str__(self) -> str:
        if not bool(self.area.isfinite()):
            return "cumulative power unknown: the target is constant, the kernel zero, or a number is not finite"
        area = f"area {self.area:.3f} (chance 0.500 +- {self.null_sd:.3f})"
        r = self.power.numel()
        reached = self.power >= HALF
        if not bool(reached.any()):
            return f"all {r} modes hold {100 * self.power[-1]:.0f}% of the target's energy; {area}"
        return f"half of the target's energy lies in the leading {int(reached.int().argmax()) + 1} of {r} modes; {area}"


def cumulative_power(gram: Tensor, targets: Tensor, center: bool = True) -> CumulativePower:
    """Compute the share of a target in the leading modes of a kernel, which are learned first and from few examples.

    With ``u_k`` the eigenvectors of the centred Gram matrix, strongest first, and y the centred target,
    ``C(rho) = sum_{k <= rho} |u_k^T y|^2 / |y|^2``. Modes of one eigenvalue have no order: they share what they hold
    evenly, and so do the m - r directions that the kernel does not see, where m = n - 1 (n without centring). The
    area is that under the straight lines through (0, 0), ``(rho / m, C(rho))``, ..., (1, 1).

    A centred target paired at random with the examples holds ``1 / m`` of its energy in each mode on average, so that
    the expected area is exactly .5 at every n. `null_sd` is exact for targets turned at random, as normal ones are.

    Args:
        gram: ``[n, n]`` positive semi-definite, any float dtype.
        targets: ``[n]`` or ``[n, C]``, any dtype, classes as one-hot rows; energies add up over the outputs.
        center: Whether to take off the means first. Without it the constant is a mode and part of the target.

    Returns:
        CumulativePower on the device of the Gram matrix. For a constant target (a zero one without centring) or one
        that is not finite all is nan; for a constant (zero) or non-finite Gram matrix there are no modes either.
        Two examples leave one direction after centring: .5, and no standard deviation.

    Raises:
        ValueError: If the matrix is not square or the targets do not have one row of numbers per example.

    References:
        Canatar, Bordelon & Pehlevan 2021, "Spectral bias and task-model alignment explain generalization in kernel
        regression and infinitely wide neural networks".

    Example:
        >>> kernel, target = torch.diag(torch.tensor([4., 3., 2., 1.])), torch.tensor([3., 1., 0., 0.])
        >>> print(cumulative_power(kernel, target, center=False))
        half of the target's energy lies in the leading 1 of 4 modes; area 0.850 (chance 0.500 +- 0.161)
    """
    gram, unit = _checked(gram, targets, center)
    n = gram.shape[0]
    eigenvalues, modes = principal_modes(gram, n, center) if n else (gram.new_zeros(0), gram)
    r, m = eigenvalues.numel(), n - 1 if center else n
    if r == 0:
        unknown = unit.new_full((), torch.nan)
        return CumulativePower(unit.new_zeros(0), unknown, unknown)
    tied = level_index(-eigenvalues, MIN_EIGENVALUE)
    held = _evenly((modes.T @ unit).square().sum(1), tied)
    # A mode counts from where it is taken on, and its own straight line takes half a step off.
    counts = _evenly(1 - (torch.arange(r, dtype=torch.float64, device=gram.device) + 0.5) / m, tied)
    unseen = (m - r) / (2 * m)
    area = held @ counts + (1 - held.sum()) * unseen
    spread = (counts - 0.5).square().sum() + (m - r) * (unseen - 0.5) ** 2
    return CumulativePower(held.cumsum(0).clamp_max(1.0), area, _null_sd(spread, unit, m))


@dataclass(frozen=True, eq=False)
class ChanceAlignment:
    """What alignment a kernel has with targets that know nothing of it; tensors are float64.

    Attributes:
        mean: ``[]`` in ``[0, 1]``, the expected alignment.
        sd: ``[]`` its standard deviation; nan with fewer than 2 free directions.
    """

    mean: Tensor
    sd: Tensor

    @property
    def high(self) -> Tensor:
        """``[]`` what about 95% of such targets stay below; never above 1."""
        return (self.mean + CHANCE_DEVIATIONS * self.sd).clamp_max(1.0)

    def __str__(self) -> str:
        if not bool(self.mean.isfinite()):
            return "chance alignment unknown: the target is constant, the kernel zero, or a number is not finite"
        return f"alignment by chance {self.mean:.3f} +- {self.sd:.3f}"


def chance_alignment(gram: Tensor, targets: Tensor, center: bool = True) -> ChanceAlignment:
    """Compute the `kernel_target_alignment` that a kernel has by chance; within two deviations it means nothing.

    Turned at random against each other, centred matrices A and B of norm 1 in m = n - 1 dimensions (n without
    centring) have the inner product ``tr A tr B / m`` on average, with the variance
    ``2 (1 - (tr A)^2 / m) (1 - (tr B)^2 / m) / ((m - 1)(m + 2))``. ``(tr A)^2`` is the participation ratio. The mean is
    that over all pairings of the targets with the examples as well; the deviation is close to theirs.

    Args:
        gram: ``[n, n]`` positive semi-definite, any float dtype.
        targets: ``[n]`` or ``[n, C]``, any dtype, classes as one-hot rows.
        center: As for `kernel_target_alignment`.

    Returns:
        ChanceAlignment; all nan where the alignment is nan.

    Raises:
        ValueError: If the matrix is not square or the targets do not have one row of numbers per example.

    References:
        Cortes, Mohri & Rostamizadeh 2012, section 2, for the alignment; the moments are those of a matrix turned by
        Haar's measure (Collins & Sniady 2006, "Integration with respect to the Haar measure").

    Example:
        >>> print(chance_alignment(torch.eye(9) + 1, torch.arange(9.0)))  # centred, a multiple of y y^T in no direction
        alignment by chance 0.354 +- 0.000
    """
    gram, unit = _checked(gram, targets, center)
    n = gram.shape[0]
    matrix, m = _direction(gram, center), n - 1 if center else n
    trace = matrix.diagonal().sum()  # of a matrix of norm 1: its square is the participation ratio
    size = (unit.T @ unit).norm()
    return ChanceAlignment(trace / m / size, _null_sd(1 - trace.square() / m, unit, m) / size)


def kernel_target_alignment(gram: Tensor, targets: Tensor, center: bool = True) -> Tensor:
    """Measure how well a kernel's similarities match the target's: ``<K, y y^T> / (|K| |y y^T|)``.

    The cosine between two matrices in the Frobenius inner product, both centred, ``H K H`` with ``H = I - 11^T / n``.
    A target that knows nothing of the kernel has, for one output, ``sqrt(participation ratio) / (n - 1)`` on average.

    Args:
        gram: ``[n, n]`` positive semi-definite, any float dtype.
        targets: ``[n]`` or ``[n, C]``, any dtype; ``y y^T`` adds up over the outputs. Classes go in as one-hot rows:
            labels 0, 1, 2 would be numbers.
        center: Whether to take off the means. Without it the constant parts of kernel and target align, and hide
            the rest.

    Returns:
        ``[]`` float64 in ``[0, 1]``, 1 where the kernel is ``y y^T``. nan for a constant target or kernel (zero ones
        without centring), for no examples, or if anything is not finite.

    Raises:
        ValueError: If the matrix is not square or the targets do not have one row of numbers per example.

    References:
        Cortes, Mohri & Rostamizadeh 2012, "Algorithms for learning kernels based on centered alignment",
        section 2; Cristianini et al. 2001, "On kernel-target alignment", without centring.

    Example:
        >>> labels = torch.tensor([1., 1., -1., -1.])
        >>> float(kernel_target_alignment(labels[:, None] * labels, labels))
        1.0
    """
    gram, unit = _checked(gram, targets, center)
    return (unit * (_direction(gram, center) @ unit)).sum() / (unit.T @ unit).norm()


def _checked(gram: Tensor, targets: Tensor, center: bool) -> tuple[Tensor, Tensor]:
    """Return the Gram matrix as it came and the targets ``[n, C]`` of energy 1, nan where they have none."""
    gram, targets = as_gram(gram), as_tensor(targets)
    n = gram.shape[0]
    if targets.ndim == 0 or targets.shape[0] != n or 0 in targets.shape[1:]:
        raise ValueError(f"the Gram matrix is about {n} examples, but the targets have shape {list(targets.shape)}.")
    targets = targets.detach().double()
    targets = targets[:, None] if targets.ndim == 1 else targets.flatten(1)
    deviation = targets - targets.mean(0) if center else targets
    size, allowed = _largest(deviation), _resolution(targets) * _largest(targets)
    unit = deviation / torch.where(size > allowed, size, torch.nan)
    return gram, unit / unit.norm()


def _largest(values: Tensor) -> Tensor:
    """Return the largest absolute value, 0 of nothing; nan and inf stay."""
    return values.abs().amax() if values.numel() else values.new_zeros(())


def _resolution(values: Tensor) -> float:
    """Return the share of the largest entry by which the mean of n rows may be wrong, in the dtype of the values."""
    return values.shape[0] * torch.finfo(values.dtype if values.is_floating_point() else torch.float64).eps


def _evenly(values: Tensor, tied: Tensor) -> Tensor:
    """Replace the values of modes of one eigenvalue by their mean."""
    return mean_by_level(values, tied, int(tied[-1]) + 1)[tied]


def _null_sd(spread: Tensor, unit: Tensor, m: int) -> Tensor:
    """Return the standard deviation of ``tr(A U B U^T)`` over rotations U of m dimensions; ``spread = tr A^2``.

    A has what the modes count in the area, B the energies of the target along its own axes, which sum to 1.
    """
    if m < 2:
        return torch.full_like(spread, torch.nan)
    unevenness = (unit.T @ unit).square().sum() - 1 / m
    return (2 * spread * unevenness / ((m - 1) * (m + 2))).clamp_min(0.0).sqrt()


def _direction(gram: Tensor, center: bool) -> Tensor:
    """Return the Gram matrix, centred and of norm 1; nan where nothing is left of it."""
    resolution = _resolution(gram)
    gram = gram.double()
    matrix = centred(centred(gram, gram.shape[0]).T, gram.shape[0]) if center and gram.numel() else gram
    size, allowed = _largest(matrix), resolution * _largest(gram)
    matrix = matrix / torch.where(size > allowed, size, torch.nan)  # before squaring, and not rounding
    return matrix / matrix.norm()


@dataclass(frozen=True, eq=False)
class BlockShares:
    """How much of the descent of the loss each block of parameters gives; every tensor is float64 on one device.

    Attributes:
        blocks: Names of the B blocks.
        share: ``[B]`` share of the descent, unbiased parts over their unbiased sum, adding up to 1. Not clamped: a
            block that gives nothing comes out a little above or below 0. nan where the sum is not positive.
        low: ``[B]`` lower end of the 95% interval, between 0 and 1; above 0 the block surely gives something.
        high: ``[B]`` upper end, between 0 and 1; 1 for all while the descent is not distinguishable from noise.
        noise_share: ``[B]`` share of the variance of one example's gradient that lies in the block, adding up to 1; nan
            without variance.
        signal: ``[B]`` unbiased estimate of ``|G_b|^2``, the squared norm of the block's expected gradient; may be
            negative.
        noise: ``[B]`` unbiased estimate of ``tr Sigma_b``, the variance of one example's gradient in the block.
        covariance: ``[B, B]`` jackknife covariance of `signal`; nan for two examples.
        degrees_of_freedom: Those of the Student t of the interval: examples less one, added over pooled batches.
    """

    blocks: tuple[str, ...]
    share: Tensor
    low: Tensor
    high: Tensor
    noise_share: Tensor
    signal: Tensor
    noise: Tensor
    covariance: Tensor
    degrees_of_freedom: int

    @property
    def is_known(self) -> bool:
        """Whether the intervals say anything: not where the descent of all blocks is not distinguishable from noise."""
        return bool((self.high < 1).any() | (self.low > 0).any())

    def __str__(self) -> str:
        if not self.is_known:
            return "shares of the descent unknown: the mean gradient is not distinguishable from noise"
        return "descent: " + ", ".join(
            f"{name} {100 * share:.0f}% ({100 * low:.0f} to {100 * high:.0f}%)"
            for name, share, low, high in zip(
                self.blocks, self.share.tolist(), self.low.tolist(), self.high.tolist(), strict=True
            )
        )


def block_shares(grams: Mapping[str, Tensor]) -> BlockShares:
    """Estimate which blocks of a network still have descent to give: ``|G_b|^2 / sum_b |G_b|^2``.

    To first order a step of size eta lowers the loss by ``eta |G|^2``, and this adds up over blocks of parameters. With
    K_b the Gram matrix of the block's per-example gradients of the loss, ``1^T K_b 1 / N^2`` is the squared norm of the
    functional gradient after it went through the block's own tangent kernel. That number counts each example's
    agreement with itself, which is noise for every other batch; without the diagonal, ``|G_b|^2 = (1^T K_b 1 - tr K_b)
    / (N (N - 1))`` is unbiased, and 0 on average for a block that is all noise.

    The interval is Fieller's for a ratio, with the delete-one jackknife's covariance: wide where little descent is left
    to share. In a block that is all noise the jackknife overstates the error, up to twice the variance: such a block is
    taken for a real one less often than the level says.

    Args:
        grams: Gram matrix ``[N, N]`` of each block, any float dtype, not centred. They must not overlap, and together
            be all that is to be shared out.

    Returns:
        BlockShares. With fewer than 2 examples or non-finite entries all is nan. With 2 there are shares, but every
        interval is ``[0, 1]``. A block without gradient has share and interval 0.

    Raises:
        ValueError: If there is no block, or a matrix is not square or not of the size of the others.

    References:
        THEORY section 8; Nitanda & Suzuki 2018, "Functional gradient boosting based on residual network perception",
        for blocks as steps along the functional gradient; McCandlish et al. 2018, "An empirical model of large-batch
        training", appendix A.1, for the estimate; Fieller 1954 and Efron & Stein 1981 for the interval.

    Example:
        >>> first, second = torch.tensor([[2.0, 1.0], [2.2, 0.6], [1.8, 1.3], [2.1, 0.9], [1.9, 1.2]]).split(1, dim=1)
        >>> print(block_shares({"first": first @ first.T, "second": second @ second.T}))
        descent: first 80% (66 to 94%), second 20% (6 to 34%)
    """
    stack = _stack(grams)
    n = stack.shape[-1]
    traces, sums = stack.diagonal(dim1=1, dim2=2).sum(1), stack.sum((1, 2))
    signal, noise = signal_and_noise(traces, sums, n)
    covariance = jackknife_covariance(jackknife_estimates(stack, traces, sums)[0])
    return _shared_out(tuple(grams), signal, noise, covariance, max(n - 1, 0))


def pool_block_shares(shares: Sequence[BlockShares]) -> BlockShares:
    """Combine the shares of several batches into steadier ones: mean descent of a block over the mean descent of all.

    Args:
        shares: Of disjoint batches and the same blocks in the same order, at least one. Batches count equally.

    Returns:
        BlockShares; for a single one the same numbers. Any nan makes the pool nan: leave such batches out.

    Raises:
        ValueError: If there are none, or their blocks differ.

    Example:
        >>> one = block_shares({"a": torch.ones(4, 4), "b": torch.eye(4)})
        >>> pool_block_shares([one, one]).share.tolist() == one.share.tolist()
        True
    """
    kinds = {share.blocks for share in shares}
    if len(kinds) != 1:
        raise ValueError(f"pooling needs shares of the same blocks, got {len(kinds)} kinds in {len(shares)} batches.")
    count = len(shares)
    return _shared_out(
        shares[0].blocks,
        torch.stack([share.signal for share in shares]).mean(0),
        torch.stack([share.noise for share in shares]).mean(0),
        torch.stack([share.covariance for share in shares]).mean(0) / count,
        sum(share.degrees_of_freedom for share in shares),
    )


def _stack(grams: Mapping[str, Tensor]) -> Tensor:
    """Stack to ``[B, N, N]`` float64; one bad entry spoils all, for every share is of the same sum."""
    matrices = [as_tensor(gram).detach() for gram in grams.values()]
    shapes = sorted({tuple(gram.shape) for gram in matrices})
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != shapes[0][1]:
        raise ValueError(f"needs a square Gram matrix of the same examples for each block, got shapes {shapes}.")
    stack = torch.stack([gram.double() for gram in matrices])
    return torch.where(stack.isfinite().all(), stack, torch.nan)


def _shared_out(
    blocks: tuple[str, ...], signal: Tensor, noise: Tensor, covariance: Tensor, degrees_of_freedom: int
) -> BlockShares:
    """Give each block its share of the sum, with Fieller's interval for a part of a whole."""
    whole, with_whole = signal.sum(), covariance.sum(1)
    joint = torch.stack(  # of the whole and each block: [2, 2, B]
        [
            torch.stack([covariance.sum().expand_as(signal), with_whole]),
            torch.stack([with_whole, covariance.diagonal()]),
        ]
    )
    # A squared norm below 0 says no more than 0 does.
    interval = with_interval(whole, signal.clamp_min(0.0), joint, degrees_of_freedom)
    variance = noise.sum()
    return BlockShares(
        blocks=blocks,
        share=torch.where(whole > 0, signal / whole, torch.nan),
        low=interval.low.clamp_max(1.0),
        high=interval.high.clamp_max(1.0),
        noise_share=torch.where(variance > 0, noise / variance, torch.nan),
        signal=signal,
        noise=noise,
        covariance=covariance,
        degrees_of_freedom=degrees_of_freedom,
    )
