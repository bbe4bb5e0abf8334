"""One thinned history for all: bounded, even, and the same after a checkpoint."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lightning_cx.instruments import Thinned


@pytest.mark.parametrize("limit", [1, 2, 3, 12, 127])
@pytest.mark.parametrize("count", [1, 2, 5, 40, 1000])
def test_entries_are_bounded_even_and_begin_with_the_first(limit: int, count: int) -> None:
    history: Thinned[int] = Thinned(limit)
    kept = [history.add(number) for number in range(count)]
    held = list(history)
    assert len(held) <= limit
    assert held[0] == 0
    assert len({b - a for a, b in pairwise(held)}) <= 1
    assert history.to_now()[-1] == count - 1
    assert kept[-1] == (count - 1 in held)
    assert len(held) > limit // 2 or count <= limit


def test_entries_at_irregular_places_are_evened_out() -> None:
    history: Thinned[int] = Thinned(16)
    for place in [*range(7, 107), 500, 503, *range(1000, 4000, 9)]:
        history.add(place, at=place)
    gaps = [b - a for a, b in pairwise(history)]
    assert len(history) <= 16
    assert next(iter(history)) == 7
    assert min(gaps) >= 9
    assert history.to_now()[-1] == 3997


def test_a_resumed_history_goes_on_as_if_nothing_had_been() -> None:
    whole: Thinned[int] = Thinned(5)
    for stop in range(1, 30):
        first: Thinned[int] = Thinned(5)
        for number in range(stop):
            first.add(number)
        second: Thinned[int] = Thinned(5)
        second.load_state_dict(first.state_dict())
        assert second.to_now() == first.to_now()
        for number in range(stop, 40):
            second.add(number)
        whole.reset()
        for number in range(40):
            whole.add(number)
        assert second.state_dict() == whole.state_dict()
