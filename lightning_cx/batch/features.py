"""Turn the inputs of examples into features whose distances mean something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_cx.batch.anatomy import Anatomy
from lightning_cx.batch.graphs import graphs_in
from lightning_cx.batch.parts import Path, children_of, parts_of
from lightning_cx.batch.take import padded_cat
from lightning_cx.functional import complexity, default_features

MAX_COLUMNS = 16  # of ids [n, T] beside other inputs that are still taken for columns of a table, and not for a text
MAX_SERIES = 32  # columns of ids [n, T, k], as categories of each time step have; wider ones are images
MAX_DISTINCT = 0.5  # of the examples, up to which ids [n] are categories, and not names of the examples


def raw_inputs(batch: Any, anatomy: Anatomy) -> list[Tensor]:
    """Return the tensors of a batch that are inputs, each [n, ...], in the order of the anatomy.

    Nodes of graphs are summed up by graph: means of numbers, counts of ids, and how many there are. Sequences that are
    packed or nested are padded.

    Raises:
        ValueError: If the batch has no inputs, or lacks one.
    """
    if not anatomy.inputs:
        raise ValueError(f"no inputs were found ({anatomy}): pass BatchSpec(inputs=...) or ProbeSet(features=...)")
    members = dict(_members(batch))
    by_path = {part.path: part for part in parts_of(batch)}
    found = []
    for path in anatomy.inputs:
        part = by_path.get(path)
        if part is None:
            raise ValueError(f"the batch lacks the input {dict(anatomy.shapes).get(path, path)}")
        if path[:-1] in members and part.length != anatomy.examples:
            member = members[path[:-1]]
            found.append(_by_graph(part.tensor, member, anatomy.examples))
        elif isinstance(part.value, Tensor) and part.value.is_nested:
            rows = list(part.value.unbind())
            padding = -1 if complexity.holds_ids(rows[0][None]) else 0
            found.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding))
        elif isinstance(part.value, PackedSequence):
            found.append(part.tensor)
        else:
            tensor = part.tensor
            found.append(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
    return found


def join_inputs(chunks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Put the inputs of several batches together, each tensor [n, ...]; narrower sequences are padded."""
    together = []
    for parts in zip(*chunks, strict=True):
        ids = not parts[0].is_floating_point()
        together.append(padded_cat([part.detach().cpu() for part in parts], -1 if ids else 0))
    return together


def as_features(inputs: Sequence[Tensor]) -> Tensor:
    """Turn inputs into one matrix of features.

    One tensor gives its `lightning_cx.functional.default_features`. Of several, each is standardised and counts as
    much as every other, however many columns it has.

    Args:
        inputs: Tensors [n, ...] of any real dtype.

    Returns:
        [n, d] float64.

    Raises:
        ValueError: If a value is NaN or infinite, or there is nothing that varies.

    Example:
        >>> as_features([torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0, 1.0], [7.0, 1.0]])]).round().tolist()
        [[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]
    """
    if len(inputs) == 1 and not _is_series_of_ids(inputs[0]):
        return default_features(inputs[0])
    blocks = [_block(values) for values in inputs]
    scaled = []
    for block in blocks:
        size = block.square().sum(1).mean().sqrt()
        if bool(size > 0):
            scaled.append(block / size if len(blocks) > 1 else block)
    if not scaled:
        raise ValueError("none of the inputs varies among the examples: pass ProbeSet(features=...)")
    return torch.cat(scaled, 1)


def _block(values: Tensor) -> Tensor:
    """One tensor of several as standardised columns [n, d] float64."""
    if _is_series_of_ids(values):
        return torch.cat([_counts(values[:, :, k]) for k in range(values.shape[2])], 1)
    if not complexity.holds_ids(values):
        return default_features(values)
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 1 and len(flat.unique()) > max(2, MAX_DISTINCT * len(flat)):
        return flat.new_zeros(len(flat), 1, dtype=torch.float64)  # names of the examples
    if flat.shape[1] <= MAX_COLUMNS:
        return torch.cat([_counts(flat[:, k : k + 1]) for k in range(flat.shape[1])], 1)
    return _counts(flat)


def _is_series_of_ids(values: Tensor) -> bool:
    """Whether whole numbers [n, T, k] are categories of each time step, and no images."""
    if values.ndim != 3 or values.is_floating_point() or values.dtype in (torch.bool, torch.uint8):
        return False
    return values.shape[2] <= MAX_SERIES and not (values.shape[1] == values.shape[2] >= 8)


def _counts(ids: Tensor) -> Tensor:
    """How often each id that occurs at all occurs in a row, standardised; -1 is padding."""
    words, word_of = ids.unique(return_inverse=True)
    counts = torch.zeros(len(ids), len(words), dtype=torch.float64, device=ids.device)
    counts.scatter_add_(1, word_of, torch.ones_like(word_of, dtype=torch.float64))
    return default_features(counts[:, words != -1])


def _members(batch: Any, path: Path = ()) -> list[tuple[Path, Tensor]]:
    found = [] if (graphs := graphs_in(batch)) is None else [(path, graphs.member)]
    for key, value in children_of(batch):
        if not isinstance(value, Tensor):
            found += _members(value, (*path, key))
    return found


def _by_graph(nodes: Tensor, member: Tensor, examples: int) -> Tensor:
    """Mean of the nodes' numbers in each graph, or counts of their ids, and the number of nodes, [n, d] float64."""
    member, flat = member.long(), nodes.reshape(len(nodes), -1)
    if not nodes.is_floating_point():
        flat = torch.cat([_one_hot(flat[:, k]) for k in range(flat.shape[1])], 1)
    rows = torch.cat([flat.double(), flat.new_ones(len(flat), 1, dtype=torch.float64)], 1)
    total = rows.new_zeros(examples, rows.shape[1]).index_add_(0, member, rows)
    count = total[:, -1:]
    return torch.cat([total[:, :-1] / count.clamp_min(1), count], 1)


def _one_hot(ids: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(ids.unique(return_inverse=True)[1])
