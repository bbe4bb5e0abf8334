"""Gradient noise from Gram matrices: how much of a batch gradient is signal, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from lightning_cx.functional.inputs import as_gram


@dataclass(frozen=True, eq=False)
class NoiseScale:
    """The gradient noise scale with its uncertainty; every tensor is float64 on the device of the Gram matrix.

    Attributes:
        value: ``[]`` noise / signal, in examples: the batch size at which noise and signal are equal. Batches
            far below it are mostly noise, batches far above it mostly repeat themselves. nan if the signal is
            not positive.
        low: ``[]`` lower end of the 95% interval; informative even where the value is not, because a negative
            signal counts as zero here.
        high: ``[]`` upper end; inf while the signal is not distinguishable from zero.
        signal: ``[]`` unbiased estimate of ``|G|^2``, the squared norm of the expected gradient; may be negative.
        noise: ``[]`` unbiased estimate of ``tr Sigma``, the variance of one example's gradient.
        covariance: ``[2, 2]`` jackknife covariance of (signal, noise); nan for two examples.
        degrees_of_freedom: Those of the Student t of the interval: examples less one, added over pooled batches.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    signal: Tensor
    noise: Tensor
    covariance: Tensor
    degrees_of_freedom: int

    @property
    def snr(self) -> Tensor:
        """``[]`` signal / noise of one example, the reciprocal of the noise scale; that of a batch of b is b times it.

        The squared mean over the variance, both added up over the parameters (Liu et al. 2020, "Understanding why
        neural networks generalize well through GSNR of parameters", eq. 1, define it for one parameter). Neither
        clamped nor biased, so that averages over time stay honest; negative where the signal is not
        distinguishable from zero.
        """
        return self.signal / self.noise

    def squared_mean(self, examples: int) -> Tensor:
        """``[]`` expected squared norm of the mean gradient of so many examples: signal + noise / examples.

        For the batch that the estimate was made of it is exactly that batch's own.
        """
        return self.signal + self.noise / examples

    def __str__(self) -> str:
        if not bool(self.noise.isfinite()):
            return "noise scale unknown: it takes at least 2 finite gradients"
        interval = f"95% between {self.low:.3g} and {self.high:.3g}"
        if not bool(self.high.isfinite()):
            interval = f"95% above {self.low:.3g}, the signal is not significant"
        value = f"{self.value:.3g} examples" if bool(self.value.isfinite()) else "unknown"
        return f"noise scale {value} ({interval}; signal {self.signal:.3g}, noise {self.noise:.3g})"


def noise_scale(gram: Tensor) -> NoiseScale:
    """Estimate the batch size beyond which larger batches stop paying: ``B = tr Sigma / |G|^2``.

    With d the trace and S the sum of the Gram matrix K of N per-example gradients,
    ``|G|^2 = (S - d) / (N (N - 1))`` and ``tr Sigma = d / N - |G|^2``, both unbiased. The interval is Fieller's
    for a ratio: all B for which ``noise - B signal`` is within t standard errors of 0, where the covariance of
    (signal, noise) is the delete-one jackknife's and t is Student's with N - 1 degrees of freedom. Neither end
    relies on the signal being well away from zero, as the delta method would.

    Args:
        gram: ``[N, N]`` inner products of per-example gradients, any float dtype. It must not be centred, for
            the mean is the signal.

    Returns:
        NoiseScale. With fewer than 2 examples or non-finite entries all is nan; with 2 there is a value but the
        interval is ``[0, inf]``.

    Raises:
        ValueError: If the matrix is not square.

    References:
        McCandlish et al. 2018, "An empirical model of large-batch training", section 2.2 and appendix A.1
        (the simple noise scale); Fieller 1954; Efron & Stein 1981 for the jackknife.

    Example:
        >>> gradients = torch.tensor([[1., 1.], [1., -1.], [2., 0.]])
        >>> print(noise_scale(gradients @ gradients.T))
        noise scale 1 examples (95% above 0, the signal is not significant; signal 1.33, noise 1.33)
    """
    gram = as_gram(gram).double()
    # One bad entry spoils every number: inf in one place must not come out as a finite ratio.
    gram = torch.where(gram.isfinite().all(), gram, torch.nan)
    n = gram.shape[0]
    trace, total = gram.diagonal().sum(), gram.sum()
    signal, noise = signal_and_noise(trace, total, n)
    covariance = jackknife_covariance(torch.stack(jackknife_estimates(gram, trace, total)))
    return with_interval(signal, noise, covariance, max(n - 1, 0))


def pool_noise_scales(scales: Sequence[NoiseScale]) -> NoiseScale:
    """Combine the noise scales of several batches into a steadier one: mean noise over mean signal.

    A mean of ratios would be ruled by the batches whose signal happens to be near zero. Batches count equally;
    their errors are taken as independent, so the covariance of the means is the mean covariance over their
    number.

    Args:
        scales: Noise scales of disjoint batches, at least one.

    Returns:
        NoiseScale; for a single one the same numbers. Any nan makes the pool nan: leave such batches out.

    Raises:
        ValueError: If there are none.

    Example:
        >>> scale = noise_scale(torch.tensor([[2., 0., 2.], [0., 2., 2.], [2., 2., 4.]]))
        >>> float(pool_noise_scales([scale, scale]).value) == float(scale.value)
        True
    """
    if not scales:
        raise ValueError("pooling needs at least one noise scale, got none.")
    return noise_scale_from_sums(
        torch.stack([scale.signal for scale in scales]).sum(),
        torch.stack([scale.noise for scale in scales]).sum(),
        torch.stack([scale.covariance for scale in scales]).sum(0),
        sum(scale.degrees_of_freedom for scale in scales),
        len(scales),
    )


def noise_scale_from_sums(
    signal: Tensor, noise: Tensor, covariance: Tensor, degrees_of_freedom: int, count: int
) -> NoiseScale:
    """Combine the noise scales of several batches of which only sums were kept, as `pool_noise_scales` does.

    Sums can be added over processes, where lists of noise scales would have to be gathered.

    Args:
        signal: ``[]`` float64, sum of the signals of the batches.
        noise: ``[]`` float64, sum of their noises.
        covariance: ``[2, 2]`` float64, sum of their covariances.
        degrees_of_freedom: Sum of theirs.
        count: Number of batches.

    Returns:
        NoiseScale; all nan for no batches.

    Example:
        >>> scale = noise_scale(torch.tensor([[2., 0., 2.], [0., 2., 2.], [2., 2., 4.]]))
        >>> twice = noise_scale_from_sums(2 * scale.signal, 2 * scale.noise, 2 * scale.covariance, 4, 2)
        >>> float(twice.value) == float(scale.value)
        True
    """
    return with_interval(signal / count, noise / count, covariance / count / count, degrees_of_freedom)


def noise_scale_of_blocks(
    scales: Sequence[NoiseScale], squared_norms: Sequence[Tensor], squared_sum: Tensor | None = None
) -> NoiseScale:
    """Estimate the noise scale of a batch from the diagonal blocks of its Gram matrix and what all examples add up to.

    With d the trace, n_r the examples of block r, N those of all, and ``S = |sum_i g_i|^2`` over all of them,
    ``|G|^2 = (S - d) / (N (N - 1))`` and ``tr Sigma = d / N - |G|^2``: exactly what `noise_scale` gives on the whole
    Gram matrix, of which no entry between two blocks is needed. Their covariance is that of independent blocks,
    ``sum_r (n_r / N)^2 C_r``, and so the interval is wider than that of the whole matrix, up to the root of the number
    of blocks where there is little signal: pairs across blocks steady the value, but only the blocks tell by how much.

    Args:
        scales: Noise scale of each block, at least one.
        squared_norms: ``[n_r]`` float64, |g_i|^2 of each block, the diagonal of its Gram matrix.
        squared_sum: ``[]`` S, finite; None where it is not known: pairs across blocks are then left out, as if the
            blocks were batches of their own, each weighted by its examples.

    Returns:
        NoiseScale, float64; of a single block, its own. nan for non-finite gradients, and where a block of one
        example comes without `squared_sum`; with it, the value is there and the interval is ``[0, inf]``.

    Raises:
        ValueError: If there is no block, or not norms for each.

    References:
        McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1.

    Example:
        >>> from lightning_cx.functional import noise_scale
        >>> rows = torch.tensor([[1., 1.], [1., -1.], [2., 0.], [1., 0.]], dtype=torch.float64)
        >>> grams = [half @ half.T for half in (rows[:2], rows[2:])]
        >>> norms = [gram.diagonal() for gram in grams]
        >>> whole = noise_scale_of_blocks([noise_scale(gram) for gram in grams], norms, rows.sum(0).square().sum())
        >>> f"{whole.value:.6f} {noise_scale(rows @ rows.T).value:.6f}"
        '0.687500 0.687500'
    """
    if not scales or len(scales) != len(squared_norms):
        raise ValueError(f"needs norms for each of at least one block, got {len(squared_norms)} for {len(scales)}.")
    if len(scales) == 1:
        return scales[0]
    n = sum(map(len, squared_norms))
    weights = [len(norms) / n for norms in squared_norms]
    covariance = torch.stack([w * w * scale.covariance for w, scale in zip(weights, scales, strict=True)]).sum(0)
    freedom = sum(scale.degrees_of_freedom for scale in scales)
    if squared_sum is None:
        signal, noise = (
            torch.stack([w * getattr(scale, name) for w, scale in zip(weights, scales, strict=True)]).sum()
            for name in ("signal", "noise")
        )
        return noise_scale_from_sums(signal, noise, covariance, freedom, 1)
    trace = torch.stack([norms.sum() for norms in squared_norms]).sum()
    signal = (squared_sum.to(trace) - trace) / (n * (n - 1))
    return with_interval(signal, trace / n - signal, covariance, freedom)


def with_interval(signal: Tensor, noise: Tensor, covariance: Tensor, degrees_of_freedom: int) -> NoiseScale:
    """Combine signal and noise and their covariance into one scale with an interval; see `noise_scale`."""
    value = torch.where(signal > 0, noise / signal, torch.nan)
    low, high = _fieller(noise, signal, covariance, degrees_of_freedom)
    return NoiseScale(value, low, high, signal, noise, covariance, degrees_of_freedom)


def signal_and_noise(trace: Tensor, total: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Split the mean square of N gradients into mean and variance; traces and sums may be batched."""
    if n < 2:
        unknown = torch.full_like(trace, torch.nan)
        return unknown, unknown
    signal = (total - trace) / (n * (n - 1))
    return signal, trace / n - signal


def jackknife_estimates(gram: Tensor, trace: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Return signal and noise ``[..., N]`` of Gram matrices ``[..., N, N]`` without each example in turn."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    total_without = total[..., None] - gram.sum(-2) - gram.sum(-1) + diagonal
    return signal_and_noise(trace[..., None] - diagonal, total_without, gram.shape[-1] - 1)


def jackknife_covariance(left_out: Tensor) -> Tensor:
    """Return the covariance ``[k, k]`` of k estimates from their values ``[k, N]`` without each example."""
    n = left_out.shape[1]
    if n < 3:
        return left_out.new_full((len(left_out), len(left_out)), torch.nan)
    deviation = left_out - left_out.mean(1, keepdim=True)
    return (n - 1) / n * deviation @ deviation.T


CONFIDENCE = 0.95
"""Level of the two-sided intervals."""


def _fieller(noise: Tensor, signal: Tensor, covariance: Tensor, degrees_of_freedom: int) -> tuple[Tensor, Tensor]:
    """Solve ``(noise - B signal)^2 <= t^2 var(noise - B signal)`` for ``B >= 0``.

    A quadratic ``a B^2 - 2 b B + c <= 0``. Where ``a <= 0`` the signal is not significant: all B beyond the
    positive root are possible, and all B whatever where ``c <= 0`` too.
    """
    # Not the delta method: noise / signal has no moments where the signal may be 0, and its symmetric interval covers
    # far less than 95% there. Fieller's inverts a t test for every B and turns half-open where the signal is in doubt.
    # |G|^2 is a square: an estimate below 0 says no more than 0 does, and would push the lower end to inf.
    signal = signal.clamp_min(0.0)
    t = float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))
    a = signal**2 - t**2 * covariance[0, 0]
    b = noise * signal - t**2 * covariance[0, 1]
    c = noise**2 - t**2 * covariance[1, 1]
    root = (b**2 - a * c).clamp_min(0.0).sqrt()
    is_significant = (signal > 0) & (a > 0)
    # c / (b + root) is the smaller root where a > 0 and the positive one where a < 0, and stays exact at a = 0.
    low = torch.where(c > 0, c / (b + root), 0.0)
    high = torch.where(is_significant, (b + root) / a, torch.inf)
    unknown = noise.isnan() | signal.isnan()
    undetermined = covariance.isnan().any()
    low = torch.where(unknown, torch.nan, torch.where(undetermined, 0.0, low))
    high = torch.where(unknown, torch.nan, torch.where(undetermined, torch.inf, high))
    return low, high
