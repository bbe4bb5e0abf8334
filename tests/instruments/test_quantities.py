"""The table of curves, the charts and the README say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from _lightning import Classifier, fit

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.instruments import quantities

README = Path(__file__).parents[2] / "README.md"
TAGS = {value for name, value in vars(quantities).items() if name.isupper() and isinstance(value, str)}
OF_A_CHART = {tag for charts in quantities.CHARTS.values() for _, tags in charts.values() for tag in tags}
DOCUMENTED = [curve for curves in quantities.CURVES.values() for curve in curves]


def test_the_tables_of_the_readme_are_made_from_the_curves() -> None:
    text = README.read_text()
    assert quantities.with_tables(text) == text, "run make tables"
    assert all(f"<!-- curves: {name} -->" in text for name in quantities.CURVES)


def test_a_table_that_was_changed_by_hand_is_found() -> None:
    text = README.read_text()
    changed = text.replace("| norm of the batch gradient |", "| its norm |")
    assert changed != text
    assert quantities.with_tables(changed) == text


def test_no_curve_is_told_twice_and_each_is_told_what_to_do_with() -> None:
    tags = [tag for curve in DOCUMENTED for tag in curve.tags]
    assert len(tags) == len(set(tags))
    assert set(tags) <= TAGS
    assert all(curve.says and curve.advice and (curve.tags or curve.shown_as) for curve in DOCUMENTED)


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
    documented = {tag for curve in DOCUMENTED for tag in curve.tags}
    assert logged <= documented
    assert logged <= OF_A_CHART
