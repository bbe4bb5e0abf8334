"""The functional gradient block by block: which part of a network still has descent to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.noise import jackknife_covariance, jackknife_estimates, signal_and_noise, with_interval


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
