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


def test_small_matrices_get_one_thread_and_large_ones_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(torch.get_num_threads())
        return matrix[0], matrix

    monkeypatch.setattr(linalg.torch.linalg, "eigh", watched)
    eigh(torch.empty(ONE_THREAD_UP_TO, ONE_THREAD_UP_TO))
    eigh(torch.empty(ONE_THREAD_UP_TO + 1, ONE_THREAD_UP_TO + 1))
    assert seen == [1, 2]


def test_the_decomposition_is_torchs_own() -> None:
    matrix = torch.randn(30, 30, dtype=torch.float64)
    matrix = matrix + matrix.T
    values, vectors = eigh(matrix)
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, matrix)
