"""The report calls noise what it is, says why, and refuses to say more than the samples tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _tail_laws import anisotropic_stable, draw, heteroscedastic, pareto, scale_mixture, stable

from lightning_cx.functional import alpha_ecf, hill, tail_report, xi_dedh
from lightning_cx.functional.tails.goodness_of_fit import aggregation_test, anderson_darling, stable_test
from lightning_cx.functional.tails.report import Evidence, TailReport, decide

HEAVY = "heavy-aggregates-to-gaussian"


def test_normal_noise_of_unequal_scales_is_called_gaussian() -> None:
    assert {tail_report(heteroscedastic(512, 200, seed)).verdict for seed in range(60)} == {"gaussian"}
    assert {tail_report(heteroscedastic(2048, 60, seed, 0.5)).verdict for seed in range(20)} == {"gaussian"}


def test_normal_numbers_are_called_gaussian() -> None:
    verdicts = [tail_report(torch.randn(2048, generator=draw(seed)) * 3 + 7).verdict for seed in range(60)]
    assert verdicts.count("gaussian") >= 59


@pytest.mark.parametrize("seeds", [5, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", [512, 2048, 4096])
@pytest.mark.parametrize("d", [None, 50])
def test_a_scale_mixture_is_not_called_stable(n: int, d: int | None, seeds: int) -> None:
    verdicts = [tail_report(scale_mixture(n, seed, d)).verdict for seed in range(seeds)]
    assert set(verdicts) <= {HEAVY, "indeterminate"}


@pytest.mark.parametrize("seeds", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_scale_mixture_averages_away_in_large_batches(seeds: int) -> None:
    reports = [tail_report(scale_mixture(8192, seed, d=50), batch_size=128) for seed in range(seeds)]
    assert [report.verdict for report in reports].count(HEAVY) >= 0.9 * seeds
    assert min(float(report.shift) for report in reports) > 0.5


@pytest.mark.parametrize("seeds", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_stable_noise_is_called_stable(seeds: int) -> None:
    verdicts = [tail_report(stable(1.4, 4096, seed)).verdict for seed in range(seeds)]
    assert verdicts.count("stable") >= 0.8 * len(verdicts)  # two tests at 5% each
    assert HEAVY not in verdicts
    vectors = [tail_report(anisotropic_stable(1.3, 4096, 60, seed)).verdict for seed in range(seeds // 2)]
    assert vectors.count("stable") >= 0.8 * len(vectors)


@pytest.mark.parametrize("seeds", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("share", "ratio"), [(0.03, 30), (0.02, 100), (0.01, 100), (0.1, 100), (0.005, 100)])
def test_mixtures_of_any_two_scales_are_not_called_stable(share: float, ratio: float, seeds: int) -> None:
    for n, batch_size in ((512, 8), (2048, 32), (4096, 64)):
        for seed in range(seeds):
            generator = draw(seed)
            scale = torch.where(torch.rand(n, 1, generator=generator) < share, ratio, 1.0)
            report = tail_report(scale * torch.randn(n, 50, generator=generator), batch_size)
            assert report.verdict != "stable", (n, seed, str(report))


@pytest.mark.parametrize("df", [3, 5])
def test_noise_with_a_variance_is_seldom_called_stable(df: float) -> None:
    """512 samples leave sums of 8, which for 3 degrees of freedom are hardly lighter."""
    verdicts = []
    for seed in range(40):
        lengths = torch.from_numpy(np.random.default_rng(seed).chisquare(df, 512)).rsqrt()[:, None]
        verdicts.append(tail_report(lengths * torch.randn(512, 50, generator=draw(seed)), 32).verdict)
    assert verdicts.count("stable") <= 1


def test_a_few_far_out_are_named_where_the_bulk_is_normal() -> None:
    generator = draw(0)
    scale = torch.where(torch.rand(4096, 1, generator=generator) < 0.001, 10.0, 1.0)
    report = tail_report(scale * torch.randn(4096, 50, generator=generator))
    assert report.verdict == "gaussian"
    assert "a few are far larger than the rest" in report.reason


def test_many_zeros_are_named() -> None:
    samples = torch.randn(2048, generator=draw(0))
    samples[torch.arange(2048) % 5 < 2] = 0
    assert "40% of the samples are the same number" in tail_report(samples).reason


def test_two_lumps_without_tails_are_not_heavy() -> None:
    """Gradients of two classes: no normal law, but nothing far out either."""
    generator = draw(0)
    lumps = torch.randn(2048, generator=generator) + torch.where(torch.rand(2048, generator=generator) < 0.5, 2.5, -2.5)
    report = tail_report(lumps)
    assert float(report.p_gaussian) < 1e-3
    assert report.verdict == "gaussian"
    assert "not normal in shape" in report.reason


def test_the_numbers_are_those_of_the_single_functions() -> None:
    samples = anisotropic_stable(1.5, 1024, 30, 0)
    report = tail_report(samples, batch_size=8, seed=3)
    fit, mean = alpha_ecf(samples, seed=3), samples.mean(0)
    assert (report.alpha, report.alpha_low, report.alpha_high) == (fit.index, fit.low, fit.high)
    assert report.p_gaussian == anderson_darling(samples, seed=3).p_value
    assert report.p_stable == stable_test(samples, seed=3).p_value
    assert report.p_shift == aggregation_test(samples, 8, seed=3).p_value
    norms = (samples - mean).norm(dim=1)
    assert float(report.xi) == pytest.approx(float(xi_dedh(norms).index), abs=1e-12)
    assert float(report.hill) == pytest.approx(float(hill(norms).index), abs=1e-12)
    assert (report.n, report.sum_size) == (1024, 8)
    assert float(report.shift) == pytest.approx(float(report.sum_alpha - report.alpha))
    assert report.alpha.dtype is torch.float64


def test_a_place_far_from_zero_is_no_magnitude() -> None:
    samples = stable(1.5, 2048, 0)
    there, here = tail_report(samples + 1e4), tail_report(samples)
    for field in ("alpha", "xi", "hill", "sum_alpha"):
        assert float(getattr(there, field)) == pytest.approx(float(getattr(here, field)), abs=1e-6)


@pytest.mark.parametrize("unit", [1e250, 1e-250])
def test_units_do_not_matter_however_large_or_small(unit: float) -> None:
    for samples in (stable(1.5, 600, 0), anisotropic_stable(1.5, 600, 9, 0)):
        there, here = tail_report(samples * unit), tail_report(samples)
        for field in ("alpha", "xi", "hill", "sum_alpha", "p_gaussian"):
            assert float(getattr(there, field)) == pytest.approx(float(getattr(here, field)), abs=1e-6)
        assert there.verdict == here.verdict


def test_norms_that_are_known_better_are_taken() -> None:
    samples, norms = torch.randn(600, 16, generator=draw(0)), pareto(1.5, 600, 0)
    report = tail_report(samples, projections=None, norms=norms)
    assert float(report.xi) == pytest.approx(float(xi_dedh(norms).index))
    assert report.xi_low > 0


def test_the_same_samples_get_the_same_report() -> None:
    samples = scale_mixture(1000, 0, d=9)
    torch.manual_seed(0)
    first = tail_report(samples)
    state = torch.get_rng_state()
    again = tail_report(samples)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(first) == str(again)
    assert str(tail_report(samples, seed=1)) != str(first)


def test_few_samples_give_a_first_look() -> None:
    report = tail_report(stable(1.2, 300, 0))
    assert report.exploratory
    assert report.reason.startswith("exploratory, since 300 samples are fewer than 512")
    assert report.sum_size == 4
    assert not tail_report(stable(1.2, 512, 0)).exploratory


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (torch.zeros(0), "0 samples are too few"),
        (torch.randn(1), "1 samples are too few"),
        (torch.randn(100, 40), "100 samples are too few to show a tail: 128 are needed"),
        (torch.zeros(512), "degenerate: 100%"),
        (torch.full((512, 8), -2.0), "degenerate"),
        (torch.cat([torch.zeros(700), torch.randn(300)]), "degenerate: 70%"),
        (torch.cat([torch.randn(512), torch.tensor([math.nan])]), "1 of 513 samples are not finite"),
        (torch.cat([torch.randn(512), torch.tensor([-math.inf])]), "1 of 513 samples are not finite"),
    ],
    ids=["none", "one", "few", "zeros", "constant", "mostly zero", "nan", "inf"],
)
def test_too_little_to_go_on_is_indeterminate_with_the_reason(samples: torch.Tensor, why: str) -> None:
    report = tail_report(samples)
    assert report.verdict == "indeterminate"
    assert why in report.reason
    numbers = (report.alpha, report.alpha_low, report.sum_alpha, report.xi, report.hill, report.p_gaussian)
    assert all(math.isnan(number) for number in numbers)
    assert why in str(report)


def test_the_words_name_what_was_found() -> None:
    words = str(tail_report(scale_mixture(8192, 0, d=50), batch_size=128))
    assert words.startswith("tail of 8192 samples: heavy-aggregates-to-gaussian\n  because single samples are heavy")
    assert "sums of 128: index" in words
    assert "largest magnitudes: they have an end" in words
    assert "a power law" in str(tail_report(stable(1.4, 4096, 0)))


def evidence(**changes: float) -> Evidence:
    heavy = {
        "index": 1.4,
        "high": 1.5,
        "p_gaussian": 1e-9,
        "sum_size": 16,
        "sum_high": 1.6,
        "p_sum_gaussian": 1e-4,
        "p_stable": 0.4,
        "p_shift": 0.5,
        "largest_shift": 0.2,
    }
    return Evidence(**{**heavy, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "stable", "is not ruled out"),
        ({"p_gaussian": 0.2}, "gaussian", "a normal law is not ruled out"),
        ({"p_gaussian": 0.02, "high": 2.0}, "gaussian", "a normal law is not ruled out (p = 0.02)"),
        ({"p_gaussian": 0.02}, "stable", "a stable law with index 1.40"),  # both speak against it
        ({"high": 2.0, "p_sum_gaussian": 0.3, "sum_high": 2.0}, "gaussian", "not normal in shape"),
        ({"high": 2.0}, "indeterminate", "a few are far larger than the rest"),
        ({"p_shift": 0.015, "p_sum_gaussian": 0.3, "sum_high": 2.0}, HEAVY, "averages away"),
        ({"p_shift": 0.01}, "indeterminate", "not normal yet"),
        ({"p_stable": 0.01}, "indeterminate", "it does not average away at that size"),
        ({"p_stable": 0.01, "sum_high": 1.97}, "indeterminate", "there are too few sums of 16 to see"),
        ({"p_sum_gaussian": 0.3, "sum_high": 2.0}, "indeterminate", "more samples are needed"),
        ({"largest_shift": 0.7}, "indeterminate", "more samples are needed"),
        ({"high": 2.0, "sum_high": 1.97}, "indeterminate", "another shape"),
    ],
)
def test_each_kind_of_evidence_has_its_word(changes: dict[str, float], verdict: str, words: str) -> None:
    found, reason = decide(evidence(**changes))
    assert found == verdict
    assert words in reason


def test_a_report_is_frozen() -> None:
    report = tail_report(torch.randn(200, generator=draw(0)))
    assert isinstance(report, TailReport)
    with pytest.raises(AttributeError):
        report.verdict = "stable"  # type: ignore[misc]
