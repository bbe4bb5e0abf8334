"""The example runs, and what it says comes out in a short form of it too."""

from __future__ import annotations

from itertools import pairwise

import pytest
from test_examples import _logging_as_it_was, main_of

__all__ = ["_logging_as_it_was"]  # an example quietens Lightning; the fixture undoes it


def test_the_example_runs_to_its_end_and_says_what_kramers_expects(capsys) -> None:
    found = main_of("double_well")(eps=0.07, steps=200, seed=3)
    assert found["kramers"] == pytest.approx(1580, abs=1)
    assert found["one"].escapes == 0
    assert "Kramers: an escape every 1,580 steps." in capsys.readouterr().out


@pytest.mark.slow
def test_a_parameter_leaves_one_of_two_valleys_as_often_as_kramers_says_and_never_a_single_one(capsys) -> None:
    found = main_of("double_well")(eps=0.07, steps=5000, seed=3)
    assert found["kramers"] == pytest.approx(1580, abs=1)
    assert found["two"].escapes >= 2
    assert found["kramers"] / 2.5 < found["measured"] < found["kramers"] * 2.5  # of a handful of escapes
    both_long = [b for a, b in pairwise(found["two"].episodes) if min(a.length, b.length) > 1000]
    assert both_long
    assert all(episode.distance == pytest.approx(2, abs=0.2) for episode in both_long)
    assert all(1 < episode.distance < 3 for episode in found["two"].episodes[1:])  # short ones may lean
    assert found["one"].escapes == 0
    assert len(found["one"].episodes) == 1
    assert "Kramers: an escape every 1,580 steps." in capsys.readouterr().out
