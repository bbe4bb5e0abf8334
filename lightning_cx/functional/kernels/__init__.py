"""Kernels: the spectrum of a Gram matrix, its alignment with a target, and the shares of blocks of parameters."""

from lightning_cx.functional.kernels.blocks import BlockShares, block_shares, pool_block_shares
from lightning_cx.functional.kernels.spectrum import (
    ChanceAlignment,
    CumulativePower,
    EigenvalueDecay,
    KernelDimension,
    chance_alignment,
    cumulative_power,
    eigenvalue_decay,
    kernel_dimension,
    kernel_target_alignment,
)

__all__ = [
    "BlockShares",
    "ChanceAlignment",
    "CumulativePower",
    "EigenvalueDecay",
    "KernelDimension",
    "block_shares",
    "chance_alignment",
    "cumulative_power",
    "eigenvalue_decay",
    "kernel_dimension",
    "kernel_target_alignment",
    "pool_block_shares",
]
