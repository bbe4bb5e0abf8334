"""Gradient noise of one batch whose examples lie in several processes: each knows its own Gram matrix alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cx.functional.noise import NoiseScale, noise_scale_from_sums, with_interval


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
