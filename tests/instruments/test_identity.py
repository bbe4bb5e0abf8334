"""An instrument is itself, not its class's name: what it is shown, its key, and its tags."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from lightning_cx import ComplexityMonitor
from lightning_cx.callbacks.identity import settings
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import (
    Averaging,
    BatchView,
    Dwelling,
    GradientNoise,
    GradientSpectrum,
    Instrument,
    Interference,
    Kernel,
    LocalRecovery,
    Needs,
    Neurons,
    Reading,
    SpectralBias,
    StepSize,
    TailIndex,
    TrajectoryGeometry,
    VarianceReduction,
    keyed,
    needs_of,
)

ALL: list[Any] = [
    Averaging,
    Dwelling,
    GradientNoise,
    GradientSpectrum,
    Interference,
    Kernel,
    LocalRecovery,
    Neurons,
    SpectralBias,
    StepSize,
    TailIndex,
    TrajectoryGeometry,
    VarianceReduction,
]


class Mine(Instrument):
    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        return Reading({"mine/value": 1.0})


def test_what_an_instrument_overrides_says_what_it_is_shown() -> None:
    assert Mine().shown == {"on_gradients"}
    assert Averaging().shown == {"on_parameters", "on_model"}
    assert LocalRecovery().shown == {"on_probe", "on_model"}


@pytest.mark.parametrize("make", [GradientSpectrum, Interference, SpectralBias])
def test_the_control_is_kept_so_that_two_which_differ_only_there_can_be_told_apart(make: Any) -> None:
    assert (make().control, make(control="shuffle").control) == (None, "shuffle")
    assert settings(make()) == {}
    assert settings(make(control="shuffle")) == {"control": "'shuffle'"}


@pytest.mark.parametrize("make", [GradientSpectrum, Interference, SpectralBias])
def test_two_monitors_that_differ_only_in_the_control_of_an_instrument_have_states_of_their_own(make: Any) -> None:
    assert ComplexityMonitor([make()]).state_key != ComplexityMonitor([make(control="shuffle")]).state_key


def test_a_setting_may_take_a_method_away() -> None:
    assert Kernel().shown == {"on_gradients"}
    assert Kernel(on="probe").shown == {"on_model"}
    assert Interference(on="probe").shown == {"on_probe"}
    assert TailIndex(trajectory=False).shown == {"on_gradients"}


def test_who_names_nothing_of_the_gradients_is_shown_the_gram_matrix() -> None:
    class Norms(Mine):
        needs = Needs(norms=True)

    class Rows(Mine):
        needs = Needs(projections=4)

    grams = [need.gram for need in needs_of([Mine(), Norms(), Rows()], "on_gradients")]
    assert grams == [True, False, False]
    assert needs_of([Mine()], "on_probe") == []


def test_what_is_not_overridden_says_nothing() -> None:
    assert Mine().on_probe(0, torch.nan) == Reading()  # type: ignore[arg-type]
    assert Mine().state_dict() == {}


@pytest.mark.parametrize("make", ALL)
def test_every_instrument_takes_a_name_and_tells_its_tags(make: Any) -> None:
    one, other = make(), make(name="wide")
    assert (one.key, other.key) == (make.__name__, f"{make.__name__}-wide")
    assert one.tags
    assert list(one.tags) == list(other.tags)
    assert len(set(one.tags)) == len(one.tags)
    assert list(keyed([one, other])) == [one.key, other.key]
    assert other.tag("kernel/decay") == "kernel/decay-wide"
    assert one.tag("kernel/decay") == "kernel/decay"


@pytest.mark.parametrize("make", ALL)
def test_two_that_log_under_one_tag_are_refused_with_advice(make: Any) -> None:
    name = make.__name__
    with pytest.raises(ValueError, match=rf"{name} and {name}#2 both log .*: give .* a name, as {name}\(name="):
        keyed([make(), make()])


def test_two_of_a_class_that_share_no_tag_work_without_names() -> None:
    assert list(keyed([Kernel(), Kernel(on="probe")])) == ["Kernel", "Kernel#2"]
    assert list(keyed([Mine(), Mine()])) == ["Mine", "Mine#2"]


def test_two_classes_of_one_name_have_keys_of_their_own() -> None:
    other = type("Mine", (Mine,), {})
    assert list(keyed([Mine(), other(), Mine(name="a")])) == ["Mine", "Mine#2", "Mine-a"]


@pytest.mark.parametrize("name", ["a b", "a/b", "ä", "a.b"])
def test_names_that_make_no_tag_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"letters, digits, - and _, got name={name!r}")):
        Kernel(name=name)


def test_what_is_no_instrument_is_refused() -> None:
    class Blind(Instrument):
        """Overrides nothing."""

    one = Mine()
    with pytest.raises(TypeError, match="Blind has nothing to measure: it has to override one of on_gradients, on_pr"):
        keyed([Blind()])
    with pytest.raises(TypeError, match=r"a list of Instrument objects, got \['int'\]"):
        keyed([one, 3])
    with pytest.raises(TypeError, match="got an empty list"):
        keyed([])
    with pytest.raises(ValueError, match="Mine is given twice"):
        keyed([one, one])
