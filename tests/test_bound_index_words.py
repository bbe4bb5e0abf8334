"""The bound index is called an index wherever somebody can read it, and never a bound."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_cx.functional import bound_index
from lightning_cx.instruments import TrajectoryGeometry

ROOT = Path(__file__).parent.parent
ALLOWED = re.compile(
    r"bound[ _]index|not a bound\b|[\"'“][^\"'”]*generali[sz]ation bounds[^\"'”]*[\"'”]", re.IGNORECASE
)
TEXTS = {
    "docs/trajectory.md": (ROOT / "docs" / "trajectory.md").read_text(),
    "functional.bound_index": str(bound_index.__doc__),
    "TrajectoryGeometry": str(TrajectoryGeometry.__doc__),
    **{
        name: (ROOT / "lightning_cx" / name).read_text()
        for name in (
            "functional/trajectories/geometry.py",
            "instruments/trajectory_geometry.py",
            "loggers/compare.py",
            "__main__.py",
        )
    },
}


def beside_the_index(text: str) -> list[str]:
    """Uses of the word that are neither the name of the index, nor denied, nor the title of a paper."""
    one_line = re.sub(r"\s+", " ", text).replace("BOUND_INDEX", "bound_index")
    return re.findall(r".{0,40}\bbounds?\b.{0,40}", ALLOWED.sub("", one_line), re.IGNORECASE)


@pytest.mark.parametrize("name", TEXTS)
def test_nobody_calls_it_a_bound(name: str) -> None:
    assert TEXTS[name]
    assert beside_the_index(TEXTS[name]) == []


def test_the_test_would_notice() -> None:
    assert beside_the_index("This bound index is a bound.") == [" This  is a bound."] or beside_the_index("is a bound.")
    assert not beside_the_index('The bound index is not a bound; "Generalization bounds for SGD" says why.')
    assert re.search("not a bound", TEXTS["docs/trajectory.md"])
