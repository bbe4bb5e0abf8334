"""Readings of one kernel: its spectrum, how it fits its targets, and how its blocks share the descent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cx.functional import (
    chance_alignment,
    complexity,
    cumulative_power,
    eigenvalue_decay,
    kernel_dimension,
    kernel_target_alignment,
    kernels,
)
from lightning_cx.instruments.reading import Reading
from lightning_cx.tensorboard import tags

MIN_EXAMPLES = 16
"""Errors come from leaving out tenths of the examples; with fewer, each would be a single one."""

SPECTRUM: tuple[str, ...] = (
    tags.KERNEL_DECAY,
    tags.KERNEL_DECAY_SPREAD,
    tags.KERNEL_PARTICIPATION_RATIO,
    tags.KERNEL_PARTICIPATION_RATIO_ERROR,
    tags.KERNEL_EFFECTIVE_RANK,
    tags.KERNEL_EFFECTIVE_RANK_ERROR,
)
TARGET: tuple[str, ...] = (
    tags.KERNEL_ALIGNMENT,
    tags.KERNEL_ALIGNMENT_CHANCE_HIGH,
    tags.KERNEL_POWER_AREA,
    tags.KERNEL_POWER_AREA_CHANCE_HIGH,
)


def of_kernel(gram: Tensor, targets: Tensor | None, called: str, whole: Tensor | None = None) -> Reading:
    """Say all of one kernel [n, n]; `whole` is the one whose eigenvalues are shown, where outputs stand apart."""
    every, n = (*SPECTRUM, *TARGET), len(gram)
    if not bool(gram.isfinite().all()):
        return Reading.refused(every, "the gradients are not finite (NaN or inf in the data, or an overflow)")
    if n < MIN_EXAMPLES:
        return Reading.refused(every, f"{n} examples are too few to read a kernel: {MIN_EXAMPLES} are needed")
    decay, size = eigenvalue_decay(gram), kernel_dimension(gram)
    values = (decay.exponent, decay.spread, size.participation_ratio, size.participation_error)
    scalars = dict(zip(SPECTRUM, map(float, (*values, size.effective_rank, size.effective_error)), strict=True))
    why = "the gradients do not differ between examples"
    refusals = {tag: why for tag in SPECTRUM[2:] if scalars[tag] != scalars[tag]}
    if not decay.last_rank:
        why = f"these {n} examples leave too few eigenvalues: 56 examples and 7 eigenvalues above rounding are needed"
        refusals |= dict.fromkeys(SPECTRUM[:2], why)
    elif scalars[tags.KERNEL_DECAY_SPREAD] != scalars[tags.KERNEL_DECAY_SPREAD]:
        refusals[tags.KERNEL_DECAY_SPREAD] = "a half of the examples leaves too few eigenvalues"
    eigenvalues = complexity.principal_eigenvalues(gram if whole is None else whole, n)
    histograms = {tags.KERNEL_SPECTRUM: (eigenvalues / eigenvalues[:1]).log10()} if len(eigenvalues) else {}
    reading = Reading(scalars, histograms=histograms, refusals=refusals)
    return reading.joined(_of_target(gram, targets, called))


def _of_target(gram: Tensor, targets: Tensor | None, called: str) -> Reading:
    if targets is None:
        return Reading.refused(TARGET, "no targets were found in this batch")
    if len(targets) != len(gram):
        return Reading.refused(TARGET, f"there are {len(targets)} {called} for {len(gram)} gradients")
    targets = targets.cpu()
    alignment, chance = kernel_target_alignment(gram, targets), chance_alignment(gram, targets)
    power = cumulative_power(gram, targets)
    values = dict(zip(TARGET, map(float, (alignment, chance.high, power.area, power.chance_high)), strict=True))
    why = f"the {called} are all alike or not finite, or the gradients do not differ between examples"
    return Reading(values, refusals={tag: why for tag, value in values.items() if value != value})


def of_blocks(found: kernels.BlockShares) -> Reading:
    """Say which block gives the descent, with a card that has the whole intervals."""
    if not found.is_known:
        why = "the descent that these batches have in common cannot be told from noise, so it cannot be shared out"
        return unknown_blocks(found.blocks, why)
    scalars, rows = {}, ["| block | share of the descent | 95% interval | share of the noise |", "|---|---|---|---|"]
    columns = (found.share, found.low, found.high, found.noise_share)
    for block, share, low, high, noise in zip(found.blocks, *(column.tolist() for column in columns), strict=True):
        scalars[tags.of_layer(tags.KERNEL_BLOCK_SHARE, block)] = share
        scalars[tags.of_layer(tags.KERNEL_BLOCK_SHARE_LOW, block)] = low
        rows.append(f"| {block} | {share:.1%} | {low:.1%} to {high:.1%} | {noise:.1%} |")
    return Reading(scalars, texts={tags.KERNEL_BLOCK_SHARE: "\n".join(rows)})


def unknown_blocks(blocks: Sequence[str], why: str) -> Reading:
    """Say why no block has a share; ends of intervals go with it, or those of an earlier reading would stand."""
    kinds = (tags.KERNEL_BLOCK_SHARE, tags.KERNEL_BLOCK_SHARE_LOW)
    scalars = {tags.of_layer(kind, block): torch.nan for kind in kinds for block in blocks}
    card = {tags.KERNEL_BLOCK_SHARE: f"**unknown**: {why}."}
    return Reading(scalars, refusals=dict.fromkeys(scalars, why), texts=card)
