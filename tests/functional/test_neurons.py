"""Copies, dead and silent neurons, the rank of what they offer, and which neuron is which of another network."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse.csgraph
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics.pairwise import cosine_similarity

from lightning_cx.functional import effective_rank, neuron_report
from lightning_cx.functional.neurons import Symmetry, chance_of_duplicates, permutation_sign_distance, teacher_alignment

Array = NDArray[Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


# Copies -----------------------------------------------------------------------------------------------------


def test_planted_copies_are_grouped_up_to_sign() -> None:
    weights = normal(12, 20)
    weights[3], weights[7], weights[9] = 2 * weights[1], -0.5 * weights[1], -weights[4]
    report = neuron_report(weights)
    assert report.groups == ((1, 3, 7), (4, 9))
    assert report.duplicates == pytest.approx(3 / 12)
    assert report.duplicates_by_chance < 1e-9
    assert neuron_report(weights, sign=False).groups == ((1, 3),)


def test_similarity_and_groups_are_those_of_sklearn_and_scipy() -> None:
    weights = normal(40, 2)
    report = neuron_report(weights, threshold=0.999)
    similarity = cosine_similarity(weights)
    np.testing.assert_allclose(report.similarity.numpy(), similarity, atol=1e-12)
    count, label = scipy.sparse.csgraph.connected_components(np.abs(similarity) >= 0.999, directed=False)
    expected = [tuple(np.flatnonzero(label == k).tolist()) for k in range(count) if (label == k).sum() > 1]
    assert sorted(report.groups) == sorted(expected)
    assert len(expected) > 3
    assert report.duplicates == pytest.approx((40 - count) / 40)


def test_the_bias_is_a_further_weight() -> None:
    weights, bias = normal(5, 8), normal(5, seed=1)
    weights[1], bias[1] = weights[0], bias[0] + 5
    assert neuron_report(weights).groups == ((0, 1),)
    assert neuron_report(weights, bias=bias).groups == ()


@pytest.mark.parametrize("sign", [True, False])
@pytest.mark.parametrize(("neurons", "inputs", "threshold"), [(30, 2, 0.99), (8, 3, 0.9), (50, 6, 0.9), (5, 1, 0.99)])
def test_chance_is_what_random_neurons_show(neurons: int, inputs: int, threshold: float, sign: bool) -> None:
    shares = []
    for seed in range(200):
        similarity = cosine_similarity(normal(neurons, inputs, seed=seed))
        np.fill_diagonal(similarity, -2.0 if not sign else 0.0)
        shares.append(((np.abs(similarity) if sign else similarity) >= threshold).any(1).mean())
    error = np.std(shares) / math.sqrt(200)
    found = chance_of_duplicates(neurons, inputs, sign, threshold)
    assert found == pytest.approx(np.mean(shares), abs=4 * error + 1e-3)


# Dead, silent, rank -----------------------------------------------------------------------------------------


def test_dead_neurons_put_out_the_same_for_all_examples() -> None:
    outputs = np.maximum(normal(100, 6), 0)
    outputs[:, 2], outputs[:, 4] = 0.0, 0.75
    report = neuron_report(normal(6, 9), activations=outputs.astype(np.float32))
    assert report.dead is not None
    assert report.zero is not None
    assert report.dead.tolist() == [False, False, True, False, True, False]
    assert report.zero.tolist() == [False, False, True, False, False, False]
    assert report.rank == 5  # one of them is a constant, and a feature
    assert "2 dead (1 always zero)" in str(report)


def test_neurons_that_nothing_listens_to_are_silent() -> None:
    out = normal(3, 5)
    out[:, 1], out[:, 3] = 0.0, 1e-5
    report = neuron_report(normal(5, 4), out)
    assert report.silent is not None
    assert report.silent.tolist() == [False, True, False, True, False]
    silent = neuron_report(normal(5, 4), np.zeros((3, 5))).silent
    assert silent is not None
    assert bool(silent.all())


@pytest.mark.parametrize(("n", "neurons", "rank"), [(200, 12, 12), (200, 12, 5), (40, 60, 40), (64, 64, 20)])
def test_the_rank_is_that_of_numpy_and_the_effective_rank_that_of_the_spectrum(n: int, neurons: int, rank: int) -> None:
    outputs = normal(n, rank) @ normal(rank, neurons, seed=1)
    report = neuron_report(normal(neurons, 3), activations=outputs)
    assert report.rank == np.linalg.matrix_rank(outputs) == rank
    assert report.rank_limit == min(n, neurons)
    expected = float(effective_rank(torch.as_tensor(np.linalg.svd(outputs, compute_uv=False) ** 2)))
    assert report.effective_rank == pytest.approx(expected, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(7)), st.floats(1e-3, 1e3), st.integers(0, 100))
def test_order_and_scale_of_the_neurons_change_nothing_but_the_order(order: list[int], scale: float, seed: int) -> None:
    weights, out, outputs = normal(7, 9, seed=seed), normal(2, 7, seed=seed), np.maximum(normal(40, 7, seed=seed), 0)
    weights[5], out[:, 2], outputs[:, 3] = -weights[0], 0.0, 0.0
    plain = neuron_report(weights, out, outputs)
    turn = np.linalg.qr(normal(9, 9, seed=seed))[0]
    moved = neuron_report(scale * weights[order] @ turn, scale * out[:, order], scale * outputs[:, order])
    assert [sorted(order[i] for i in group) for group in moved.groups] == [list(group) for group in plain.groups]
    for mask in ("silent", "dead", "zero"):
        assert torch.equal(getattr(moved, mask), getattr(plain, mask)[order])
    assert moved.rank == plain.rank
    assert moved.effective_rank == pytest.approx(plain.effective_rank)
    assert moved.duplicates == plain.duplicates


@pytest.mark.parametrize("n", [0, 1, 2, 31])
def test_few_examples_do_not_make_neurons_dead(n: int) -> None:
    report = neuron_report(normal(4, 3), activations=np.zeros((n, 4)))
    assert report.dead is None
    assert report.zero is None
    assert report.rank == (0 if n >= 2 else None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_not_judged(bad: float) -> None:
    weights, out, outputs = normal(4, 3), normal(2, 4), normal(40, 4)
    weights[0, 0] = out[0, 0] = outputs[0, 0] = bad
    report = neuron_report(weights, out, outputs, teacher=normal(2, 3))
    assert math.isnan(report.duplicates)
    assert report.groups == ()
    assert (report.silent, report.dead, report.rank) == (None, None, None)
    assert report.alignment is not None
    assert math.isnan(report.alignment.value)


def test_layers_without_neurons_inputs_or_weights_are_degenerate() -> None:
    empty = neuron_report(np.zeros((0, 3)), np.zeros((2, 0)), np.zeros((40, 0)))
    assert math.isnan(empty.duplicates)
    assert math.isnan(empty.duplicates_by_chance)
    zero = neuron_report(np.zeros((4, 3)))
    assert zero.groups == ()  # a neuron without weights looks at nothing
    assert neuron_report(np.ones((1, 3)), np.ones((2, 1)), np.ones((40, 1))).duplicates == 0
    constant = neuron_report(np.ones((3, 3)), activations=np.ones((40, 3)))
    assert constant.rank == 1
    assert constant.effective_rank == pytest.approx(1)
    assert constant.duplicates == pytest.approx(2 / 3)


def test_kinds_of_arrays_and_kernels_of_convolutions_are_taken() -> None:
    kernels = torch.as_tensor(normal(6, 3, 2, 2))
    flat = neuron_report(kernels.flatten(1).tolist(), bias=[0.0] * 6)
    torch.testing.assert_close(neuron_report(kernels.float(), bias=torch.zeros(6)).similarity, flat.similarity)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights_in": normal(4)}, r"shape \[m, d\], got \[4\]"),
        ({"weights_out": normal(4, 2)}, r"shape \[o, 4\], got \[4, 2\]"),
        ({"activations": normal(9, 3)}, r"shape \[n, 4\], got \[9, 3\]"),
        ({"bias": normal(3)}, r"one bias each, got shape \[3\]"),
        ({"threshold": 1.0}, "threshold is a cosine"),
        ({"teacher": normal(2, 7)}, r"same inputs, got \[4, 3\] and \[2, 7\]"),
    ],
)
def test_wrong_arguments_raise(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neuron_report(**{"weights_in": normal(4, 3), **wrong})


# Alignment with a teacher -----------------------------------------------------------------------------------


def test_a_student_that_found_the_teacher_is_aligned_whatever_the_order_and_sign() -> None:
    teacher = normal(4, 10)
    student = np.concatenate([normal(3, 10, seed=1), -3 * teacher[[2, 0]], teacher[[3, 1]]])
    found = teacher_alignment(student, teacher)
    assert found.value == pytest.approx(1)
    assert found.student.tolist() == [4, 6, 3, 5]
    assert found.teacher.tolist() == [0, 1, 2, 3]
    assert found.chance < 0.6
    assert teacher_alignment(student, teacher, sign=False).value < 0.8


def test_partners_are_those_of_all_permutations() -> None:
    for seed in range(20):
        student, teacher = normal(5, 3, seed=seed), normal(3, 3, seed=100 + seed)
        similarity = np.abs(cosine_similarity(teacher, student))
        best = max(similarity[[0, 1, 2], list(p)].sum() for p in itertools.permutations(range(5), 3))
        assert teacher_alignment(student, teacher).value == pytest.approx(best / 3)


def test_chance_of_alignment_is_what_fresh_random_students_show() -> None:
    teacher = normal(4, 6)
    fresh = [teacher_alignment(normal(8, 6, seed=seed), teacher).value for seed in range(100)]
    assert teacher_alignment(normal(8, 6, seed=200), teacher).chance == pytest.approx(np.mean(fresh), abs=0.04)


def test_a_student_with_fewer_neurons_cannot_stand_for_all() -> None:
    teacher = normal(4, 10)
    found = teacher_alignment(teacher[:3], teacher)
    assert found.value == pytest.approx(3 / 4)
    assert len(found.cosines) == 3
    assert "0.750" in str(found)


def test_alignment_draws_no_global_random_numbers() -> None:
    before = torch.random.get_rng_state()
    one, other = teacher_alignment(normal(8, 6), normal(4, 6)), teacher_alignment(normal(8, 6), normal(4, 6))
    assert one.chance == other.chance
    assert torch.equal(torch.random.get_rng_state(), before)


# Distance between two minima --------------------------------------------------------------------------------


def group(m: int, symmetry: Symmetry) -> Any:
    """All permutations with all signs."""
    signs = [(1,) * m] if symmetry == "none" else itertools.product((1, -1), repeat=m)
    return itertools.product(itertools.permutations(range(m)), signs)


@pytest.mark.parametrize("symmetry", ["odd", "even", "none"])
@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_the_smallest_over_all_permutations_and_signs(symmetry: Symmetry, seed: int) -> None:
    (w, a), (v, b) = ((normal(4, 3, seed=s), normal(2, 4, seed=s + 50)) for s in (seed, seed + 100))
    found = permutation_sign_distance((w, a), (v, b), symmetry)
    best = math.inf
    for order, signs in group(4, symmetry):
        turned = np.array(signs)
        out = b[:, order] * (turned if symmetry == "odd" else 1)
        squares = ((w - turned[:, None] * v[list(order)]) ** 2).sum() + ((a - out) ** 2).sum()
        best = min(best, math.sqrt(squares))
    assert found.distance == pytest.approx(best)
    assert found.relative == pytest.approx(best / math.sqrt((w**2).sum() + (a**2).sum()))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.lists(st.sampled_from([-1.0, 1.0]), min_size=6, max_size=6), st.integers(0, 99))
def test_networks_that_are_the_same_function_are_at_distance_0(order: list[int], signs: list[float], seed: int) -> None:
    w, a = normal(6, 4, seed=seed), normal(3, 6, seed=seed + 1)
    turned = np.array(signs)
    other = w[order] * turned[:, None], a[:, order] * turned
    x = normal(10, 4, seed=3)
    np.testing.assert_allclose(np.tanh(x @ w.T) @ a.T, np.tanh(x @ other[0].T) @ other[1].T, atol=1e-12)
    found = permutation_sign_distance((w, a), other)
    assert found.distance == pytest.approx(0, abs=1e-12)
    assert [order[i] for i in found.permutation] == list(range(6))
    assert found.signs.tolist() == [signs[i] for i in found.permutation]
    assert permutation_sign_distance(other, (w, a)).distance == pytest.approx(0, abs=1e-12)


def test_it_is_symmetric_and_obeys_the_triangle() -> None:
    one, two, three = (normal(5, 4, seed=s) for s in range(3))

    def distance(a: Array, b: Array) -> float:
        return permutation_sign_distance(a, b).distance

    assert distance(one, two) == pytest.approx(distance(two, one))
    assert distance(one, three) <= distance(one, two) + distance(two, three)
    assert distance(3 * one, 3 * two) == pytest.approx(3 * distance(one, two))
    assert distance(one, two) < np.linalg.norm(one - two)


def test_rows_of_all_weights_of_a_neuron_are_taken_too() -> None:
    w, a = normal(4, 3), normal(2, 4, seed=1)
    v, b = normal(4, 3, seed=2), normal(2, 4, seed=3)
    rows = permutation_sign_distance(np.concatenate([w, a.T], 1), np.concatenate([v, b.T], 1))
    assert rows.distance == pytest.approx(permutation_sign_distance((w, a), (v, b)).distance)
    assert "of 4 neurons renamed" in str(rows)


def test_degenerate_networks() -> None:
    assert permutation_sign_distance(np.zeros((0, 3)), np.zeros((0, 3))).distance == 0
    zero = permutation_sign_distance(np.zeros((2, 3)), np.zeros((2, 3)))
    assert zero.distance == 0
    assert math.isnan(zero.relative)
    assert permutation_sign_distance([[2.0]], [[-3.0]]).distance == pytest.approx(1)
    assert math.isnan(permutation_sign_distance([[math.nan]], [[1.0]]).distance)
    assert math.isnan(permutation_sign_distance([[math.inf]], [[1.0]]).distance)


def test_networks_that_cannot_be_compared_raise() -> None:
    with pytest.raises(ValueError, match="both networks need the same shape"):
        permutation_sign_distance(normal(3, 2), normal(4, 2))
    with pytest.raises(ValueError, match=r"outgoing ones \[o, m\], got \[3, 2\] and \[3, 4\]"):
        permutation_sign_distance((normal(3, 2), normal(3, 4)), (normal(3, 2), normal(3, 4)))
    with pytest.raises(ValueError, match="symmetry is"):
        permutation_sign_distance(normal(3, 2), normal(3, 2), "both")  # type: ignore[arg-type]
