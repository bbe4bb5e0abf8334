"""The same callbacks in a Trainer of `pytorch_lightning`, installed alone or beside `lightning`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
from _once import Once
from _tensorboard import read_events
from torch.torch_version import TorchVersion

from lightning_cx.callbacks import _flavour
from lightning_cx.instruments import quantities

SCRIPT = Path(__file__).with_name("_flavour_run.py")
OTHERS = ["lightning_fabric", "lightning_utilities"]
CASES = {
    "pytorch_lightning alone": {"pytorch_lightning", "lightning_fabric"},
    "both, pytorch_lightning imported": {"pytorch_lightning", "lightning_fabric"},
    "both imported": {"lightning", "pytorch_lightning", "lightning_fabric"},
}


@pytest.fixture
def run(once: Once):
    def of(case: str) -> tuple[dict[str, Any], Path]:
        def fill(folder: Path) -> None:
            subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=True, timeout=300)

        folder = once("flavours", fill) / case
        return json.loads((folder / "result.json").read_text()), folder

    return of


@pytest.mark.parametrize("case", CASES)
def test_a_fit_by_pytorch_lightning_is_measured_stopped_and_not_disturbed(case: str, run) -> None:
    found, _ = run(case)
    assert set(found["loaded"]) - {"lightning_cx", "lightning_utilities"} == CASES[case]
    assert 0 < found["stopped_step"] < 500
    assert found["undisturbed"]
    assert {"error", "error_step", "error_epoch", "median"} <= set(found["own"])


@pytest.mark.parametrize("case", CASES)
def test_its_tensorboard_logger_gets_curves_pictures_and_histogram(case: str, run) -> None:
    events = read_events(run(case)[1] / "run").Tags()
    assert {quantities.GRADIENT_NORM, quantities.RESIDUAL_MEDIAN, quantities.STOPPING_RISK, quantities.OVERHEAD} <= set(
        events["scalars"]
    )
    pictures = {
        quantities.RESIDUAL_SPECTROGRAM,
        quantities.BAND_DECAY,
        quantities.GRADIENT_SPECTRUM,
        quantities.STOPPING_CURVE,
    }
    assert set(events["images"]) == pictures
    assert events["histograms"] == [quantities.EXAMPLE_NORMS]


@pytest.mark.parametrize("case", CASES)
def test_one_callback_that_stands_alone_is_one_of_the_flavour_that_was_imported(case: str, run) -> None:
    assert run(case)[0]["one callback"]  # a Trainer asks whether it is a Callback of its own


def test_where_lightning_cx_was_imported_first_the_other_flavour_takes_a_list_of_callbacks_since_2_6(run) -> None:
    found, folder = run("both, lightning_cx imported first")
    if TorchVersion(lightning.__version__) < "2.6":
        assert found["refusal"] == "Expected a parent"  # Lightning asks whose Callback it is, and it is of the first
    else:
        assert found["loaded"] == ["lightning", "lightning_cx", *OTHERS, "pytorch_lightning"]
        assert found["undisturbed"]
        assert quantities.STOPPING_CURVE in read_events(folder / "run").Tags()["images"]


def test_without_lightning_the_callbacks_say_what_to_install(run) -> None:
    refusal = run("neither")[0]["refusal"]
    assert refusal == "lightning_cx needs Lightning 2.5 or later for its callbacks: pip install lightning"


@pytest.mark.parametrize(("name", "package"), [("lightning.pytorch", "lightning"), ("pytorch_lightning",) * 2])
def test_a_flavour_that_is_too_old_is_refused_by_name(name: str, package: str, monkeypatch) -> None:
    for other in _flavour.NAMES:
        monkeypatch.setitem(sys.modules, other, SimpleNamespace())
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(__name__=name, __version__="2.4.0", Trainer=object))
    with pytest.raises(ImportError, match=rf"needs {package} 2\.5 or later, found 2\.4\.0: pip install -U {package}$"):
        _flavour._chosen()


@pytest.mark.parametrize("version", ["2.5.0", "2.6.6", "2.10.0rc1", "3.0.0.dev20270101"])
def test_a_flavour_that_is_new_enough_is_taken(version: str, monkeypatch) -> None:
    flavour = SimpleNamespace(__name__="lightning.pytorch", __version__=version, Trainer=object)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", flavour)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace())
    assert _flavour._chosen() == [flavour]
