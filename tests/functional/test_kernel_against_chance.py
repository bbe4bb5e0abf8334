"""What chance gives in place of an alignment, and how sure the dimension of a kernel is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cx.functional import (
    chance_alignment,
    effective_rank,
    kernel_dimension,
    kernel_target_alignment,
    participation_ratio,
)


def decaying_gram(n: int, beta: float, seed: int, features: int = 300) -> Tensor:
    rows = np.random.default_rng(seed).standard_normal((n, features)) * np.arange(1, features + 1) ** (-beta / 2)
    return torch.from_numpy(rows @ rows.T)


def targets(n: int, kind: str, seed: int = 1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (
        np.eye(4)[draw.integers(0, 4, n)] if kind == "classes" else draw.standard_normal((n, 1 if kind == "one" else 3))
    )


@pytest.mark.parametrize("kind", ["one", "three", "classes"])
def test_chance_is_what_random_pairings_give(kind):
    gram, y = decaying_gram(40, 0.7, 0) + 0.3, targets(40, kind)
    draw = np.random.default_rng(2)
    paired = np.array([float(kernel_target_alignment(gram, y[draw.permutation(40)])) for _ in range(1000)])
    chance = chance_alignment(gram, y)
    assert float(chance.mean) == pytest.approx(paired.mean(), abs=4 * paired.std() / math.sqrt(1000))
    assert float(chance.sd) == pytest.approx(paired.std(), rel=0.15)
    assert 0.01 < np.mean(paired > float(chance.high)) < 0.08


@pytest.mark.parametrize("center", [True, False])
def test_chance_is_exact_for_targets_turned_at_random(center):
    gram, draw = decaying_gram(12, 1.0, 3), np.random.default_rng(4)
    plane = np.linalg.svd(np.eye(12) - (1 / 12 if center else 0))[0][:, : 11 if center else 12]
    y = plane @ draw.standard_normal((plane.shape[1], 2))
    turned = []
    for _ in range(3000):
        rotation = np.linalg.qr(draw.standard_normal((plane.shape[1],) * 2))[0]
        turned.append(float(kernel_target_alignment(gram, plane @ rotation @ plane.T @ y, center)))
    chance = chance_alignment(gram, y, center)
    assert float(chance.mean) == pytest.approx(np.mean(turned), abs=4 * np.std(turned) / math.sqrt(3000))
    assert float(chance.sd) == pytest.approx(np.std(turned), rel=0.08)


def test_the_mean_by_chance_is_that_of_the_participation_ratio():
    gram, y = decaying_gram(30, 1.0, 5), targets(30, "one")
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    ratio = participation_ratio(torch.linalg.eigvalsh(centred))
    assert float(chance_alignment(gram, y).mean) == pytest.approx(float(ratio) ** 0.5 / 29)


def test_a_kernel_made_of_the_target_is_far_above_chance_and_an_equal_one_has_no_spread():
    y = targets(30, "classes")
    made = torch.from_numpy(y @ y.T)
    assert float(kernel_target_alignment(made, y)) > float(chance_alignment(made, y).high)
    assert float(chance_alignment(torch.eye(30), y).sd) == pytest.approx(0, abs=1e-9)


def test_scale_offset_and_order_do_not_change_chance():
    gram, y = decaying_gram(20, 0.7, 6), targets(20, "three")
    order = np.random.default_rng(0).permutation(20)
    changed = chance_alignment(1e100 * (gram + 2)[order][:, order], 5 * y[order] + 3)
    torch.testing.assert_close(changed.mean, chance_alignment(gram, y).mean)
    torch.testing.assert_close(changed.sd, chance_alignment(gram, y).sd)


@pytest.mark.parametrize(
    ("gram", "y"),
    [
        (torch.eye(6), torch.ones(6)),
        (torch.ones(6, 6), torch.arange(6.0)),
        (torch.full((6, 6), torch.nan), torch.arange(6.0)),
        (torch.eye(6), torch.full((6,), math.inf)),
        (torch.eye(1), torch.ones(1)),
        (torch.zeros(0, 0), torch.zeros(0)),
    ],
    ids=["constant target", "constant kernel", "nan", "inf", "one example", "none"],
)
def test_there_is_no_chance_where_there_is_no_alignment(gram, y):
    chance = chance_alignment(gram, y)
    assert math.isnan(chance.mean)
    assert str(chance).startswith("chance alignment unknown")


def test_kernel_and_target_of_different_examples_have_no_chance():
    with pytest.raises(ValueError, match="about 3 examples"):
        chance_alignment(torch.eye(3), torch.ones(4))


# Dimension ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [True, False])
def test_dimensions_are_those_of_the_eigenvalues(center):
    gram = decaying_gram(24, 1.0, 7) + 5
    plane = torch.eye(24).double() - (1 / 24 if center else 0)
    eigenvalues = torch.linalg.eigvalsh(plane @ gram @ plane)
    size = kernel_dimension(gram, center)
    torch.testing.assert_close(size.participation_ratio, participation_ratio(eigenvalues))
    torch.testing.assert_close(size.effective_rank, effective_rank(eigenvalues))


@pytest.mark.parametrize(("n", "beta"), [(32, 0.7), (32, 1.5), (128, 0.7), (128, 1.5)])
def test_the_errors_are_about_what_drawing_other_examples_gives(n, beta):
    drawn = [kernel_dimension(decaying_gram(n, beta, seed)) for seed in range(200, 230)]
    for count in ("participation", "effective"):
        name = {"participation": "participation_ratio", "effective": "effective_rank"}[count]
        redrawn = float(torch.stack([getattr(size, name) for size in drawn]).std())
        claimed = float(torch.stack([getattr(size, f"{count}_error") for size in drawn]).mean())
        assert 0.6 < claimed / redrawn < 1.6


def test_scale_and_order_do_not_change_the_dimension_and_no_global_random_numbers_are_drawn():
    gram, before = decaying_gram(40, 1.0, 8), torch.random.get_rng_state()
    size, order = kernel_dimension(gram), torch.from_numpy(np.random.default_rng(1).permutation(40))
    assert str(kernel_dimension(1e100 * gram.numpy())) == str(size)
    changed = kernel_dimension(gram[order][:, order])
    torch.testing.assert_close(changed.participation_ratio, size.participation_ratio)
    torch.testing.assert_close(changed.effective_rank, size.effective_rank)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "gram",
    [torch.zeros(20, 20), torch.ones(20, 20), torch.full((20, 20), torch.nan), torch.zeros(0, 0), torch.ones(1, 1)],
    ids=["zero", "constant", "nan", "none", "one"],
)
def test_grams_without_differences_have_no_dimension(gram):
    size = kernel_dimension(gram)
    assert math.isnan(size.participation_ratio)
    assert math.isnan(size.effective_rank)
    assert str(size).startswith("dimension unknown")


def test_few_examples_have_a_dimension_without_an_error():
    size = kernel_dimension(torch.eye(9))
    assert float(size.participation_ratio) == pytest.approx(8)
    assert math.isnan(size.participation_error)
    with pytest.raises(ValueError, match=r"square, got shape \[2, 3\]"):
        kernel_dimension(torch.ones(2, 3))
