import dataclasses
import threading

import jax
import numpy as np
import pytest
from conftest import noise_records, png

from spp_jax import plan_buckets
from spp_jax.compilation import data_mesh
from spp_jax.config import Decoding
from spp_jax.data import loading
from spp_jax.data.decoding import decode
from spp_jax.data.loading import OF_ANOTHER_HOST, abstract_batch, load_batches
from spp_jax.data.records import Pairs
from spp_jax.data.schedule import Schedule, at_scale, in_order, pair_sizes

RECORDS = noise_records()
PLAN = plan_buckets(RECORDS.sizes, 3, pixels_per_step=20_000)


def test_batches_hold_the_decoded_pictures_padded_in_order_with_filler_of_weight_0():
    specs = in_order(RECORDS.sizes, PLAN)
    seen = []
    for spec, (loaded_spec, batch, failed) in zip(specs, load_batches(RECORDS, specs), strict=True):
        assert loaded_spec == spec
        assert not failed
        size = spec.bucket.batch_size
        expected = abstract_batch(spec.bucket, data_mesh(jax.devices()[:1]))
        assert batch.images.values.shape == expected.images.values.shape
        assert batch.images.values.dtype == np.uint8
        for row, index in enumerate(spec.rows):
            height, width = RECORDS.sizes[index]
            assert batch.images.sizes[row].tolist() == [height, width]
            np.testing.assert_array_equal(
                batch.images.values[row, :height, :width], decode(RECORDS.photo(index))
            )
            assert batch.scores[row] == RECORDS.scores[index]
        filler = slice(len(spec.rows), None)
        assert (np.asarray(batch.weights) == [1] * len(spec.rows) + [0] * (size - len(spec.rows))).all()
        assert not batch.images.sizes[filler].any()
        seen += spec.rows
    assert sorted(seen) == list(range(len(RECORDS)))


def test_mirrored_rows_are_flipped_left_to_right():
    schedule = Schedule(RECORDS.sizes, PLAN, seed=0, flip=True)
    specs = list(schedule.steps(0, schedule.first_step(1)))
    assert any(mirrored for spec in specs for mirrored in spec.mirrored)
    for spec, batch, _ in load_batches(RECORDS, specs):
        for row, (index, mirrored) in enumerate(zip(spec.rows, spec.mirrored, strict=True)):
            pixels = decode(RECORDS.photo(index))
            found = np.asarray(batch.images.values)[row, : pixels.shape[0], : pixels.shape[1]]
            np.testing.assert_array_equal(found, pixels[:, ::-1] if mirrored else pixels)


def test_upright_pictures_lie_turned_in_buckets_for_both_orientations():
    plan = plan_buckets(RECORDS.sizes, 3, pixels_per_step=20_000, both_orientations=True)
    schedule = Schedule(RECORDS.sizes, plan, seed=0, flip=True)
    specs = list(schedule.steps(0, schedule.first_step(1)))
    assert {spec.turned for spec in specs} == {False, True}
    mesh = data_mesh(jax.devices()[:1])
    for spec, batch, failed in load_batches(RECORDS, specs):
        assert not failed
        expected = abstract_batch(spec.bucket, mesh)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(
            lambda x: (x.shape, x.dtype), expected
        )
        assert bool(batch.images.turned) == spec.turned
        for row, (index, mirrored) in enumerate(zip(spec.rows, spec.mirrored, strict=True)):
            pixels = decode(RECORDS.photo(index))
            pixels = pixels[:, ::-1] if mirrored else pixels
            lying = pixels.transpose(1, 0, 2) if spec.turned else pixels
            assert batch.images.sizes[row].tolist() == list(lying.shape[:2])
            found = np.asarray(batch.images.values)[row, : lying.shape[0], : lying.shape[1]]
            np.testing.assert_array_equal(found, lying)


def test_a_picture_that_fails_leaves_a_row_of_weight_0_and_its_reason():
    bad = {3: b"no picture", 5: png(np.zeros((19, 200, 3), np.uint8))}
    records = dataclasses.replace(RECORDS, photo=lambda i: bad.get(i) or RECORDS.photo(i))
    specs = in_order(records.sizes, PLAN)
    reasons, pictures = {}, 0
    for spec, batch, failed in load_batches(records, specs):
        reasons |= failed
        pictures += int(np.asarray(batch.weights).sum())
        for row, index in enumerate(spec.rows):
            if index in bad:
                assert batch.weights[row] == 0
                assert batch.images.sizes[row].tolist() == [0, 0]
    assert pictures == len(records) - 2
    assert reasons[3] == "is no picture in a format that can be read"
    assert reasons[5].startswith("is 19x200 pixels (height x width), but was recorded as")


def test_a_host_knows_which_pictures_were_read_and_why_its_own_were_not():
    bad = {3: b"no picture", 5: b"", 30: b"no picture"}
    records = dataclasses.replace(RECORDS, photo=lambda i: bad.get(i, RECORDS.photo(i)))
    specs = in_order(records.sizes, PLAN)
    first, second = ([*load_batches(records, specs, devices=2, host=host, hosts=2)] for host in (0, 1))
    told = {}
    for one, two in zip(first, second, strict=True):
        weights = np.concatenate([one.batch.weights, two.batch.weights])
        rows, members = one.read(weights)
        assert dict(zip(rows.tolist(), members.tolist(), strict=True)) == {
            row: index for row, index in enumerate(one.spec.rows) if index not in bad
        }
        assert one.unread(weights) == {
            index: one.failed.get(index, OF_ANOTHER_HOST) for index in sorted(one.spec.rows) if index in bad
        }
        for loaded in (one, two):
            told |= {index: why for index, why in loaded.unread(weights).items() if why != OF_ANOTHER_HOST}
    assert told.keys() == bad.keys()


def test_decoding_runs_a_bounded_way_ahead_and_its_threads_end_with_the_consumer():
    asked = []

    def photo(index):
        asked.append(index)
        return RECORDS.photo(index)

    records = dataclasses.replace(RECORDS, photo=photo)
    plan = plan_buckets(records.sizes, 1)  # batches of one
    batches = load_batches(records, in_order(records.sizes, plan), workers=2)
    next(batches)
    batches.close()
    assert len(asked) <= 6
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_a_host_whose_share_is_filler_does_not_run_away_from_the_others():
    plan = plan_buckets(RECORDS.sizes, 1)  # batches of one, of two rows on two devices
    taken = []
    specs = (taken.append(spec) or spec for spec in in_order(RECORDS.sizes, plan))
    batches = load_batches(RECORDS, specs, devices=2, host=1, hosts=2, workers=2)
    _, batch, _ = next(batches)
    batches.close()
    assert not np.asarray(batch.weights).any()
    assert len(taken) <= 6


def test_how_far_ahead_is_bounded_in_pixels_however_many_the_workers(monkeypatch):
    monkeypatch.setattr(loading, "_AHEAD_PIXELS", 5 * 60 * 60)
    taken = []
    specs = (taken.append(spec) or spec for spec in in_order(RECORDS.sizes, plan_buckets(RECORDS.sizes, 1)))
    batches = load_batches(RECORDS, specs, workers=64)
    next(batches)
    batches.close()
    assert len(taken) <= 8


def test_the_shares_of_two_hosts_one_after_the_other_are_the_batch_of_one():
    plan = plan_buckets(RECORDS.sizes, 3, pixels_per_step=20_000, both_orientations=True)
    specs = in_order(RECORDS.sizes, plan)
    asked: list[list[int]] = []

    def share(host: int, hosts: int):
        mine: list[int] = []
        asked.append(mine)
        records = dataclasses.replace(RECORDS, photo=lambda i: (mine.append(i), RECORDS.photo(i))[1])
        return list(load_batches(records, specs, devices=4, host=host, hosts=hosts))

    whole, first, second = share(0, 1), share(0, 2), share(1, 2)
    for (spec, batch, _), (_, one, _), (_, two, _) in zip(whole, first, second, strict=True):
        together = jax.tree.map(lambda a, b: np.concatenate([a, b]) if a.ndim else a, one, two)
        jax.tree.map(np.testing.assert_array_equal, together, batch)
        assert len(batch.weights) == -(-spec.bucket.batch_size // 4) * 4
    assert not set(asked[1]) & set(asked[2])  # each reads only its own
    assert sorted(asked[1] + asked[2]) == sorted(asked[0]) == list(range(len(RECORDS)))
    with pytest.raises(ValueError, match="host 0 of 3 cannot have its share of the rows of 4 devices"):
        next(load_batches(RECORDS, specs, devices=4, host=0, hosts=3))


def test_pictures_are_given_at_the_sizes_that_the_schedule_says():
    scales = (0.5, 1.5)
    sizes = np.concatenate([at_scale(RECORDS.sizes, scale, (8, 8)) for scale in scales])
    plan = plan_buckets(sizes, 3, pixels_per_step=20_000)
    schedule = Schedule(RECORDS.sizes, plan, seed=0, flip=False, scales=scales, smallest=(8, 8))
    for spec, batch, failed in load_batches(RECORDS, schedule.steps(0, schedule.first_step(1))):
        assert not failed
        assert batch.images.sizes[: len(spec.rows)].tolist() == [list(size) for size in spec.sizes]
        for row, index in enumerate(spec.rows):
            height, width = spec.sizes[row]
            mean = np.asarray(batch.images.values)[row, :height, :width].mean()
            assert mean == pytest.approx(decode(RECORDS.photo(index)).mean(), abs=6)


def test_pictures_are_scaled_down_as_the_records_decoding_says():
    decoding = Decoding(max_pixels=600)
    records = dataclasses.replace(RECORDS, sizes=decoding.scaled(RECORDS.sizes), decoding=decoding)
    plan = plan_buckets(records.sizes, 3, pixels_per_step=20_000)
    for spec, batch, failed in load_batches(records, in_order(records.sizes, plan)):
        assert not failed
        assert (batch.images.sizes.prod(axis=1) <= 600).all()
        assert batch.images.sizes[: len(spec.rows)].tolist() == records.sizes[list(spec.rows)].tolist()


class TestLabels:
    """Whatever the records have, row by row."""

    BOXES = np.random.default_rng(0).integers(0, 99, (len(RECORDS), 2, 4))
    PAIRS = Pairs(np.array([[0, 1], [7, 3], [2, 0], [9, 8]]), np.array([1, 0.2, 0.6, 0.5], np.float32))

    @pytest.fixture
    def records(self):
        scores = np.stack([RECORDS.scores, np.where(RECORDS.good, np.nan, 0.5)], axis=1).astype(np.float32)
        return dataclasses.replace(
            RECORDS,
            scores=scores,
            good=scores >= 0.5,
            attributes=("one", "other"),
            labels={"boxes": self.BOXES},
            pairs=self.PAIRS,
        )

    def test_any_shape_and_dtype_reaches_its_rows(self, records):
        plan = plan_buckets(records.sizes, 3, pixels_per_step=20_000)
        mesh = data_mesh(jax.devices()[:1])
        for spec, batch, _ in load_batches(records, in_order(records.sizes, plan)):
            expected = abstract_batch(spec.bucket, mesh, records)
            assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(
                lambda x: (x.shape, x.dtype), expected
            )
            rows = list(spec.rows)
            np.testing.assert_array_equal(batch.labels["boxes"][: len(rows)], self.BOXES[rows])
            np.testing.assert_array_equal(batch.scores[: len(rows)], records.scores[rows])
            assert not np.asarray(batch.labels["boxes"])[len(rows) :].any()
            assert np.isnan(batch.labels["preferred"]).all()  # none of these batches is of pairs
            assert batch.labels["partner"].tolist() == list(range(len(batch.weights)))

    def test_rows_of_pairs_know_their_partner_and_its_share(self, records):
        sizes = pair_sizes(records.sizes, records.pair_rows)
        plan = plan_buckets(sizes, 3, pixels_per_step=20_000, batch_multiple=2)
        specs = in_order(records.sizes, plan, pairs=records.pair_rows)
        bad = dataclasses.replace(records, photo=lambda i: b"" if i == 3 else records.photo(i))
        seen = 0
        for spec, batch, failed in load_batches(bad, specs):
            for row, pair in [(2 * i + side, pair) for i, pair in enumerate(spec.pairs) for side in (0, 1)]:
                if row in [spec.rows.index(index) for index in failed]:
                    assert batch.weights[row] == 0
                    assert np.isnan(batch.labels["preferred"][row])
                    continue
                seen += 1
                share = self.PAIRS.shares[pair]
                assert batch.labels["partner"][row] == row ^ 1
                assert batch.labels["preferred"][row] == (1 - share if row % 2 else share)
        assert seen == 7

    def test_the_shares_of_two_hosts_are_the_batch_of_one(self, records):
        plan = plan_buckets(
            pair_sizes(records.sizes, records.pair_rows), 3, pixels_per_step=20_000, batch_multiple=2
        )
        specs = in_order(records.sizes, plan, pairs=records.pair_rows)
        shares = [list(load_batches(records, specs, devices=2, host=host, hosts=2)) for host in (0, 1)]
        for (_, whole, _), (_, one, _), (_, two, _) in zip(
            load_batches(records, specs, devices=2), *shares, strict=True
        ):
            together = jax.tree.map(lambda a, b: np.concatenate([a, b]) if a.ndim else a, one, two)
            jax.tree.map(np.testing.assert_array_equal, together, whole)
