import collections
import dataclasses

import numpy as np
import pytest
from conftest import noise_records

from spp_jax.config import Decoding
from spp_jax.data.decoding import Photo, UnreadableError, decode
from spp_jax.data.records import PROTOCOLS, SPLITS, Pairs, join_records, split_records

RECORDS = noise_records(200, groups=40)
EARLIER = "bb6c38904dca4038"  # digest of noise_records(5), written when a score was all that a picture had


@pytest.mark.parametrize("protocol", ["folds", "random"])
def test_parts_are_cut_by_group_and_hold_every_picture_once(protocol):
    for number in range(PROTOCOLS[protocol]):
        parts = [split_records(RECORDS, split, protocol, number) for split in SPLITS]
        assert sorted(name for part in parts for name in part.ids) == sorted(RECORDS.ids)
        groups = [set(part.groups) for part in parts]
        assert sum(map(len, groups)) == len(set().union(*groups))


def test_the_five_folds_test_each_group_once():
    tested = collections.Counter()
    for number in range(5):
        tested.update(set(split_records(RECORDS, "test", "folds", number).groups))
    assert tested == dict.fromkeys(set(RECORDS.groups), 1)


def test_the_ten_random_splits_are_80_10_10_and_differ():
    tests = set()
    for number in range(10):
        parts = [split_records(RECORDS, split, "random", number) for split in SPLITS]
        assert [len(set(part.groups)) for part in parts] == [32, 4, 4]
        tests.add(parts[2].ids)
    assert len(tests) == 10


def test_a_split_depends_on_the_names_of_groups_alone():
    order = np.random.default_rng(0).permutation(len(RECORDS))
    for protocol in ("folds", "random"):
        one, other = (split_records(r, "test", protocol, 3) for r in (RECORDS, RECORDS.take(order)))
        assert set(one.ids) == set(other.ids)


def test_the_official_split_is_the_sources_and_lacking_validation_takes_a_tenth_of_training():
    parts = tuple("test" if i % 4 == 0 else "train" for i in range(200))
    records = dataclasses.replace(RECORDS, splits=parts)
    train, validation, test = (split_records(records, split, "official", 0) for split in SPLITS)
    assert test.ids == tuple(np.array(RECORDS.ids)[::4])
    assert len(set(validation.groups)) == len(set(np.array(RECORDS.groups)[np.array(parts) == "train"])) // 10
    assert not set(train.groups) & set(validation.groups)
    assert sorted(train.ids + validation.ids + test.ids) == sorted(RECORDS.ids)
    named = dataclasses.replace(RECORDS, splits=tuple(SPLITS[i % 3] for i in range(200)))
    assert split_records(named, "validation", "official", 0).ids == RECORDS.ids[1::3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tests", "folds", 0), "split 'tests' is unknown; known are train, validation, test"),
        (("test", "fold", 0), "protocol 'fold' is unknown; known are folds, random, official"),
        (("test", "folds", 5), "fold 5 is unknown: folds numbers them 0 to 4"),
        (("test", "random", -1), "fold -1 is unknown: random numbers them 0 to 9"),
        (("test", "official", 0), "no official split of this data set, or its file is missing: --protocol"),
    ],
)
def test_what_is_unknown_is_told_the_known(arguments, said):
    with pytest.raises(ValueError, match=said):
        split_records(RECORDS, *arguments)


def test_too_few_groups_to_split_is_an_explained_error():
    with pytest.raises(ValueError, match="leaves no picture for validation: 1 groups are too few"):
        split_records(noise_records(8, groups=1), "validation", "random", 0)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(),
        Decoding(max_pixels=400),
        Decoding(input="crop", input_side=16),
        Decoding(input="warp", input_side=64, refuse_pixels=3600),
    ],
)
def test_pictures_decoded_once_are_those_decoded_each_time(decoding):
    loose = noise_records(3)
    asked = []

    def photo(i: int):
        asked.append(i)
        return loose.photo(i)

    records = dataclasses.replace(loose, photo=photo, decoding=decoding, sizes=decoding.scaled(loose.sizes))
    kept = records.decoded_once()
    for mirrored, turned in ((False, False), (True, False), (False, True), (True, True)):
        for i in range(3):
            moves = {"recorded": tuple(records.sizes[i].tolist()), "mirrored": mirrored, "turned": turned}
            once = decode(kept.photo(i), kept.decoding, **moves)
            np.testing.assert_array_equal(once, decode(loose.photo(i), decoding, **moves))
    assert asked == [0, 1, 2]
    assert kept.nbytes == sum(np.asarray(kept.photo(i)).nbytes for i in range(3))
    assert kept.digest() == records.digest()


def test_a_picture_that_cannot_be_read_is_not_kept():
    files: list[Photo] = [b"no picture"]
    records = dataclasses.replace(noise_records(1), photo=lambda i: files[i])
    kept = records.decoded_once()
    with pytest.raises(UnreadableError, match="no picture in a format"):
        kept.photo(0)
    files[0] = np.zeros((*records.sizes[0], 3), np.uint8)  # it has come back
    assert np.asarray(kept.photo(0)).shape == (*records.sizes[0], 3)


class TestLabels:
    """What people said, of any shape."""

    COLOUR = np.array([0.1, np.nan, 0.7, 0.9], np.float32)
    VOTES = np.array([[1, 0], [0, 1], [np.nan, np.nan], [0.5, 0.5]], np.float32)
    PAIRS = Pairs(np.array([[0, 3], [1, 2], [2, 3]]), np.array([1, 0.4, 0.5], np.float32))

    @pytest.fixture
    def records(self):
        scores = np.array([0.2, 0.4, np.nan, np.nan], np.float32)
        return dataclasses.replace(
            noise_records(4),
            scores=scores,
            good=np.array([True, False, False, False]),
            labels={"colour": self.COLOUR, "votes": self.VOTES},
            marks=(0.0, 1.0),
            pairs=self.PAIRS,
            categories=("sea", "sea", "hill", "hill"),
            attributes=("quality",),
        )

    def test_a_taken_pair_keeps_both_or_goes(self, records):
        taken = records.take([3, 2, 1])
        assert taken.pairs is not None
        assert taken.pairs.rows.tolist() == [[2, 1], [1, 0]]
        np.testing.assert_array_equal(taken.pairs.shares, self.PAIRS.shares[1:])
        np.testing.assert_array_equal(taken.labels["colour"], self.COLOUR[[3, 2, 1]])
        assert taken.categories == ("hill", "hill", "sea")

    def test_attributes_are_columns_in_the_order_asked_for(self, records):
        both = records.judged_by(["colour", "score"])
        assert both.attributes == ("colour", "score")
        np.testing.assert_array_equal(both.scores, np.stack([self.COLOUR, records.scores], axis=1))
        assert both.good[:, 0].tolist() == [False, False, True, True]  # from a half on
        assert both.good[:, 1].tolist() == [True, False, False, False]  # the source's
        np.testing.assert_array_equal(both.judged_by(["score"]).scores, records.scores)
        assert records.judged_by([]) is records
        one = records.judged_by(["colour"])
        np.testing.assert_array_equal(one.scores, self.COLOUR)
        assert records.judged_by(["quality"]).good.tolist() == records.good.tolist()

    @pytest.mark.parametrize("names", [["nosuch"], ["votes"], ["colour", "colour"]])
    def test_a_label_that_cannot_be_judged_is_told_the_others(self, records, names):
        with pytest.raises(ValueError, match="is unknown or named twice; there are colour, quality, score"):
            records.judged_by(names)

    @pytest.mark.parametrize(
        ("needs", "kept"), [(("score",), [0, 1]), (("votes",), [0, 1, 3]), (("pairs", "score"), [0, 1, 2, 3])]
    )
    def test_a_loss_gets_the_labels_it_needs_and_pictures_that_have_them(self, records, needs, kept):
        found = records.labelled(needs)
        assert found.ids == tuple(records.ids[i] for i in kept)
        assert set(found.labels) == set(needs) & {"votes"}
        assert found.marks == ((0.0, 1.0) if "votes" in needs else ())
        assert (found.pairs is None) == ("pairs" not in needs)

    def test_a_label_that_is_not_there_is_named(self, records):
        with pytest.raises(ValueError, match="needs the label 'boxes'; this data set has colour, votes"):
            records.labelled(("boxes",))
        with pytest.raises(ValueError, match="needs pairs of pictures, which this data set has not"):
            noise_records(3).labelled(("pairs",))

    @pytest.mark.parametrize(
        "change",
        [
            {"marks": (0.0, 0.9)},
            {"labels": {"colour": COLOUR, "votes": np.roll(VOTES, 1, axis=0)}},
            {"labels": {"colour": COLOUR[::-1], "votes": VOTES}},
            {"labels": {"hue": COLOUR, "votes": VOTES}},
            {"labels": {"votes": VOTES}},
            {"pairs": Pairs(PAIRS.rows[:, ::-1], PAIRS.shares)},
            {"pairs": Pairs(PAIRS.rows, 1 - PAIRS.shares)},
            {"pairs": None},
        ],
    )
    def test_the_digest_covers_every_label(self, records, change):
        assert dataclasses.replace(records).digest() == records.digest()
        assert dataclasses.replace(records, **change).digest() != records.digest()

    def test_the_digest_of_several_attributes_covers_their_names_and_order(self, records):
        orders = (["colour", "score"], ["score", "colour"], ["colour"], ["score"])
        digests = {records.judged_by(names).labelled(("score",)).digest() for names in orders}
        assert len(digests) == len(orders)

    def test_the_digest_of_plain_scores_is_that_of_earlier_versions(self):
        """By which a run that was begun earlier can be gone on with."""
        assert noise_records(5).digest() == EARLIER

    def test_joined_collections_lack_each_others_labels(self, records):
        other = dataclasses.replace(
            noise_records(3, seed=1), attributes=("beauty",), labels={"colour": np.ones(3, np.float32)}
        )
        records = dataclasses.replace(records, labels={"colour": self.COLOUR}, marks=())
        both = join_records({"a": records, "b": other})
        assert both.attributes == ("quality", "beauty")
        expected = np.full((7, 2), np.nan, np.float32)
        expected[:4, 0], expected[4:, 1] = records.scores, other.scores
        np.testing.assert_array_equal(both.scores, expected)
        assert both.good[:4, 0].tolist() == records.good.tolist()
        assert not both.good[:4, 1].any()
        np.testing.assert_array_equal(both.labels["colour"], [*self.COLOUR, 1, 1, 1])
        assert both.ids[3:5] == ("a/noise-003", "b/noise-000")
        assert both.groups[4] == "b/group-0"
        assert both.categories == ("a/sea", "a/sea", "a/hill", "a/hill", "b", "b", "b")
        assert both.pairs is not None
        assert both.pairs.rows.tolist() == self.PAIRS.rows.tolist()
        for i, source in ((3, records.photo(3)), (4, other.photo(0)), (6, other.photo(2))):
            assert both.photo(i) == source
        alone = both.judged_by(["beauty"]).labelled(("score",))
        assert len(alone) == 3
        swapped = join_records({"b": other, "a": records})
        assert swapped.pairs is not None
        assert swapped.pairs.rows.tolist() == (self.PAIRS.rows + 3).tolist()

    def test_collections_that_cannot_be_joined_are_refused(self, records):
        with pytest.raises(ValueError, match="one decoding and the same marks of votes"):
            join_records({"a": records, "b": noise_records(3)})
