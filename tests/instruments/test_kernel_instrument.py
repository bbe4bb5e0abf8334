"""The kernel instrument says of batch and probe what the functional room says, or why it cannot."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cx.functional import (
    block_shares,
    chance_alignment,
    cumulative_power,
    eigenvalue_decay,
    kernel_dimension,
    kernel_target_alignment,
)
from lightning_cx.functional.kernels import pool_block_shares
from lightning_cx.gradients import GradientSample, LayerGradients, UnsupportedGradientError
from lightning_cx.instruments import BatchView, Kernel, Reading, needs_of, quantities
from lightning_cx.instruments.kernel import SPECTRUM, TARGET
from lightning_cx.probe.derivatives import OutputJacobian

EVERY = (*SPECTRUM, *TARGET)
MEANS = {"stem.weight": 0.1, "blocks.0.a.weight": 0.4, "blocks.1.a.weight": 0.2, "blocks.2.a.weight": 0.0}
BLOCKS = ["blocks.0", "blocks.1", "blocks.2", "rest"]


def rows_of(n: int = 64, seed: int = 0, means: dict[str, float] = MEANS) -> dict[str, Tensor]:
    draw = np.random.default_rng(seed)
    size = np.arange(1, 41) ** -0.6
    return {name: torch.from_numpy((draw.standard_normal((n, 40)) + mean) * size) for name, mean in means.items()}


def sample_of(rows: dict[str, Tensor]) -> GradientSample:
    layers = {name: LayerGradients("AddmmBackward0", own @ own.T) for name, own in rows.items()}
    gram = torch.stack([own @ own.T for own in rows.values()]).sum(0)
    return GradientSample(len(gram), gram=gram, squared_norms=gram.diagonal(), layers=layers)


def one_hot(n: int = 64, seed: int = 1) -> Tensor:
    return torch.eye(3).double()[torch.from_numpy(np.random.default_rng(seed).integers(0, 3, n))]


def seen(sample: GradientSample, targets: Tensor | None = None, step: int = 0) -> tuple[int, GradientSample, BatchView]:
    return step, sample, BatchView(targets=targets)


def expected_of(gram: Tensor, targets: Tensor) -> dict[str, float]:
    decay, size, power = eigenvalue_decay(gram), kernel_dimension(gram), cumulative_power(gram, targets)
    values = (decay.exponent, decay.spread, size.participation_ratio, size.participation_error)
    spectrum = (*values, size.effective_rank, size.effective_error)
    alignment = (kernel_target_alignment(gram, targets), chance_alignment(gram, targets).high)
    return dict(zip(EVERY, map(float, (*spectrum, *alignment, power.area, power.chance_high)), strict=True))


def test_a_batch_shows_what_its_gram_matrix_says() -> None:
    sample, targets = sample_of(rows_of()), one_hot()
    reading = Kernel(blocks="off").on_gradients(*seen(sample, targets))
    assert reading.scalars == expected_of(sample.gram, targets)
    assert all(math.isfinite(value) for value in reading.scalars.values())
    assert not reading.refusals
    spectrum = reading.histograms[quantities.KERNEL_SPECTRUM]
    eigenvalues = torch.linalg.eigvalsh(
        sample.gram - sample.gram.mean(0) - sample.gram.mean(1)[:, None] + sample.gram.mean()
    )
    torch.testing.assert_close(spectrum, (eigenvalues.flip(0)[: len(spectrum)] / eigenvalues[-1]).log10())


def test_the_descent_is_shared_out_by_block_with_its_lower_end_and_a_card() -> None:
    rows = rows_of()
    reading = Kernel().on_gradients(*seen(sample_of(rows), one_hot()))
    grams = {f"blocks.{i}": own @ own.T for i, own in enumerate(rows[f"blocks.{i}.a.weight"] for i in range(3))}
    expected = block_shares(grams | {"rest": rows["stem.weight"] @ rows["stem.weight"].T})
    shares = [reading.scalars[f"{quantities.KERNEL_BLOCK_SHARE}/{block}"] for block in BLOCKS]
    assert shares == pytest.approx(expected.share.tolist())
    assert sum(shares) == pytest.approx(1)
    lows = [reading.scalars[f"{quantities.KERNEL_BLOCK_SHARE_LOW}/{block}"] for block in BLOCKS]
    assert lows == pytest.approx(expected.low.tolist())
    assert lows[0] > 0.4
    assert lows[2] == 0.0  # its mean is 0: all noise
    card = reading.texts[quantities.KERNEL_BLOCK_SHARE]
    assert f"| blocks.0 | {shares[0]:.1%} | {lows[0]:.1%} to {float(expected.high[0]):.1%} |" in card


def test_shares_are_pooled_over_sixteen_batches_and_survive_a_checkpoint() -> None:
    whole, first, second = Kernel(), Kernel(), Kernel()
    for step in range(20):
        expected = whole.on_gradients(*seen(sample_of(rows_of(seed=step)), one_hot()))
        if step < 10:
            first.on_gradients(*seen(sample_of(rows_of(seed=step)), one_hot()))
    second.load_state_dict(first.state_dict())
    for step in range(10, 20):
        resumed = second.on_gradients(*seen(sample_of(rows_of(seed=step)), one_hot()))
    assert resumed.scalars == pytest.approx(expected.scalars)
    pooled = pool_block_shares(
        [
            block_shares({f"blocks.{i}": (r := rows_of(seed=s)[f"blocks.{i}.a.weight"]) @ r.T for i in range(3)})
            for s in range(4, 20)
        ]
    )
    ratio = (
        expected.scalars[f"{quantities.KERNEL_BLOCK_SHARE}/blocks.1"]
        / expected.scalars[f"{quantities.KERNEL_BLOCK_SHARE}/blocks.0"]
    )
    assert ratio == pytest.approx(float(pooled.signal[1] / pooled.signal[0]))
    whole.reset()
    alone = whole.on_gradients(*seen(sample_of(rows_of(seed=3)), one_hot()))
    assert alone.scalars == Kernel().on_gradients(*seen(sample_of(rows_of(seed=3)), one_hot())).scalars


def test_a_block_that_is_frozen_starts_the_pool_anew() -> None:
    instrument = Kernel()
    for step in range(3):
        instrument.on_gradients(*seen(sample_of(rows_of(seed=step)), one_hot()))
    fewer = {name: rows for name, rows in rows_of(seed=9).items() if "blocks.2" not in name}
    expected = Kernel().on_gradients(*seen(sample_of(fewer), one_hot()))
    assert instrument.on_gradients(*seen(sample_of(fewer), one_hot())).scalars == expected.scalars


def test_what_is_asked_of_the_tap_is_what_is_used() -> None:
    assert (Kernel().needs.per_layer, Kernel(blocks="off").needs.per_layer) == (True, False)
    (batch,), probe = needs_of([Kernel()], "on_gradients"), Kernel("probe", every_n_steps=50)
    assert batch.gram
    assert batch.targets
    assert not needs_of([Kernel()], "on_model")
    assert not needs_of([probe], "on_gradients")
    assert probe.needs.passes > 0
    assert probe.needs.every_n_steps == 50


# The probe ------------------------------------------------------------------------------------------------


class View:
    """Stands in for a ProbePasses: shows a Jacobian and gradients that were made by hand."""

    def __init__(self, jacobian: Tensor, residuals: Tensor, rows: dict[str, Tensor] | Exception) -> None:
        self.rows, self.asked = rows, []
        n, outputs = residuals.shape
        flat = jacobian.reshape(n * outputs, -1)
        hessian = torch.eye(outputs).double().expand(n, outputs, outputs)
        self.found = OutputJacobian(flat @ flat.T, hessian, residuals, residuals, flat.shape[1])

    def jacobian(self, examples: int) -> OutputJacobian:
        self.asked.append(examples)
        return self.found

    def gradients(self, examples: int, per_layer: bool) -> GradientSample:
        assert per_layer
        if isinstance(self.rows, Exception):
            raise self.rows
        return sample_of(self.rows)


def shown(view: Any) -> tuple[int, Any]:
    return 0, view


def test_the_probe_shows_the_tangent_kernel_summed_over_outputs_beside_the_residuals() -> None:
    draw = np.random.default_rng(0)
    jacobian = torch.from_numpy(draw.standard_normal((60, 3, 80)) * np.arange(1, 81) ** -0.6)
    residuals = torch.from_numpy(draw.standard_normal((60, 3)))
    view = View(jacobian, residuals, rows_of(60))
    reading = Kernel("probe", examples=60).on_model(*shown(view))
    kernel = torch.stack([jacobian[:, c] @ jacobian[:, c].T for c in range(3)]).sum(0)
    for tag, value in expected_of(kernel, residuals).items():
        assert reading.scalars[quantities.on_probe(tag)] == pytest.approx(value, abs=1e-9)
    assert view.asked == [60]
    expected = Kernel().on_gradients(*seen(sample_of(rows_of(60)), residuals))
    for block in BLOCKS:
        tag = f"{quantities.KERNEL_BLOCK_SHARE}/{block}"
        assert reading.scalars[quantities.on_probe(tag)] == expected.scalars[tag]
    assert all(tag.startswith("kernel/probe_") for tag in [*reading.scalars, *reading.texts, *reading.histograms])
    spectrum = reading.histograms[quantities.on_probe(quantities.KERNEL_SPECTRUM)]
    assert len(spectrum) == 80  # of all 180 rows, which have 80 parameters


def test_on_the_probe_the_same_examples_are_not_pooled() -> None:
    jacobian, residuals = torch.randn(40, 1, 50).double(), torch.randn(40, 1).double()
    instrument = Kernel("probe")
    for seed in range(3):
        reading = instrument.on_model(*shown(View(jacobian, residuals, rows_of(40, seed))))
    alone = Kernel("probe").on_model(*shown(View(jacobian, residuals, rows_of(40, 2))))
    assert reading.scalars == pytest.approx(alone.scalars, nan_ok=True)


@pytest.mark.parametrize(
    "error", [UnsupportedGradientError("FlexBackward0 of body"), ValueError("5000 rows are too many")]
)
def test_a_model_that_cannot_be_read_is_refused_with_its_reason(error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    reading = Kernel("probe").on_model(*shown(SimpleNamespace(jacobian=fail, gradients=fail)))
    assert set(reading.scalars) == {quantities.on_probe(tag) for tag in (*EVERY, quantities.KERNEL_BLOCK_SHARE)}
    assert all(math.isnan(value) for value in reading.scalars.values())
    assert reading.refusals.keys() == reading.scalars.keys()
    assert all(str(error) in why for why in reading.refusals.values())


# What cannot be measured ----------------------------------------------------------------------------------


def refusals_match(reading: Reading) -> None:
    """Every nan has a reason, and nothing else has one."""
    assert {tag for tag, value in reading.scalars.items() if math.isnan(value)} == set(reading.refusals)


def gram_sample(gram: Tensor) -> GradientSample:
    return GradientSample(len(gram), gram=gram, squared_norms=gram.diagonal())


@pytest.mark.parametrize(
    ("sample", "targets", "tags_refused", "message"),
    [
        (sample_of(rows_of(12)), one_hot(12), EVERY, "12 examples are too few to read a kernel: 16 are needed"),
        (gram_sample(torch.full((32, 32), torch.nan).double()), one_hot(32), EVERY, "not finite"),
        (gram_sample(torch.ones(64, 64).double()), one_hot(), TARGET, "gradients do not differ between examples"),
        (gram_sample(torch.ones(64, 64).double()), one_hot(), SPECTRUM[2:], "do not differ between examples"),
        (sample_of(rows_of(40)), one_hot(40), SPECTRUM[:2], "56 examples and 7 eigenvalues above rounding are needed"),
        (sample_of(rows_of()), None, TARGET, "no targets were found in this batch"),
        (sample_of(rows_of()), torch.ones(64, 1).double(), TARGET, "targets of this batch are all alike or not finite"),
        (sample_of(rows_of()), one_hot(50), TARGET, "there are 50 targets of this batch for 64 gradients"),
    ],
)
def test_what_cannot_be_measured_is_nan_with_the_reason(sample, targets, tags_refused, message) -> None:
    reading = Kernel(blocks="off").on_gradients(*seen(sample, targets))
    refusals_match(reading)
    for tag in tags_refused:
        assert math.isnan(reading.scalars[tag])
        assert message in reading.refusals[tag]


def test_a_model_without_blocks_is_refused_by_name_and_the_kernel_still_read() -> None:
    rows = rows_of(means={"net.0.weight": 0.3, "net.2.weight": 0.2})
    reading = Kernel().on_gradients(*seen(sample_of(rows), one_hot()))
    refusals_match(reading)
    assert reading.refusals[quantities.KERNEL_BLOCK_SHARE].startswith("no residual blocks")
    assert math.isfinite(reading.scalars[quantities.KERNEL_DECAY])
    by_layer = Kernel(blocks=2).on_gradients(*seen(sample_of(rows), one_hot()))
    assert math.isfinite(by_layer.scalars[f"{quantities.KERNEL_BLOCK_SHARE}/net.2"])


def test_noise_is_not_shared_out() -> None:
    rows = rows_of(means=dict.fromkeys(MEANS, 0.0))
    reading = Kernel().on_gradients(*seen(sample_of(rows), one_hot()))
    refusals_match(reading)
    assert "is not distinguishable from noise" in reading.refusals[f"{quantities.KERNEL_BLOCK_SHARE}/blocks.0"]
    assert reading.texts[quantities.KERNEL_BLOCK_SHARE].startswith("**unknown**")


def test_no_number_of_an_earlier_reading_stands_where_the_shares_are_unknown() -> None:
    noise, rows = dict.fromkeys(MEANS, 0.0), rows_of()
    known = Kernel().on_gradients(*seen(sample_of(rows), one_hot())).scalars
    shares = {tag for tag in known if "block_share" in tag}
    assert len(shares) == 2 * len(BLOCKS)
    for unknown in (rows_of(means=noise), {name: own * math.nan for name, own in rows.items()}):
        reading = Kernel().on_gradients(*seen(sample_of(unknown), one_hot()))
        assert {tag for tag in reading.refusals if "block_share" in tag} == shares
        assert all(math.isnan(reading.scalars[tag]) for tag in shares)


def test_gradients_that_are_not_finite_do_not_enter_the_pool() -> None:
    instrument, good = Kernel(), sample_of(rows_of())
    before = instrument.on_gradients(*seen(good, one_hot())).scalars
    bad = instrument.on_gradients(*seen(sample_of({k: v * math.nan for k, v in rows_of(seed=1).items()}), one_hot()))
    refusals_match(bad)
    assert all("not finite" in bad.refusals[f"{quantities.KERNEL_BLOCK_SHARE}/{block}"] for block in BLOCKS)
    after = instrument.on_gradients(*seen(good, one_hot())).scalars
    share = f"{quantities.KERNEL_BLOCK_SHARE}/blocks.0"
    assert after[share] == pytest.approx(before[share])


def test_without_gradients_or_a_view_nothing_is_said() -> None:
    assert not Kernel().on_gradients(*seen(GradientSample(8))).scalars
    assert not Kernel("probe").on_gradients(*seen(sample_of(rows_of()), one_hot())).scalars


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "validation"}, '"batch" or "probe", got \'validation\''),
        ({"blocks": "all"}, "got 'all'"),
        ({"examples": 4}, "16 examples are needed to read a kernel, got examples=4"),
        ({"every_n_steps": 0}, "every_n_steps is a period of 1 or more steps, got 0"),
    ],
)
def test_settings_that_are_not_known_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Kernel(**options)
