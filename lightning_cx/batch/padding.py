"""Sequences of unequal length in one padded tensor: how long each is, and the tensors without the padding.

Nothing says which axis is padded, or with what. A length is believed where it can be seen: a vector of whole numbers
whose largest is the width of the batch, a mask whose rows are ones with zeros at one end, or a tensor of ids whose rows
end in one and the same number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_cx.batch.parts import Part, map_batch, parts_of


@dataclass(frozen=True)
class Lengths:
    """How long the sequences along the second axis of some tensors are.

    Attributes:
        values: One for each example, [N] int64.
        width: Of the padded axis.
        from_the_left: Whether the padding comes first.
        prefix: What the names of the tensors begin with; empty for all tensors of this width.
    """

    values: Tensor
    width: int
    from_the_left: bool = False
    prefix: str = ""


def trimmed(taken: Any, batch: Any, chosen: Sequence[int], examples: int) -> Any:
    """Return examples that were cut out of a padded batch without the padding that longer ones needed.

    Args:
        taken: The examples.
        batch: All of them.
        chosen: Which ones they are.
        examples: Number of examples in the batch.
    """
    found = list(lengths_of(batch, examples))
    if not found or not len(chosen):
        return taken
    parts = {id(part.value): part for part in parts_of(taken)}

    def trim(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor | np.ndarray) or leaf.ndim < 2 or leaf.shape[0] != len(chosen):
            return leaf
        part = parts[id(leaf)]
        for lengths in found:
            if leaf.shape[1] == lengths.width and part.key.startswith(lengths.prefix):
                own = int(lengths.values[list(chosen)].max())
                return leaf[:, lengths.width - own :] if lengths.from_the_left else leaf[:, :own]
        return leaf

    return map_batch(taken, trim)


def lengths_of(batch: Any, examples: int) -> Iterator[Lengths]:
    """Yield what is seen of the lengths of sequences, the surest first."""
    parts = [p for p in parts_of(batch) if _is_plain(p, examples)]
    wide = [p for p in parts if p.tensor.ndim >= 2]
    counted = [p for p in parts if _is_count(p) and any(_ends_at(w.tensor, p.tensor.reshape(-1)) for w in wide)]
    for part in counted:
        values = part.tensor.reshape(-1).long().cpu()
        # Encoder and decoder may be as long as each other: each has lengths of its own name.
        prefix = part.key.split("len")[0] if "len" in part.key and sum("len" in p.key for p in parts) > 1 else ""
        yield Lengths(values, int(values.max()), prefix=prefix)
    for part in wide:
        mask = part.tensor
        if mask.ndim == 2 and _is_mask(mask):
            ones = mask != 0
            others = [w.tensor for w in wide if w is not part and w.tensor.shape[1] == mask.shape[1]]
            seen = "mask" in part.key or any(_is_constant_outside(other, ones) for other in others)
            if not seen or not bool(ones.any(1).all()):
                continue
            if bool((ones[:, 1:] <= ones[:, :-1]).all()):
                yield Lengths(ones.sum(1).cpu(), mask.shape[1])
            elif bool((ones[:, 1:] >= ones[:, :-1]).all()):
                yield Lengths(ones.sum(1).cpu(), mask.shape[1], from_the_left=True)
    for part in wide:
        ids = part.tensor
        if ids.ndim == 2 and not ids.is_floating_point() and not _is_mask(ids) and ids.shape[1] > 1:
            yield from _by_last_id(ids)


def _is_plain(part: Part, examples: int) -> bool:
    value = part.value
    if isinstance(value, PackedSequence) or (isinstance(value, Tensor) and value.is_nested):
        return False
    return isinstance(value, Tensor) or value.dtype.kind in "biufc" if part.length == examples else False


def _is_count(part: Part) -> bool:
    tensor = part.tensor
    flat = tensor.ndim == 1 or (tensor.ndim == 2 and tensor.shape[1] == 1)
    if not flat or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        return False
    return bool((tensor >= 1).all()) and bool((tensor != tensor.reshape(-1)[0]).any())


def _is_mask(tensor: Tensor) -> bool:
    if tensor.is_complex() or 0 in tensor.shape:
        return False
    zeros = tensor == 0
    return bool((zeros | (tensor == 1)).all()) and bool(zeros.any()) and not bool(zeros.all())


def _ends_at(padded: Tensor, lengths: Tensor) -> bool:
    """Whether a tensor is as wide as the longest, and holds one and the same value from each length on."""
    if padded.shape[1] != int(lengths.max()):
        return False
    beyond = torch.arange(padded.shape[1], device=padded.device)[None] >= lengths.to(padded.device)[:, None]
    rest = padded[beyond]
    return bool((rest == rest.reshape(-1)[:1]).all()) if rest.numel() else False


def _is_constant_outside(padded: Tensor, inside: Tensor) -> bool:
    """Whether a tensor holds one and the same number wherever a mask has a zero."""
    rest = padded[~inside.to(padded.device)]
    return bool((rest == rest.reshape(-1)[:1]).all())


def _by_last_id(ids: Tensor) -> Iterator[Lengths]:
    """Yield lengths where rows end (or begin) in one and the same id, and the longest does not."""
    for left in (False, True):
        rows = ids.flip(1) if left else ids
        padding = rows[:, -1].mode().values
        is_word = rows != padding
        if not bool(is_word.any(1).all()) or not bool(is_word[:, -1].any()) or bool(is_word[:, -1].all()):
            continue
        width = ids.shape[1]
        last = width - is_word.flip(1).int().argmax(1)
        inside = torch.arange(width, device=ids.device)[None] < last[:, None]
        if bool((inside & ~is_word).any()) or int((width - last).max()) < 2:
            continue  # a word like others, or a number that happens to come last
        yield Lengths(last.cpu(), width, left)


IGNORED = -100  # what PyTorch's losses leave out


def filling(padded: Tensor) -> float:
    """Return the number that pads a tensor: in which more than one row ends while another does not; 0 if none does."""
    if not padded.is_floating_point() and not padded.is_complex() and bool((padded == IGNORED).any()):
        return IGNORED
    if padded.ndim < 2 or 0 in padded.shape or padded.is_complex():
        return 0
    ends = padded[:, -1].reshape(len(padded), -1)
    constant = (ends == ends[:, :1]).all(1)
    values, counts = ends[constant, 0].unique(return_counts=True)
    if not len(counts) or int(counts.max()) < 2:
        return 0
    return float(values[counts.argmax()])
