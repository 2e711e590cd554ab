import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_jax.scoring.album import Entry, best_first, in_series, ranked
from spp_jax.scoring.series import Series, reason_of, series_of

LOOK = "00000000000000ff"
ALIKE = "0000000000000fff"  # 4 bits further
OTHER = "ffffffff00000000"


def entries(scores, **columns):
    found = []
    for place, score in enumerate(scores):
        missing = np.isnan(score).any()
        about = {name: values[place] for name, values in columns.items()}
        scores_ = np.atleast_1d(np.array(score, np.float32))
        found.append(
            Entry(place, Path(f"{place}.jpg"), f"{place}.jpg", scores_, "gone" if missing else "", **about)
        )
    return found


class TestRanks:
    @given(
        st.lists(
            st.one_of(st.just(math.nan), st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.floats(0, 1, width=32))
        )
    )
    def test_are_counts_of_better_and_of_not_better_ones(self, scores):
        known = [s for s in scores if not math.isnan(s)]
        for entry, score in zip(ranked(entries(scores)), scores, strict=True):
            if math.isnan(score):
                assert (entry.rank, entry.percentile) == (None, None)
            else:
                assert entry.rank == 1 + sum(np.float32(s) > np.float32(score) for s in known)
                not_better = sum(np.float32(s) <= np.float32(score) for s in known)
                assert entry.percentile == pytest.approx(100 * not_better / len(known))

    def test_are_by_the_output_that_counts(self):
        found = ranked(entries([[0.1, 0.9], [0.2, 0.3]]), by=1)
        assert [entry.rank for entry in found] == [1, 2]
        assert [entry.rank for entry in ranked(found, by=0)] == [2, 1]

    def test_best_first_keeps_the_order_of_equals_and_puts_the_skipped_last(self):
        found = best_first(ranked(entries([0.5, math.nan, 0.9, 0.5])))
        assert [entry.place for entry in found] == [2, 0, 3, 1]


class TestSeries:
    def test_a_burst_is_a_chain_of_one_camera(self):
        at = "2024-05-01T12:00:{:05.2f}".format
        taken = [at(0), at(30), at(1.5), None, at(3.5), at(3.5), at(32.25)]
        cameras = ["A", "A", "A", "A", "A", "B", "A"]
        found = series_of(taken, cameras, [""] * 7, 2)
        assert found == [Series([0, 2, 4], 3.5, True)]
        assert series_of(taken, cameras, [""] * 7, 2.25)[1] == Series([1, 6], 2.25, True)
        assert series_of(taken, cameras, [""] * 7, -1) == []

    def test_zones_and_fractions_are_read_on_the_cameras_own_clock(self):
        taken = ["2024-05-01T12:00:00.250+02:00", "2024-05-01T12:00:01"]
        assert series_of(taken, ["", ""], ["", ""], 1) == [Series([0, 1], 0.75, True)]

    def test_those_that_look_alike_join_bursts(self):
        taken = ["2024-05-01T12:00:00", "2024-05-01T12:00:01", None, None]
        looks = ["", LOOK, ALIKE, OTHER]
        assert series_of(taken, [""] * 4, looks, 2) == [Series([0, 1, 2], None, True)]
        assert series_of([None] * 4, [""] * 4, looks, 2) == [Series([1, 2], None, False)]

    def test_the_pick_is_the_best_and_says_why(self):
        taken = [f"2024-05-01T12:00:0{second}" for second in (0, 1, 2, 9)]
        found = in_series(entries([0.66, 0.71, math.nan, 0.2], taken=taken), 2)
        assert [entry.series for entry in found] == [1, 1, None, None]
        assert [entry.pick for entry in found] == [False, True, False, True]
        assert [entry.why for entry in found] == ["", "best of 2 taken within 1 s: 0.71 against 0.66", "", ""]

    def test_of_equals_the_larger_is_the_pick_then_the_first(self):
        looks, sizes = [LOOK] * 3, [10, 20, 20]
        found = in_series(entries([0.5] * 3, look=looks, height=sizes, width=sizes))
        assert [entry.pick for entry in found] == [False, True, False]
        assert found[1].why == "one of 3 that look alike: 0.50 as the next"
        assert all(entry.pick for entry in in_series(found, look_alikes=False))

    @given(st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 59)), max_size=12), st.integers(0, 9))
    def test_every_series_has_one_pick_and_all_others_are_alone(self, photos, seconds):
        taken = [f"2024-05-01T12:00:{second:02d}" for _, second in photos]
        found = in_series(entries([score for score, _ in photos], taken=taken), seconds)
        for number in {entry.series for entry in found} - {None}:
            members = [entry for entry in found if entry.series == number]
            picks = [entry for entry in members if entry.pick]
            assert len(members) > 1
            assert len(picks) == 1
            assert picks[0].scores[0] == max(entry.scores[0] for entry in members)
        alone = [second for (_, second), entry in zip(photos, found, strict=True) if entry.series is None]
        for second in alone:
            assert sum(abs(other - second) <= seconds for _, other in photos) == 1

    def test_what_was_found_earlier_is_forgotten(self):
        found = in_series(entries([0.1, 0.2], look=[LOOK, LOOK]))
        again = in_series([dataclasses.replace(entry, look="") for entry in found])
        assert [(entry.series, entry.pick, entry.why) for entry in again] == [(None, True, "")] * 2


@pytest.mark.parametrize(
    ("series", "best", "second", "said"),
    [
        (Series([0, 1], 0.0, True), 0.71, 0.66, "best of 2 taken within 1 s: 0.71 against 0.66"),
        (Series([0, 1, 2], None, True), 0.7, 0.6, "best of 3 taken in bursts or alike: 0.70 against 0.60"),
        (Series([0, 1], None, False), 0.7104, 0.7101, "best of 2 that look alike: 0.7104 against 0.7101"),
    ],
)
def test_a_pick_is_told_in_as_many_digits_as_it_takes(series, best, second, said):
    assert reason_of(series, best, second) == said
