"""What comes in from users: arrays and lists as tensors, raw inputs as features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(values: Any) -> Tensor:
    """Return tensors as they are, numpy arrays with their dtype, and lists of numbers in float64.

    Example:
        >>> as_tensor([0.1, 0.2]).dtype
        torch.float64
    """
    if isinstance(values, Tensor):
        return values
    if hasattr(values, "__array__"):
        return torch.as_tensor(np.asarray(values, order="C"))  # torch knows no negative strides
    return torch.as_tensor(values, dtype=torch.float64)


def as_matrix(values: Tensor) -> Tensor:
    """Flatten ``[n, ...]`` to a finite ``[n, d]`` float64 matrix.

    Raises:
        ValueError: If there is no example, or a value is complex, NaN or infinite.
    """
    values = as_tensor(values)
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(f"expected at least one example along the first dimension, got shape {list(values.shape)}.")
    if values.is_complex():
        raise ValueError("complex features have no order: pass torch.view_as_real(features).")
    matrix = values.detach().double().reshape(values.shape[0], -1)
    bad = ~matrix.isfinite()
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{int(bad.sum())} of {matrix.numel()} features are NaN or infinite, the first is "
            f"{float(matrix[row, column])} in example {row}: impute or drop them first."
        )
    return matrix


def as_gram(values: Tensor) -> Tensor:
    """Return a Gram matrix ``[n, n]`` detached, in the dtype that it came in.

    Raises:
        ValueError: If it is not square.
    """
    gram = as_tensor(values).detach()
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"a Gram matrix is square, got shape {list(gram.shape)}.")
    return gram


def default_features(values: Tensor) -> Tensor:
    """Turn a batch of raw inputs into features whose distances mean something.

    | input | features |
    |---|---|
    | floats, booleans, uint8, integers of 3 and more dimensions (images) | flattened, each column z-scored |
    | integers ``[n, T]`` (token ids) | bag of words: how often each id that occurs at all occurs here |
    | integers ``[n]`` (class labels, row numbers) | refused: their differences mean nothing |

    Raw ids must never become coordinates: on text, the label function then looks as rough as noise (position
    .455 of the spectrum, where bag of words gives .006 and .5 is chance).

    Args:
        values: ``[n, ...]``, any real dtype. Padding counts as one more word.

    Returns:
        ``[n, d]`` float64 on the device of the input. Columns that do not vary become 0.

    Raises:
        ValueError: If there is no example, a value is NaN or infinite, or the values are labels ``[n]``.

    Example:
        >>> default_features(torch.tensor([[-2., 5.], [2., 5.]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
        >>> default_features(torch.tensor([[7, 9, 9], [7, 7, 7]])).tolist()
        [[1.0, 2.0], [3.0, 0.0]]
    """
    values = as_tensor(values)
    if holds_ids(values) and values.ndim < 2:
        raise ValueError(
            f"a tensor of {str(values.dtype).removeprefix('torch.')} of shape {list(values.shape)} looks like one "
            "label or id per example, and differences of ids mean nothing: pass features= with one row of "
            "numbers per example (for example an embedding of the ids)."
        )
    if holds_ids(values) and values.ndim == 2:
        return _bag_of_words(values)
    return _z_score(as_matrix(values))


def holds_ids(values: Tensor) -> bool:
    """Test whether integers are ids (tokens, labels) rather than measurements (bytes, images), by dtype and shape."""
    is_integer = not values.is_floating_point() and not values.is_complex() and values.dtype != torch.bool
    is_image = values.ndim > 1 and (values.dtype == torch.uint8 or values.ndim > 2)
    return is_integer and not is_image


def _bag_of_words(ids: Tensor) -> Tensor:
    words, word_of = ids.unique(return_inverse=True)
    counts = torch.zeros(len(ids), len(words), dtype=torch.float64, device=ids.device)
    return as_matrix(counts.scatter_add_(1, word_of, torch.ones_like(word_of, dtype=torch.float64)))


CONSTANT_FEATURE = 1e-12
"""A column whose spread is below this share of its size varies by rounding only."""


def _z_score(matrix: Tensor) -> Tensor:
    size = matrix.abs().amax(0).clamp_min(torch.finfo(torch.float64).tiny)
    matrix = matrix / size  # squares of 1e200 would overflow
    centred = matrix - matrix.mean(0)
    spread = centred.square().mean(0).sqrt()
    return torch.where(spread > CONSTANT_FEATURE, centred / spread, 0.0)
