import collections
import dataclasses

import numpy as np
import pytest
from conftest import noise_records

from spp_jax.config import Decoding
from spp_jax.data.decoding import Photo, UnreadableError, decode
from spp_jax.data.records import PROTOCOLS, SPLITS, split_records

RECORDS = noise_records(200, groups=40)


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
            moves = {"recorded": tuple(records.sizes[i]), "mirrored": mirrored, "turned": turned}
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
