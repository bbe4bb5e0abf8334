"""Short visits to known places are found, at a width of blocks that the path itself shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _wells import Array, double_well, matched, passages, relaxing, walks
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cx.functional import dwell
from lightning_cx.functional.trajectories import PathBlocks
from lightning_cx.functional.trajectories.blocks import widths
from lightning_cx.functional.trajectories.segments import TRAVEL, with_visits


@pytest.mark.parametrize(
    ("eps", "time", "chains"),
    [
        (0.08, 2000, 5),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in ((0.05, 6000, 12), (0.06, 3000, 12), (0.08, 2000, 12))
        ),
    ],
)
def test_nine_of_ten_passages_are_found_at_a_width_that_the_path_shows(eps: float, time: int, chains: int) -> None:
    hits = made_up = count = 0
    for x in double_well(eps, chains, time, seed=314).T:
        true = passages(x)
        found, too_many = matched(dwell(x), true)
        hits, made_up, count = hits + sum(found), made_up + too_many, count + len(true)
    assert count > 80
    assert hits >= 0.89 * count
    assert made_up <= 0.03 * count


def places(*stays: tuple[int, float], directions: int = 3, noise: float = 0.1, seed: int = 4) -> Array:
    """A path that is so many blocks at each of these places on a line."""
    centers = np.repeat([at for _, at in stays], [length for length, _ in stays])
    drawn = np.random.default_rng(seed).standard_normal((len(centers), directions))
    return noise * drawn + centers[:, None]


@pytest.mark.parametrize("length", [2, 3, 4])
def test_a_visit_of_few_blocks_to_a_known_place_is_two_escapes(length: int) -> None:
    report = dwell(places((60, 0), (60, 1), (40, 0), (length, 1), (40, 0)), block=1)
    assert [(e.start, e.end, e.escaped) for e in report.episodes] == [
        (0, 59, True),
        (60, 119, True),
        (120, 159, True),
        (160, 159 + length, True),
        (160 + length, 199 + length, False),
    ]
    assert np.isnan(report.episodes[3].exponent)
    assert report.present is report.episodes[-1]


def test_of_many_dwells_the_newest_are_listed() -> None:
    report = dwell(places(*[(30, k % 2) for k in range(30)]), block=1)
    lines = str(report).splitlines()
    assert lines[:2] == ["30 dwells, 29 escaped (blocks of 1 steps)", "  10 earlier"]
    assert len(lines) == 22
    assert lines[-1].startswith("  steps 870 to 899 (29 steps")


def test_an_excursion_to_a_place_that_is_not_known_is_none() -> None:
    assert dwell(places((60, 0), (60, 1), (40, 0), (6, 2), (40, 0)), block=1).escapes == 2
    assert dwell(places((60, 0), (60, 1), (40, 0), (1, 1), (40, 0)), block=1).escapes == 2
    assert dwell(places((60, 0), (2, 1), (60, 0)), block=1).escapes == 0


def test_where_a_visit_ends_the_path_it_is_the_present_dwell() -> None:
    report = dwell(places((60, 0), (60, 1), (40, 0), (5, 1)), block=1)
    assert report.escapes == 3
    assert report.present is not None
    assert (report.present.start, report.present.end) == (160, 164)


def test_a_long_way_between_two_places_is_no_jump() -> None:
    for way, escapes in ((TRAVEL - 2, 3), (TRAVEL + 4, 2)):
        wander = [(1, 5.0 + 3 * k) for k in range(way)]
        path = places((60, 0), (60, 1), (40, 0), *wander, (40, 1))
        assert dwell(path, block=1).escapes == escapes


def at(length: int, center: float, noise: Array) -> Array:
    return center + 0.1 * noise[:length]


def test_time_spent_elsewhere_is_no_dwell() -> None:
    noise = np.random.default_rng(4).standard_normal((4, 200, 3))
    wander = 5 + 0.8 * np.random.default_rng(5).standard_normal((300, 3)).cumsum(0)
    path = np.concatenate([at(60, 0, noise[0]), at(60, 1, noise[1]), at(60, 0, noise[2]), wander, at(200, 0, noise[3])])
    report = dwell(np.concatenate([path, at(60, 1, noise[1])]), block=1)
    assert [(e.start, e.end, e.escaped) for e in report.episodes if e.length > 20] == [
        (0, 59, True),
        (60, 119, True),
        (120, 179, False),
        (480, 679, True),
        (680, 739, False),
    ]
    assert all(float(e.center.abs().max()) < 1.2 for e in report.episodes)


def test_a_drift_through_a_known_place_is_no_visit() -> None:
    noise = np.random.default_rng(4).standard_normal((5, 200, 3))
    drift = 0.2 * np.arange(100)[:, None] + at(100, 0, noise[4])
    path = [
        at(60, 0, noise[0]),
        at(60, 1, noise[1]),
        at(60, 0, noise[2]),
        drift,
        at(200, 0, noise[3]),
        at(60, 1, noise[1]),
    ]
    assert dwell(np.concatenate(path), block=1).escapes == 3


def test_lone_blocks_far_apart_are_no_visit() -> None:
    path = places((60, 0), (60, 1), (40, 0), (1, 1), (5, 3), (1, 1), (40, 0))
    assert dwell(path, block=1).escapes == 2


@pytest.mark.parametrize("length", [500, 2000, pytest.param(8000, marks=pytest.mark.slow)])
def test_an_early_jump_is_found_however_long_the_path_goes_on(length: int) -> None:
    for left_at in (80, 150, 300, 400):
        noise = 0.1 * np.random.default_rng(left_at).standard_normal(length)
        assert dwell(noise + 2.0 * (np.arange(length) >= left_at)).escapes == 1


@pytest.mark.parametrize("paths", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_a_rate_that_falls_tenfold_and_comes_back_is_no_escape(paths: int) -> None:
    draw, x, path = np.random.default_rng(3), np.zeros(40), []
    for step in range(2000):
        rate = 0.3 if step % 500 < 250 else 0.03
        x = x - rate * (x + draw.standard_normal(40))
        path.append(x)
    assert sum(dwell(one).escapes for one in np.array(path).T[:paths]) == 0


def test_the_exponent_is_that_of_the_present_dwell() -> None:
    report = dwell(places((60, 0), (60, 1), (40, 0), (20, 1)), block=1)
    assert report.present is not None
    assert report.exponent.value == pytest.approx(report.present.exponent, abs=0.2)
    assert report.exponent.value < 0.5
    short = dwell(places((60, 0), (60, 1), (40, 0), (5, 1)), block=1)
    assert short.present is not None
    assert np.isnan(short.exponent.value)


def test_noise_in_many_directions_leaves_single_blocks_alone() -> None:
    """Centres of 2.4 apart under noise of size 2.4: means tell the places apart, single blocks do not."""
    path = places((100, 0), (100, 0.3), (100, 0), directions=64, noise=0.3)
    stays = [((0, 100), True), ((100, 200), True), ((200, 300), False)]
    assert with_visits(path, stays) == stays


def test_more_noise_in_the_same_place_is_no_other_place() -> None:
    path = places((60, 0), (60, 1), (60, 0))
    path[120:] += 0.25 * np.random.default_rng(0).standard_normal((60, 3))
    report = dwell(path, block=1)
    assert [(e.start, e.end, e.escaped) for e in report.episodes] == [(0, 59, True), (60, 119, True), (120, 179, False)]


@settings(max_examples=20, deadline=None)
@given(st.floats(-100, 100), st.floats(0.01, 100), st.integers(0, 2**31))
def test_place_size_and_rotation_change_no_visit(shift: float, scale: float, seed: int) -> None:
    path = places((60, 0), (60, 1), (40, 0), (4, 1), (40, 0))
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]
    stays = [((0, 60), True), ((60, 120), True), ((120, 204), False)]
    found = with_visits(path, stays)
    assert found == [
        ((0, 60), True),
        ((60, 120), True),
        ((120, 160), True),
        ((160, 164), True),
        ((164, 204), False),
    ]
    assert with_visits(shift + scale * path @ turn, stays) == found


def test_dwells_that_no_jump_parts_know_no_visits() -> None:
    path = places((60, 0), (4, 1), (60, 0), (60, 1))
    stays = [((0, 124), False), ((124, 184), False)]
    assert with_visits(path, stays) == stays
    assert with_visits(path, []) == []


# --- the width of blocks


def blocks_of(path: Array, limit: int = 16384):
    held = PathBlocks(limit=limit)
    for step, position in enumerate(path):
        held.add(step, torch.from_numpy(position))
    return held.blocks()


@pytest.mark.parametrize("time", [4.0, 16.0])
def test_blocks_are_about_as_wide_as_the_path_remembers(time: float) -> None:
    for path in relaxing(8192, time, 6, seed=9):
        assert time / 2 <= widths(blocks_of(path))[0].width <= 4 * time


def test_blocks_of_what_does_not_remember_are_the_finest_and_of_what_wanders_few() -> None:
    for path in relaxing(4096, 0.1, 4, seed=2):
        found = widths(blocks_of(path))
        assert [(each.width, len(each.means)) for each in found] == [(1, 4096), (4, 1024)]
    for path in walks(4096, 1, 4, seed=2):
        found = widths(blocks_of(path))
        assert [(each.width, len(each.means)) for each in found] == [(8, 512)]


def test_escapes_do_not_hide_the_width_of_a_place() -> None:
    """Jumps make most of the mean squared displacement; the median does not see them."""
    x = double_well(0.08, 4, 3000, seed=5, dt=0.02).T
    assert all(widths(blocks_of(path[:, None]))[0].width <= 2 for path in x)


def test_wider_blocks_find_the_jump_that_noise_hides_from_fine_ones() -> None:
    rng = np.random.default_rng(8)
    path = 0.5 * rng.standard_normal((8000, 64))
    path[3000:, 0] += 1.0  # an eighth of the size of the noise of a step
    assert dwell(path, block=1).escapes == 0
    report = dwell(path)
    assert report.escapes == 1
    assert abs(report.episodes[1].start - 3000) <= 2 * report.width


@pytest.mark.parametrize("scale", [1e-170, 1e150])
def test_the_width_does_not_depend_on_the_size(scale: float) -> None:
    path = walks(2000, 1, 1, seed=6)[0]
    assert dwell(path * scale).width == dwell(path).width == 4


def test_a_gap_in_the_path_leaves_the_rest_as_it_is() -> None:
    path = places((1000, 0), (999, 1), (1, 1))
    steps = np.r_[np.arange(1999), 10**7]
    report = dwell(path, steps=steps)
    assert (report.width, report.blocks, report.escapes) == (1, 2000, 1)


def test_coarser_blocks_are_those_of_a_path_that_was_collected_so() -> None:
    rng = np.random.default_rng(1)
    fine, coarse = PathBlocks(3, limit=None), PathBlocks(12, limit=None)
    for step in (np.cumsum(rng.integers(1, 9, 500)) - 12).tolist():  # some below 0
        position = torch.from_numpy(rng.standard_normal(2))
        fine.add(step, position)
        coarse.add(step, position)
    made, expected = fine.blocks().coarser(4), coarse.blocks()
    np.testing.assert_allclose(made.means, expected.means, atol=1e-12)
    for name in ("first", "last", "counts", "width"):
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
