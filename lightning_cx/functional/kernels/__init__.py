"""Kernels: the spectrum of a Gram matrix, how it fits a target, and how its blocks share the descent."""

from lightning_cx.functional.kernels.alignment import (
    ChanceAlignment,
    CumulativePower,
    chance_alignment,
    cumulative_power,
    kernel_target_alignment,
)
from lightning_cx.functional.kernels.blocks import BlockShares, block_shares, pool_block_shares
from lightning_cx.functional.kernels.spectrum import (
    EigenvalueDecay,
    KernelDimension,
    eigenvalue_decay,
    kernel_dimension,
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
