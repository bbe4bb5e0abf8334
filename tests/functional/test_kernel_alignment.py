"""Kernel and target: loops as oracle, chance as an exact average over pairings, and what has no answer."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_cx.functional import cumulative_power, kernel_target_alignment, participation_ratio


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_gram(n: int, rank: int, seed: int = 0) -> Tensor:
    factors = torch.randn(n, rank, dtype=torch.float64, generator=generator(seed))
    factors = factors * (1 + torch.arange(rank)) ** -0.7
    return factors @ factors.T + 0.3  # a constant part, which centring has to remove


def random_targets(n: int, outputs: int, seed: int = 1) -> Tensor:
    return 5 + torch.randn(n, outputs, dtype=torch.float64, generator=generator(seed))


def random_rotation(n: int, seed: int = 2) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator(seed)))[0]


def alignment_by_loops(gram: Tensor, targets: Tensor, center: bool) -> float:
    n = len(gram)
    similar = torch.tensor([[float(targets[i] @ targets[j]) for j in range(n)] for i in range(n)], dtype=torch.float64)
    flatten = torch.eye(n, dtype=torch.float64) - (1 / n if center else 0)
    gram, similar = flatten @ gram @ flatten, flatten @ similar @ flatten
    return float((gram * similar).sum() / gram.square().sum().sqrt() / similar.square().sum().sqrt())


def power_and_area_by_loops(gram: Tensor, targets: Tensor, center: bool) -> tuple[list[float], float]:
    """Add trapezoids; what the kernel does not see is one straight line up to (1, 1)."""
    n = len(gram)
    flatten = torch.eye(n, dtype=torch.float64) - (1 / n if center else 0)
    eigenvalues, vectors = torch.linalg.eigh(flatten @ gram @ flatten)
    targets = flatten @ targets
    modes = [k for k in range(n - 1, -1, -1) if eigenvalues[k] > 1e-8 * eigenvalues[-1]]
    power, area, m = [0.0], 0.0, n - 1 if center else n
    for k in modes:
        held = sum(float(vectors[:, k] @ output) ** 2 for output in targets.T)
        power.append(power[-1] + held / float(targets.square().sum()))
        area += (power[-2] + power[-1]) / 2 / m
    area += (m - len(modes)) / m * (power[-1] + 1) / 2
    return power[1:], area


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("rank", [4, 30])
def test_alignment_and_power_agree_with_loops(center, outputs, rank):
    gram, targets = random_gram(20, rank), random_targets(20, outputs)
    expected = alignment_by_loops(gram, targets, center)
    assert float(kernel_target_alignment(gram, targets, center)) == pytest.approx(expected, abs=1e-12)
    power, area = power_and_area_by_loops(gram, targets, center)
    cumulative = cumulative_power(gram, targets, center)
    torch.testing.assert_close(cumulative.power, torch.tensor(power, dtype=torch.float64), rtol=0, atol=1e-9)
    assert float(cumulative.area) == pytest.approx(area, abs=1e-9)


def test_a_kernel_made_of_the_target_is_aligned_and_holds_it_in_its_first_mode():
    targets = random_targets(30, 1)[:, 0]
    gram = targets[:, None] * targets
    assert float(kernel_target_alignment(gram, targets)) == pytest.approx(1)
    assert cumulative_power(gram, targets).power.tolist() == pytest.approx([1.0])
    assert float(cumulative_power(gram, targets).area) == pytest.approx(1 - 1 / 58)  # half a step of 29 short of 1


def test_the_mode_that_holds_the_target_is_read_off():
    rotation = random_rotation(40)
    gram = (rotation * torch.arange(40, 0, -1)) @ rotation.T
    for k in (0, 7, 39):
        cumulative = cumulative_power(gram, rotation[:, k], center=False)
        torch.testing.assert_close(cumulative.power, (torch.arange(40) >= k).double())
        assert float(cumulative.area) == pytest.approx(1 - (k + 0.5) / 40)
        expected = (40 - k) / math.sqrt(sum(i * i for i in range(41)))
        assert float(kernel_target_alignment(gram, rotation[:, k], center=False)) == pytest.approx(expected)


@pytest.mark.parametrize("rank", [2, 6])
@pytest.mark.parametrize("outputs", [1, 2])
def test_over_all_pairings_the_area_is_one_half_on_average_exactly(rank, outputs):
    gram, targets = random_gram(6, rank), random_targets(6, outputs)
    areas = [float(cumulative_power(gram, targets[list(order)]).area) for order in itertools.permutations(range(6))]
    assert np.mean(areas) == pytest.approx(0.5, abs=1e-12)


def test_over_all_pairings_the_alignment_is_what_the_docstring_calls_chance():
    gram, targets = random_gram(6, 6), random_targets(6, 1)
    found = [float(kernel_target_alignment(gram, targets[list(o)])) for o in itertools.permutations(range(6))]
    centre = torch.eye(6, dtype=torch.float64) - 1 / 6
    count = float(participation_ratio(torch.linalg.eigvalsh(centre @ gram @ centre)))
    assert np.mean(found) == pytest.approx(math.sqrt(count) / 5, abs=1e-12)


@pytest.mark.parametrize(("rank", "outputs", "center"), [(40, 1, True), (40, 4, False), (5, 1, True), (1, 2, True)])
def test_the_standard_deviation_of_chance_is_that_of_targets_turned_at_random(rank, outputs, center):
    gram = random_gram(24, rank)
    first = random_targets(24, outputs) - 5
    if center:  # a rotation of the space of functions of mean 0
        plane = torch.linalg.svd(torch.eye(24, dtype=torch.float64) - 1 / 24)[0][:, :23]
    else:
        plane = torch.eye(24, dtype=torch.float64)
    inside = plane.T @ first
    turned = [plane @ random_rotation(len(inside), seed) @ inside for seed in range(1000)]
    areas = torch.stack([cumulative_power(gram, targets, center).area for targets in turned])
    claimed = float(cumulative_power(gram, first, center).null_sd)
    assert float(areas.std()) == pytest.approx(claimed, rel=0.1)  # a standard deviation of 1000 is known within 2.2%
    assert float(areas.mean()) == pytest.approx(0.5, abs=4 * claimed / math.sqrt(1000))


def test_modes_of_one_eigenvalue_have_no_order():
    rotation = random_rotation(12)
    eigenvalues = torch.tensor([3.0] * 4 + [1.0] * 8, dtype=torch.float64)
    gram = (rotation * eigenvalues) @ rotation.T
    inside = rotation[:, :4] @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    cumulative = cumulative_power(gram, inside, center=False)
    expected = torch.tensor([0.25, 0.5, 0.75] + [1.0] * 9, dtype=torch.float64)
    torch.testing.assert_close(cumulative.power, expected)
    identity = cumulative_power(torch.eye(12), random_targets(12, 1))
    assert float(identity.area) == pytest.approx(0.5, abs=1e-12)
    assert float(identity.null_sd) == pytest.approx(0, abs=1e-9)


@given(st.integers(2, 12), st.integers(1, 12), st.integers(1, 3), st.integers(0, 99))
def test_power_ascends_to_at_most_one_and_area_and_alignment_are_shares(n, rank, outputs, seed):
    gram, targets = random_gram(n, rank, seed), random_targets(n, outputs, seed + 1)
    cumulative = cumulative_power(gram, targets)
    assert (cumulative.power.diff() >= 0).all()
    assert 0 <= float(cumulative.power[0]) <= float(cumulative.power[-1]) <= 1
    assert 0 <= float(cumulative.area) <= 1
    assert 0 <= float(kernel_target_alignment(gram, targets)) <= 1 + 1e-12


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_scale_offset_order_of_examples_and_rotation_of_outputs_do_not_matter(scale):
    gram, targets = random_gram(15, 20), random_targets(15, 3)
    order = torch.randperm(15, generator=generator(5))
    changed_gram = scale * (gram + 2)[order][:, order]
    changed_targets = scale * (targets - 1)[order] @ random_rotation(3)
    expected, changed = cumulative_power(gram, targets), cumulative_power(changed_gram, changed_targets)
    for name in ("power", "area", "null_sd"):
        torch.testing.assert_close(getattr(changed, name), getattr(expected, name), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        kernel_target_alignment(changed_gram, changed_targets), kernel_target_alignment(gram, targets)
    )


def test_arrays_lists_and_other_dtypes_are_welcome():
    gram, targets = random_gram(9, 9), torch.arange(9) % 3
    expected = cumulative_power(gram, targets)
    for other in (cumulative_power(gram.numpy(), targets.numpy()), cumulative_power(gram.tolist(), targets.tolist())):
        torch.testing.assert_close(other.area, expected.area)
    single = cumulative_power(gram.float(), targets)
    assert single.area.dtype == torch.float64
    assert float(single.area) == pytest.approx(float(expected.area), abs=1e-5)
    one_hot = torch.nn.functional.one_hot(targets).reshape(9, 3, 1)  # trailing dimensions are outputs
    torch.testing.assert_close(
        kernel_target_alignment(gram, one_hot), kernel_target_alignment(gram.numpy(), one_hot.squeeze(2).double())
    )


GRAM = random_gram(8, 8)
WITHOUT_DIFFERENCES = [torch.full((8,), 0.1), torch.zeros(8, 2), torch.tensor([0.3, 7.0]).expand(8, 2)]
NOT_FINITE = [torch.tensor([math.nan] + [1.0] * 7), torch.tensor([math.inf] + [1.0] * 7)]


@pytest.mark.parametrize("targets", [*WITHOUT_DIFFERENCES, *NOT_FINITE])
def test_targets_that_are_constant_or_not_finite_give_nan(targets):
    assert math.isnan(kernel_target_alignment(GRAM, targets))
    cumulative = cumulative_power(GRAM, targets)
    assert math.isnan(cumulative.area)
    assert math.isnan(cumulative.null_sd)
    assert cumulative.power.isnan().all()
    assert str(cumulative).startswith("cumulative power unknown")


@pytest.mark.parametrize(
    "gram", [torch.zeros(8, 8), torch.full((8, 8), 0.1), torch.full((8, 8), math.nan), torch.eye(8) * math.inf]
)
def test_kernels_that_are_constant_or_not_finite_give_nan(gram):
    targets = torch.arange(8.0)
    assert math.isnan(kernel_target_alignment(gram, targets))
    cumulative = cumulative_power(gram, targets)
    assert cumulative.power.numel() == 0
    assert math.isnan(cumulative.area)
    assert math.isnan(cumulative.null_sd)


def test_without_centring_only_zeros_give_nan():
    for gram, targets in ((GRAM, torch.zeros(8)), (torch.zeros(8, 8), torch.ones(8))):
        assert math.isnan(kernel_target_alignment(gram, targets, center=False))
        assert math.isnan(cumulative_power(gram, targets, center=False).area)
    assert float(kernel_target_alignment(torch.ones(8, 8), torch.ones(8), center=False)) == pytest.approx(1)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_examples_are_no_error(n, center):
    alignment = kernel_target_alignment(torch.eye(n), torch.arange(n), center)
    cumulative = cumulative_power(torch.eye(n), torch.arange(n), center)
    assert alignment.ndim == cumulative.area.ndim == 0
    if n < 2:
        assert math.isnan(alignment)
        assert math.isnan(cumulative.area)
    else:
        assert float(cumulative.area) == pytest.approx(0.5)


@pytest.mark.parametrize("measure", [kernel_target_alignment, cumulative_power])
def test_kernel_and_target_must_be_about_the_same_examples(measure):
    with pytest.raises(ValueError, match=r"square, got shape \[3, 4\]"):
        measure(torch.ones(3, 4), torch.ones(3))
    with pytest.raises(ValueError, match=r"about 3 examples, but the targets have shape \[4\]"):
        measure(torch.eye(3), torch.ones(4))
    with pytest.raises(ValueError, match=r"targets have shape \[3, 0\]"):
        measure(torch.eye(3), torch.ones(3, 0))


def test_a_result_reads_as_a_sentence():
    gram = torch.diag(torch.tensor([4.0, 3.0, 2.0, 0.0]))
    late = cumulative_power(gram, torch.tensor([0.0, 1.0, 3.0, 0.0]), center=False)
    assert str(late).startswith("half of the target's energy lies in the leading 3 of 3 modes; area 0.4")
    unseen = cumulative_power(gram, torch.tensor([1.0, 0.0, 0.0, 2.0]), center=False)
    assert str(unseen).startswith("all 3 modes hold 20% of the target's energy; area")
