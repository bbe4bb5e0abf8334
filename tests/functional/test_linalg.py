"""Small eigenproblems run on one thread, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lightning_cx.functional import linalg
from lightning_cx.functional.linalg import ONE_THREAD_UP_TO, eigh


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_is_the_same_afterwards_also_after_an_error() -> None:
    before = torch.get_num_threads()
    eigh(torch.eye(8))
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError):
        eigh(torch.ones(2, 3))
    assert torch.get_num_threads() == before


def test_small_matrices_get_one_thread_and_large_ones_the_other_library(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(torch.get_num_threads())
        return matrix[0], matrix

    monkeypatch.setattr(linalg.torch.linalg, "eigh", watched)
    eigh(torch.eye(ONE_THREAD_UP_TO))
    assert seen == [1]
    values, _ = eigh(torch.diag(torch.arange(float(ONE_THREAD_UP_TO + 1), 0, -1)))
    assert seen == [1]
    torch.testing.assert_close(values, torch.arange(1.0, ONE_THREAD_UP_TO + 2))


@pytest.mark.parametrize("size", [30, ONE_THREAD_UP_TO + 1])
def test_the_matrix_comes_back_from_its_decomposition_and_is_left_alone(size: int) -> None:
    matrix = torch.randn(size, size, dtype=torch.float64)
    matrix = matrix + matrix.T
    before = matrix.clone()
    values, vectors = eigh(matrix)
    assert torch.equal(matrix, before)
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, matrix)
