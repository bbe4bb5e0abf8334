"""Eigendecompositions of the size that a sampled step needs, and how many directions they use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

ONE_THREAD_UP_TO = 1024
"""Rows up to which one thread is the better choice.

LAPACK's tridiagonalisation crosses a thread barrier for every column. With 512 rows on two idle cores one thread took
39 ms and two took 46; with one more busy process on the machine, a data loader say, one thread still took 39 ms and
two took 5 to 10 seconds.
"""


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return ascending eigenvalues and eigenvectors of a symmetric matrix, by the LAPACK that is fastest at its size.

    On a host, small ones keep to one thread, so that other processes do not change what they cost. Larger ones go to
    scipy's OpenBLAS, which took two thirds of the time of torch's MKL on an AMD processor (4096 rows, two cores: 7.8
    against 11.5 s).
    """
    if matrix.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    if matrix.shape[-1] <= ONE_THREAD_UP_TO:
        with one_thread():
            values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    # A copy in LAPACK's order, columns first, which the eigenvectors overwrite; the transpose is the same matrix.
    columns = np.array(matrix.detach().T.numpy(), order="F")
    values, vectors = linalg.eigh(columns, driver="evd", overwrite_a=True, check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(vectors)


def eigvalsh(matrix: Tensor) -> Tensor:
    """Return ascending eigenvalues alone, in under half the time (512 rows, one core: 17 against 41 ms)."""
    if matrix.device.type == "cpu" and matrix.shape[-1] <= ONE_THREAD_UP_TO:
        with one_thread():
            return torch.linalg.eigvalsh(matrix)
    return torch.linalg.eigvalsh(matrix)


def principal_modes(gram: Tensor, n_examples: int, center: bool = True) -> tuple[Tensor, Tensor]:
    """Diagonalise a Gram matrix ``[n * C, n * C]``, rows of one example together, and keep what is more than rounding.

    Returns descending eigenvalues ``[r]`` and modes ``[n * C, r]``, float64, after taking off the mean over the
    examples if asked for; r = 0 where nothing is left or an entry is not finite.
    """
    matrix, rounding = _prepared(gram, n_examples, center)
    if matrix is None:
        return gram.new_zeros(0, dtype=torch.float64), gram.new_zeros((gram.shape[0], 0), dtype=torch.float64)
    eigenvalues, modes = eigh(matrix)
    kept = _are_more_than_rounding(eigenvalues, rounding)
    return eigenvalues[kept].flip(0), modes[:, kept].flip(1)


def principal_eigenvalues(gram: Tensor, n_examples: int, center: bool = True) -> Tensor:
    """Return the descending eigenvalues of `principal_modes` ``[r]``, float64, without the modes."""
    matrix, rounding = _prepared(gram, n_examples, center)
    if matrix is None:
        return gram.new_zeros(0, dtype=torch.float64)
    eigenvalues = eigvalsh(matrix)
    return eigenvalues[_are_more_than_rounding(eigenvalues, rounding)].flip(0)


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """Count the directions that share the variance: ``(sum lambda)^2 / sum lambda^2``.

    Args:
        eigenvalues: ``[..., r]`` of a positive semi-definite matrix in any order; negative ones, which rounding
            makes, count as 0.

    Returns:
        ``[...]`` float64 between 1 (one direction) and r (all alike); nan if all are 0 or any is not finite.

    References:
        Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement", eq. 2.

    Example:
        >>> float(participation_ratio(torch.tensor([2., 2., 0.])))
        2.0
    """
    share = _shares(eigenvalues)
    return 1 / share.square().sum(-1)


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """Count directions by entropy, which forgives small eigenvalues less: ``exp(-sum p log p)``.

    Args:
        eigenvalues: ``[..., r]`` of a positive semi-definite matrix in any order; negative ones, which rounding
            makes, count as 0. ``p`` is their share of the sum.

    Returns:
        ``[...]`` float64 between 1 and r, never below the participation ratio; nan if all are 0 or any is not
        finite.

    References:
        Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1.

    Example:
        >>> round(float(effective_rank(torch.tensor([2., 2., 0.]))), 9)
        2.0
    """
    share = _shares(eigenvalues)
    return torch.special.entr(share).sum(-1).exp()


def gram_participation_ratio(gram: Tensor) -> Tensor:
    """Count the directions that Gram matrices ``[..., n, n]`` use without diagonalising them: ``(tr K)^2 / |K|_F^2``.

    `participation_ratio` of the eigenvalues, float64; nan for a zero, empty or non-finite matrix.
    """
    gram = as_tensor(gram)
    gram = gram.double()
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    share = gram / trace[..., None, None]  # before squaring: squares of 1e200 would overflow
    whole = share.diagonal(dim1=-2, dim2=-1).sum(-1)  # 1, or 0 / 0 where there is nothing to share
    return whole / share.square().sum((-2, -1))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run small work on one thread: many short parallel regions stall as soon as another process is busy."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _prepared(gram: Tensor, n_examples: int, center: bool) -> tuple[Tensor | None, Tensor]:
    """Return the symmetric float64 matrix and its rounding; None in place of a matrix without modes."""
    size = gram.shape[0]
    resolution = torch.finfo(gram.dtype).eps if gram.is_floating_point() else torch.finfo(torch.float64).eps
    gram = gram.double()
    matrix = centred(centred(gram, n_examples).T, n_examples) if center and size else gram
    if size == 0 or not bool(matrix.isfinite().all()):  # eigh raises on these
        return None, gram.new_zeros(())
    return (matrix + matrix.T) / 2, size * resolution * gram.abs().max()


def centred(rows: Tensor, n_examples: int) -> Tensor:
    """Subtract the mean over the examples from a matrix ``[n * C, m]``, for each of C outputs by itself."""
    by_example = rows.reshape(n_examples, len(rows) // n_examples, rows.shape[1])
    return (by_example - by_example.mean(0)).reshape(rows.shape)


MIN_EIGENVALUE = 1e-8
"""Eigenvalues below this share of the largest are rounding of a float32 backward (THEORY 3)."""


def _are_more_than_rounding(eigenvalues: Tensor, rounding: Tensor) -> Tensor:
    """Select eigenvalues above rounding, in the dtype in which the Gram matrix came.

    Where all gradients are alike nothing else is left, and only the size of what was centred tells.
    """
    return eigenvalues > torch.maximum(MIN_EIGENVALUE * eigenvalues[-1], rounding)


def _shares(eigenvalues: Tensor) -> Tensor:
    """Divide by the sum, by way of the maximum, whose sum cannot overflow; 0 / 0 and inf / inf are nan."""
    eigenvalues = as_tensor(eigenvalues)
    eigenvalues = eigenvalues.double()
    if eigenvalues.shape[-1] == 0:
        return eigenvalues.new_full((*eigenvalues.shape[:-1], 1), torch.nan)
    positive = eigenvalues.clamp_min(0.0)
    relative = positive / positive.amax(-1, keepdim=True)
    return relative / relative.sum(-1, keepdim=True)
