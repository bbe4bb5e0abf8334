"""A run with a TensorBoardLogger leaves everything that a user is told to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from _lightning import Classifier, fit
from _tensorboard import read_events, serve
from lightning.pytorch.loggers import TensorBoardLogger
from test_monitor import EXPECTED

from lightning_cx import ComplexityMonitor, ProbeSet

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")


def test_the_event_file_and_the_server_hold_curves_pictures_histogram_and_layout(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "board", name="run", version="one")
    monitor = ComplexityMonitor(every_n_steps=1, probe=ProbeSet(size=128), strict=True)
    fit(Classifier(), [monitor], tmp_path, logger=logger, max_epochs=12)
    events = read_events(logger.log_dir)
    found = events.Tags()
    # The index is read when half of the residual is gone; the upper end is inf while the signal is not significant.
    early = EXPECTED - {"complexity/spectral_bias_index", "gradient/noise_scale_high"}
    assert set(found["scalars"]) >= early
    assert set(found["images"]) == {"complexity/residual_spectrogram", "complexity/band_decay", "gradient/spectrum"}
    assert found["histograms"] == ["gradient/example_norms"]
    steps = [event.step for event in events.Scalars("gradient/norm")]
    assert steps == list(range(60))
    assert [e.step for e in events.Scalars("loss_step")] == steps  # the same axis as the user's own values
    with serve(tmp_path / "board") as get:
        assert set(get("data/plugin/scalars/tags")["run/one"]) >= early
        layout = get("data/plugin/custom_scalars/layout")
    charts = [chart["title"] for category in layout["category"] for chart in category["chart"]]
    assert any("by band" in title for title in charts)
    assert "signal to noise of one example" in charts
