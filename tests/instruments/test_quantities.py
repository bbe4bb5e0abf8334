"""The table of curves, the charts and the README say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from _lightning import Classifier, fit

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.instruments import quantities

ROOT = Path(__file__).parents[2]
TABLES = {
    "README.md": {"default", "on request", "stopping"},
    "docs/averaging.md": {"averaging"},
    "docs/dwelling.md": {"dwelling"},
    "docs/early_stopping.md": {"stopping"},
    "docs/kernel.md": {"kernel"},
    "docs/local_recovery.md": {"local recovery"},
    "docs/step_size.md": {"step size"},
    "docs/trajectory.md": {"trajectory"},
}
TAGS = {value for name, value in vars(quantities).items() if name.isupper() and isinstance(value, str)}
PICTURES_AND_CARDS = {
    quantities.EXAMPLE_NORMS,
    quantities.GRADIENT_SPECTRUM,
    quantities.PROBE_GRADIENT_SPECTRUM,
    quantities.RESIDUAL_SPECTROGRAM,
    quantities.BAND_DECAY,
    quantities.TAIL_QUANTILES,
    quantities.TAIL_SURVIVAL,
    quantities.STOPPING_CURVE,
    quantities.RECOVERY_VERDICT,
    quantities.NEURONS_CARD,
    quantities.KERNEL_SPECTRUM,
    quantities.DWELLS,
}
OF_A_CHART = {tag for charts in quantities.CHARTS.values() for _, tags in charts.values() for tag in tags}


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_of_a_page_are_made_from_the_curves(page: str) -> None:
    text = (ROOT / page).read_text()
    assert quantities.with_tables(text) == text, "run make tables"
    assert all(f"<!-- curves: {name} -->" in text for name in TABLES[page])


def test_each_table_is_on_a_page_and_no_page_lists_curves_by_hand() -> None:
    assert {curve.table for curve in quantities.CURVES} == set().union(*TABLES.values())
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        tables = page.read_text().count("| curve | what it says |")
        assert tables == len(TABLES.get(page.relative_to(ROOT).as_posix(), ()))


def test_a_table_that_was_changed_by_hand_is_found() -> None:
    text = (ROOT / "README.md").read_text()
    changed = text.replace("| norm of the batch gradient |", "| its norm |")
    assert changed != text
    assert quantities.with_tables(changed) == text


def test_no_curve_is_told_twice_and_each_is_told_what_to_do_with() -> None:
    tags = [tag for curve in quantities.CURVES for tag in curve.tags]
    assert len(tags) == len(set(tags))
    on_the_probe = {quantities.on_probe(tag) for tag in tags}
    assert set(tags) <= TAGS
    assert {*tags, *on_the_probe, *PICTURES_AND_CARDS} >= TAGS
    assert all(curve.says and curve.advice and (curve.tags or curve.shown_as) for curve in quantities.CURVES)


def test_each_curve_has_a_chart() -> None:
    assert all(set(curve.tags) <= set(curve.drawn) <= OF_A_CHART for curve in quantities.CURVES)
    assert all(curve.chart and curve.category for curve in quantities.CURVES if curve.drawn)


def test_margin_charts_hold_a_value_and_its_two_ends() -> None:
    margins = [tags for charts in quantities.CHARTS.values() for kind, tags in charts.values() if kind == "Margin"]
    assert margins
    for value, low, high in margins:
        assert low in (f"{value}_low", f"{value}_error")
        assert high.startswith(value)


@pytest.mark.filterwarnings("ignore:lightning_cx")
def test_every_number_of_the_default_callbacks_is_documented_and_has_a_chart(tmp_path: Path) -> None:
    callbacks = [ComplexityMonitor(every_n_steps=2, probe=ProbeSet(128)), ComplexityEarlyStopping(every_n_steps=2)]
    trainer = fit(Classifier(), callbacks, tmp_path, max_epochs=1)  # type: ignore[arg-type]
    bands = {quantities.residual_band(number) for number in range(quantities.MAX_BANDS)}
    logged = {tag for tag in trainer.callback_metrics if "/" in tag} - bands
    assert len(logged) > 15
    documented = {tag for curve in quantities.CURVES for tag in curve.tags}
    assert logged <= documented
    assert logged <= OF_A_CHART
