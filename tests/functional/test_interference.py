"""The interference profile: planted systems, loops as oracle, what must not matter, and what must be refused."""

import math
import time

import pytest
import torch
from _gradient_systems import (
    RANKS,
    SIZES,
    N,
    disjoint_gradients,
    gaussian_gradients,
    gram_at_initialisation,
)
from scipy.stats import spearmanr
from torch import Tensor

from lightning_cx.functional import (
    Basis,
    cosine_basis,
    cumulative_power,
    energy_spectrum,
    fourier_basis,
    interference_profile,
    kernel_target_alignment,
    laplacian_basis,
    median_complexity,
)
from lightning_cx.functional.complexity.basis import merge_levels
from lightning_cx.functional.complexity.spectrum import Axis, low_weights
from lightning_cx.functional.interference.profile import tail_probability
from lightning_cx.functional.linalg import principal_modes

BASIS = cosine_basis(N)
SEEDS = range(4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def means(sizes: str, rotate: bool = False) -> dict[str, float]:
    """Means over seeds of what THEORY section 3 states."""
    names = ("rank_correlation", "cii", "dii", "iota_leading", "iota_trailing")
    profiles = [
        interference_profile(None, BASIS, gaussian_gradients(BASIS, SIZES[sizes], seed, rotate), permutations=0)
        for seed in SEEDS
    ]
    return {name: sum(float(getattr(p, name)) for p in profiles) / len(profiles) for name in names}


# Known answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["decaying as 1/k", "decaying as 1/sqrt(k)"])
def test_where_simple_functions_are_strong_every_index_says_so(sizes):
    seen = means(sizes)
    assert seen["rank_correlation"] > 0.99
    assert seen["cii"] > 0.95
    assert seen["dii"] > 0.99
    assert seen["iota_leading"] > 0.2
    assert seen["iota_trailing"] < -0.45


@pytest.mark.parametrize(
    ("sizes", "rotate"), [("flat", False), ("decaying as 1/k", True), ("decaying as 1/sqrt(k)", True)]
)
def test_where_strength_and_complexity_are_unrelated_no_index_says_otherwise(sizes, rotate):
    seen = means(sizes, rotate)
    assert abs(seen["rank_correlation"]) < 0.2
    assert abs(seen["cii"]) < 0.1
    assert abs(seen["dii"]) < 0.2
    assert abs(seen["iota_leading"]) < 0.1
    assert abs(seen["iota_trailing"]) < 0.2


@pytest.mark.parametrize("sizes", ["growing as 1/k", "growing as 1/sqrt(k)"])
def test_where_complex_functions_are_strong_the_indices_are_negative(sizes):
    seen = means(sizes)
    assert seen["rank_correlation"] < -0.99
    assert seen["cii"] < -0.95
    assert seen["dii"] < -0.95


def test_order_without_interference_is_told_from_interference():
    profile = interference_profile(None, BASIS, disjoint_gradients(BASIS, 1 / RANKS))
    assert float(profile.rank_correlation) == pytest.approx(1, abs=1e-9)
    assert float(profile.cii) == pytest.approx(1, abs=1e-9)
    assert float(profile.iota_leading) == pytest.approx(0, abs=1e-9)
    assert float(profile.iota_trailing) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(profile.leading.gain, torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(profile.medians, BASIS.complexity[1:])


def test_interference_multiplies_the_low_side_and_divides_the_high_one():
    profile = interference_profile(None, BASIS, gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=0))
    assert (profile.leading.gain_low > 5).all()
    assert (profile.leading.gain_low > 5 * profile.leading.gain_high).all()
    assert float(profile.trailing.gain_low.max()) < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_relu_network_at_initialisation_obeys_the_principle_and_its_shuffled_control_does_not(seed):
    points = torch.linspace(-1, 1, N, dtype=torch.float64)
    gram = gram_at_initialisation(points, seed)
    profile = interference_profile(gram, cosine_basis(points))
    assert float(profile.cii) > 0.9
    assert profile.verdict == "holds"
    assert abs(float(profile.shuffled_cii)) < 0.05
    order = torch.randperm(N, generator=generator(seed))
    shuffled = interference_profile(gram, Basis(BASIS.vectors[order], BASIS.complexity))
    assert abs(float(shuffled.cii)) < 0.25


def test_random_fourier_features_of_a_large_scale_break_the_principle():
    points = torch.linspace(0, 1, N, dtype=torch.float64)
    cii = [
        float(interference_profile(gram_at_initialisation(points, 0, 256, scale), BASIS).cii) for scale in (1, 10, 60)
    ]
    assert min(cii[:2]) > 0.9
    assert cii[2] < 0.35


# Oracles --------------------------------------------------------------------------------------------------


def loops(gradients: Tensor, basis: Basis, q: int) -> dict[str, Tensor]:
    """The definitions of THEORY section 3, mode by mode and parameter by parameter, from single spectra."""
    centred = gradients - gradients.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    kept = [j for j in range(len(values) - 1, -1, -1) if values[j] > 1e-8 * values[-1]]
    sizes = [float(values[j]) for j in kept]
    modes = [vectors[:, j] for j in kept]

    def levels(function: Tensor) -> Tensor:
        return merge_levels(energy_spectrum(basis, function), basis.complexity, basis.tolerance)[0][1:]

    def split_by(subset: list[int]) -> Tensor:
        return low_weights(sum(sizes[i] * levels(modes[i]) for i in subset))

    def low_share(energy: Tensor, weights: Tensor) -> float:
        return float((weights * energy).sum() / energy.sum())

    def iota(j: int, subset: list[int]) -> float:
        restricted = sum(torch.outer(modes[i], modes[i] @ centred) for i in subset)
        moves = centred.T @ modes[j] / math.sqrt(sizes[j])
        alone = sum(moves[p] ** 2 * levels(restricted[:, p]) for p in range(gradients.shape[1]))
        weights = split_by(subset)
        return low_share(levels(modes[j]), weights) - low_share(alone, weights)

    r = len(kept)
    first, last = range(min(q, r - 1)), range(r - 1, r - 1 - min(q, r - 1), -1)
    complexity = merge_levels(basis.complexity, basis.complexity, basis.tolerance)[1][1:]
    medians = [float(median_complexity(levels(u), complexity)) for u in modes]
    found = {
        "medians": medians,
        "amplification": [2 * low_share(levels(modes[j]), split_by(list(range(j + 1, r)))) - 1 for j in first],
        "attenuation": [1 - 2 * low_share(levels(modes[j]), split_by(list(range(j)))) for j in last],
        "rank_correlation": spearmanr(range(r), medians).statistic,
        "iota_leading": sum(iota(j, list(range(j, r))) for j in first) / len(first),
        "iota_trailing": sum(iota(j, list(range(j + 1))) for j in last) / len(last),
    }
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


@pytest.mark.parametrize("make", [cosine_basis, fourier_basis], ids=lambda make: make.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_index_agrees_with_its_definition_in_loops(make, seed):
    basis = make(24)
    sizes = RANKS[:24] ** -0.6
    gradients = gaussian_gradients(basis, sizes, seed, width=40) + 3.0
    profile = interference_profile(None, basis, gradients, q=5)
    for name, expected in loops(gradients, basis, q=5).items():
        torch.testing.assert_close(getattr(profile, name), expected, rtol=0, atol=1e-8, msg=name)


def test_the_split_of_the_whole_gradient_halves_its_modes_exactly():
    gradients = gaussian_gradients(BASIS, SIZES["decaying as 1/sqrt(k)"], seed=3)
    eigenvalues, modes = principal_modes(gradients @ gradients.T, N)
    energies = Axis.without_constant(BASIS).energies(modes)
    shares = (low_weights(eigenvalues @ energies) * energies).sum(1) / energies.sum(1)
    balance = (eigenvalues * energies.sum(1) * (2 * shares - 1)).sum() / eigenvalues.sum()
    assert abs(float(balance)) < 1e-9


def test_the_gram_path_agrees_with_the_gradient_path():
    gradients = gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=1)
    by_gradients = interference_profile(None, BASIS, gradients)
    by_gram = interference_profile(gradients @ gradients.T, BASIS)
    for name in ("cii", "dii", "rank_correlation", "medians", "p_value", "shuffled_cii", "decay_exponent"):
        torch.testing.assert_close(getattr(by_gram, name), getattr(by_gradients, name), rtol=0, atol=1e-8)
    assert by_gram.leading is None
    assert by_gram.iota_leading is None
    assert by_gram.decay_similarity is None


def test_parameters_taken_in_blocks_give_the_same(monkeypatch):
    gradients = gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=1, width=300)
    at_once = interference_profile(None, BASIS, gradients, permutations=0)
    monkeypatch.setattr("lightning_cx.functional.interference.coherence.BLOCK_BYTES", 8 * N * 7)
    in_blocks = interference_profile(None, BASIS, gradients, permutations=0)
    torch.testing.assert_close(in_blocks.leading.iota, at_once.leading.iota)
    torch.testing.assert_close(in_blocks.trailing.gain, at_once.trailing.gain)
    torch.testing.assert_close(in_blocks.decay_similarity, at_once.decay_similarity)


def test_a_random_subset_of_the_parameters_estimates_iota():
    gradients = gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=2)
    whole = interference_profile(None, BASIS, gradients, permutations=0)
    subset = torch.randperm(gradients.shape[1], generator=generator())[:500]
    part = interference_profile(gradients @ gradients.T, BASIS, gradients[:, subset], permutations=0)
    assert float(part.iota_leading) == pytest.approx(float(whole.iota_leading), abs=0.05)
    assert float(part.cii) == float(whole.cii)


def test_outputs_share_the_basis_and_their_energies_add():
    one, other = (gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed, width=300) for seed in (0, 1))
    jacobian = torch.stack([one, other], 1).flatten(0, 1)  # [n * 2, P], the outputs of one example together
    profile = interference_profile(None, BASIS, jacobian)
    assert profile.singular_values.numel() > N  # two sets of modes
    expected = one - one.mean(0), other - other.mean(0)
    by_definition = torch.cat(expected) @ torch.cat(expected).T
    torch.testing.assert_close(profile.singular_values**2, torch.linalg.eigvalsh(by_definition).flip(0)[: 2 * N - 2])
    spectrum = sum(energy_spectrum(BASIS, part) for part in expected)
    whole = median_complexity(spectrum[1:], BASIS.complexity[1:])
    torch.testing.assert_close(profile.whole_median, whole)
    assert profile.verdict == "holds"


def test_the_mean_gradient_fakes_the_principle_only_where_it_is_kept():
    points = torch.linspace(-1, 1, N, dtype=torch.float64)
    gram = gram_at_initialisation(points, seed=0)
    order = torch.randperm(N, generator=generator(0))
    shuffled = Basis(BASIS.vectors[order], BASIS.complexity)
    kept, taken_off = (interference_profile(gram, shuffled, q=1, center=c).cii for c in (False, True))
    assert float(kept) > 0.5
    assert abs(float(taken_off)) < 0.25


# What chance gives ----------------------------------------------------------------------------------------


def test_p_values_are_uniform_where_there_is_no_order():
    basis = cosine_basis(40)
    seen = [
        interference_profile(None, basis, gaussian_gradients(basis, RANKS[:40] ** -1, seed, True, 60), seed=seed)
        for seed in range(100)
    ]
    p = torch.stack([profile.p_value for profile in seen])
    assert 0.35 < float(p.mean()) < 0.65
    assert float((p < 0.1).double().mean()) < 0.2
    assert sum(profile.verdict != "absent" for profile in seen) < 20


def test_the_shuffled_control_is_what_shuffled_bases_give():
    gram = gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=0)
    gram = gram @ gram.T
    profile = interference_profile(gram, BASIS, shuffles=60, permutations=0)
    orders = [torch.randperm(N, generator=generator(100 + seed)) for seed in range(60)]
    cii = [interference_profile(gram[o][:, o], BASIS, permutations=0, shuffles=0).cii for o in orders]
    seen = torch.stack(cii)
    assert float(profile.shuffled_cii) == pytest.approx(float(seen.mean()), abs=4 * float(seen.std()) / 60**0.5)
    assert float(profile.shuffled_sd) == pytest.approx(float(seen.std()), rel=0.4)


def test_the_same_seed_gives_the_same_nulls_and_no_global_random_number_is_drawn():
    gram = gaussian_gradients(BASIS, SIZES["flat"], seed=0)
    before = torch.random.get_rng_state()
    first, again, other = (interference_profile(gram @ gram.T, BASIS, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.null_sd, again.null_sd)
    assert torch.equal(first.shuffled_cii, again.shuffled_cii)
    assert not torch.equal(first.null_sd, other.null_sd)


@pytest.mark.timing
def test_a_profile_of_512_examples_with_200_permutations_takes_less_than_two_seconds():
    basis = cosine_basis(512)
    gradients = gaussian_gradients(basis, (1 + torch.arange(512).double()) ** -0.5, seed=0)
    gram = gradients @ gradients.T
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        interference_profile(gram, basis, permutations=200)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2


def test_the_p_value_counts_ties_and_the_observed_order_itself():
    null = torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=torch.float64)
    assert float(tail_probability(torch.tensor(0.5).double(), null)) == pytest.approx(4 / 5)
    assert float(tail_probability(torch.tensor(2.0).double(), null)) == pytest.approx(1 / 5)
    assert tail_probability(torch.tensor(math.nan).double(), null).isnan()
    pure = BASIS.vectors[:, [4, 9]] * torch.tensor([2.0, 1.0])  # half of all pairings of two modes are in perfect order
    profile = interference_profile(None, BASIS, pure)
    assert 0.35 < float(profile.p_value) < 0.65
    assert 0.9 < float(profile.lower_p_value) <= 1


@pytest.mark.parametrize("columns", [[4, 9], [9, 4], [4, 9, 20], [20, 9, 4]])
def test_a_few_modes_prove_nothing_either_way(columns):
    sizes = torch.tensor([4.0, 2.0, 1.0])[: len(columns)]
    profile = interference_profile(None, BASIS, BASIS.vectors[:, columns] * sizes)
    assert profile.verdict == "unknown"
    assert "too few modes or permutations" in str(profile)


def test_a_few_permutations_prove_nothing_either_way():
    gradients = gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=0, width=300)
    assert interference_profile(None, BASIS, gradients, permutations=18).verdict == "unknown"
    assert interference_profile(None, BASIS, gradients, permutations=40).verdict == "holds"


def test_no_order_is_called_reversed_no_more_often_than_holding():
    verdicts = []
    for seed in range(100):
        gradients = torch.randn(40, 5, generator=generator(seed), dtype=torch.float64)
        verdicts.append(interference_profile(None, cosine_basis(40), gradients, seed=seed).verdict)
    assert verdicts.count("reversed") < 12
    assert verdicts.count("holds") < 12


def test_the_shuffled_control_keeps_the_outputs_of_an_example_together():
    one, other = (gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed, width=40) for seed in (0, 1))
    jacobian = torch.stack([one, 3 * other], 1).flatten(0, 1)
    profile = interference_profile(None, BASIS, jacobian, permutations=0, shuffles=30, q=3)
    by_example = jacobian.reshape(N, 2, -1)
    seen = []
    for seed in range(30):
        order = torch.randperm(N, generator=generator(100 + seed))
        shuffled = by_example[order].flatten(0, 1)
        seen.append(interference_profile(None, BASIS, shuffled, permutations=0, shuffles=0, q=3).cii)
    outside = torch.stack(seen)
    assert float(profile.shuffled_sd) == pytest.approx(float(outside.std()), rel=0.6)
    assert float(profile.shuffled_cii) == pytest.approx(float(outside.mean()), abs=4 * float(outside.std()) / 30**0.5)


# What must not matter -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-200, 1e-161, 1e160, 1e200])
def test_gradients_of_any_size_have_the_same_profile(scale):
    gradients = gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=0, width=300)
    before = interference_profile(None, BASIS, gradients)
    after = interference_profile(None, BASIS, scale * gradients)
    for name in ("cii", "dii", "rank_correlation", "p_value", "iota_leading", "iota_trailing", "decay_exponent"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-8, msg=name)
    torch.testing.assert_close(after.singular_values / scale, before.singular_values)


@pytest.mark.parametrize("change", ["scale", "sign", "order of parameters", "order of examples"])
def test_scale_sign_and_order_do_not_matter(change):
    gradients, basis = gaussian_gradients(BASIS, SIZES["decaying as 1/sqrt(k)"], seed=5, width=300), BASIS
    before = interference_profile(None, basis, gradients)
    if change == "scale":
        gradients = 1e-7 * gradients
    elif change == "sign":
        gradients = -gradients
    elif change == "order of parameters":
        gradients = gradients[:, torch.randperm(300, generator=generator())]
    else:
        order = torch.randperm(N, generator=generator())
        gradients, basis = gradients[order], Basis(basis.vectors[order], basis.complexity)
    after = interference_profile(None, basis, gradients)
    for name in ("cii", "dii", "rank_correlation", "medians", "p_value", "iota_leading", "iota_trailing"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-8)


def test_turning_the_waves_of_one_frequency_into_each_other_changes_nothing():
    basis = fourier_basis(64)
    gradients = gaussian_gradients(basis, RANKS[:64] ** -1, seed=0, width=100)
    turned = basis.vectors.clone()
    angle = torch.tensor(0.7).double()
    turned[:, 5] = angle.cos() * basis.vectors[:, 5] + angle.sin() * basis.vectors[:, 6]
    turned[:, 6] = angle.cos() * basis.vectors[:, 6] - angle.sin() * basis.vectors[:, 5]
    before, after = (
        interference_profile(None, b, gradients, permutations=0) for b in (basis, Basis(turned, basis.complexity))
    )
    for name in ("cii", "dii", "rank_correlation", "iota_leading"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-9)


# Degenerate input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gram",
    [torch.zeros(8, 8), torch.full((8, 8), 0.1), torch.full((8, 8), math.nan), torch.full((8, 8), math.inf)],
    ids=["zero", "identical", "nan", "inf"],
)
def test_gradients_that_do_not_differ_or_are_not_finite_have_no_profile(gram):
    profile = interference_profile(gram, cosine_basis(8), targets=torch.arange(8.0))
    assert profile.singular_values.numel() == profile.medians.numel() == 0
    for name in ("cii", "dii", "rank_correlation", "p_value", "whole_median", "participation_ratio", "shuffled_cii"):
        assert math.isnan(getattr(profile, name)), name
    assert profile.verdict == "unknown"
    assert "unknown" in str(profile)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_few_examples_give_nan_where_nothing_can_be_said(n):
    gradients = torch.randn(n, 10, generator=generator())
    profile = interference_profile(None, laplacian_basis(torch.arange(float(n))), gradients)
    assert profile.singular_values.numel() == (n - 1 if n > 2 else 0)  # one level besides the constant orders nothing
    assert math.isnan(profile.rank_correlation) == (n < 4)
    assert math.isnan(profile.cii) == (n < 3)
    assert str(profile)


def test_not_a_number_in_the_gradients_is_not_hidden():
    gradients = torch.randn(16, 10, generator=generator())
    gradients[3, 4] = math.nan
    profile = interference_profile(None, cosine_basis(16), gradients)
    assert math.isnan(profile.cii)
    assert math.isnan(profile.iota_leading)


def test_without_permutations_nothing_is_claimed():
    profile = interference_profile(torch.eye(16), cosine_basis(16), permutations=0, shuffles=0)
    assert math.isnan(profile.p_value)
    assert math.isnan(profile.null_mean)
    assert math.isnan(profile.shuffled_cii)
    assert profile.verdict == "unknown"


def test_what_the_basis_cannot_express_is_left_out_and_told():
    half = Basis(BASIS.vectors[:, : N // 2], BASIS.complexity[: N // 2])
    profile = interference_profile(None, half, disjoint_gradients(BASIS, 1 / RANKS))
    energies = (1 / RANKS[1:]) ** 2
    assert float(profile.expressed) == pytest.approx(float(energies[: N // 2 - 1].sum() / energies.sum()))
    assert profile.singular_values.numel() == N // 2 - 1
    assert float(profile.rank_correlation) == pytest.approx(1)


@pytest.mark.parametrize(("n", "columns"), [(64, 8), (128, 16), (256, 64)])
def test_modes_that_a_cut_basis_hardly_expresses_do_not_spoil_the_ranks(n, columns):
    whole = cosine_basis(n)
    cut = Basis(whole.vectors[:, :columns], whole.complexity[:columns])
    gradients = gaussian_gradients(whole, (1 + torch.arange(n).double()) ** -1, seed=0)
    profile = interference_profile(None, cut, gradients)
    assert float(profile.rank_correlation) > 0.9
    assert float(profile.cii) > 0.7
    assert abs(float(profile.null_mean)) < 0.1
    assert "of the energy, the basis misses the rest" in str(profile)


@pytest.mark.parametrize(
    ("basis", "gradients", "reason"),
    [
        (laplacian_basis(torch.ones(20, 3)), torch.randn(20, 9, generator=generator()), "gives no order"),
        (
            Basis(BASIS.vectors[:, 60:70], BASIS.complexity[60:70]),
            BASIS.vectors[:, 2:6],
            "less than half of every mode",
        ),
        (cosine_basis(8), torch.ones(8, 3), "do not differ between examples"),
        (cosine_basis(8), torch.zeros(8, 0), "do not differ between examples"),
        (cosine_basis(8), torch.full((8, 3), math.inf), "not finite"),
    ],
)
def test_where_there_is_no_profile_the_reason_is_the_true_one(basis, gradients, reason):
    profile = interference_profile(None, basis, gradients)
    assert reason in profile.unknown
    assert reason in str(profile)
    assert math.isnan(profile.cii)


def test_rounding_has_no_decay_exponent():
    assert math.isnan(interference_profile(None, BASIS, BASIS.vectors[:, 3:4]).decay_exponent)


@pytest.mark.parametrize("make", [lambda g: g.numpy(), lambda g: g.numpy()[::-1][::-1], lambda g: g.T.contiguous().T])
def test_arrays_and_views_are_welcome(make):
    gradients = gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=0, width=50)
    expected = interference_profile(None, BASIS, gradients).cii
    assert float(interference_profile(None, BASIS, make(gradients)).cii) == pytest.approx(float(expected), abs=1e-9)
    upside_down = Basis(BASIS.vectors.flip(0), BASIS.complexity)
    flipped = interference_profile(None, upside_down, gradients.numpy()[::-1])
    assert float(flipped.cii) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gram": torch.eye(5)}, r"4 examples, but the Gram matrix has shape \[5, 5\]"),
        ({"gram": torch.ones(4, 3)}, r"Gram matrix has shape \[4, 3\]"),
        ({"gram": None}, "needs a Gram matrix or gradients"),
        ({"gram": torch.eye(4), "gradients": torch.ones(5, 2)}, r"gradients have shape \[5, 2\]"),
        ({"gram": torch.eye(4), "gradients": torch.ones(8, 2)}, "4 rows, but the gradients have 8"),
        ({"gram": torch.eye(4, dtype=torch.complex64)}, "complex gradients"),
        ({"gram": torch.eye(4), "q": 0}, "q must be at least 1, got 0"),
        ({"gram": torch.eye(4), "permutations": -1}, "permutations must be at least 0"),
        ({"gram": torch.eye(4), "shuffles": -1}, "shuffles must be at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        interference_profile(basis=cosine_basis(4), **arguments)


# With targets, and in words ---------------------------------------------------------------------------------


def test_with_targets_the_profile_says_how_the_gradients_align_with_them():
    gradients = gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=0)
    gram = gradients @ gradients.T
    simple, rough = BASIS.vectors[:, 1:4], BASIS.vectors[:, -3:]
    easy, hard = (interference_profile(gram, BASIS, targets=t, permutations=0) for t in (simple, rough))
    torch.testing.assert_close(easy.alignment, kernel_target_alignment(gram, simple))
    torch.testing.assert_close(easy.power.area, cumulative_power(gram, simple).area)
    assert float(easy.power.area) > 0.9
    assert float(hard.power.area) < 0.2
    assert float(easy.alignment) > float(hard.alignment)
    assert "target: alignment" in str(easy)
    without = interference_profile(gram, BASIS, permutations=0)
    assert without.alignment is None
    assert without.power is None


def test_the_profile_reads_as_sentences_with_its_verdict():
    holds, absent, reversed_ = (
        interference_profile(None, BASIS, gaussian_gradients(BASIS, SIZES[name], 0, rotate, width=300))
        for name, rotate in (("decaying as 1/k", False), ("decaying as 1/k", True), ("growing as 1/k", False))
    )
    assert str(holds).startswith("interference profile of 127 modes: the principle holds\n")
    assert "principle is absent" in str(absent)
    assert "is reversed: complex functions get the large singular values" in str(reversed_)
    assert "by interference: iota" in str(holds)
    assert (holds.verdict, absent.verdict, reversed_.verdict) == ("holds", "absent", "reversed")


def test_conditions_for_the_principle_are_reported_beside_it():
    gradients = gaussian_gradients(BASIS, SIZES["decaying as 1/k"], seed=0)
    profile = interference_profile(None, BASIS, gradients, permutations=0)
    assert float(profile.decay_exponent) == pytest.approx(2, abs=0.2)  # energies are squares of 1/k
    values = profile.singular_values**2
    torch.testing.assert_close(profile.participation_ratio, values.sum() ** 2 / values.square().sum())
    identical = BASIS.vectors[:, 1:5].sum(1, keepdim=True).repeat(1, 30)
    disjoint = BASIS.vectors[:, 1:5]
    alike, unlike = (
        interference_profile(None, BASIS, g, permutations=0).decay_similarity for g in (identical, disjoint)
    )
    assert float(alike) == pytest.approx(1)
    assert float(unlike) == pytest.approx(0.5)  # four equal spectra without overlap: 4^-1/2
