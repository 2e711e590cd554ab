import collections

import numpy as np
import pytest

from spp_jax import plan_buckets
from spp_jax.data.schedule import Schedule, at_scale, in_order, pair_sizes

SIZES = np.random.default_rng(0).integers(20, 200, (103, 2))
PLAN = plan_buckets(SIZES, 4, pixels_per_step=100_000)


@pytest.fixture
def schedule():
    return Schedule(SIZES, PLAN, seed=3, flip=True)


def test_an_epoch_sees_every_picture_exactly_once_in_its_own_bucket(schedule):
    for epoch in range(3):
        first = epoch * schedule.first_step(1)
        specs = list(schedule.steps(first, first + schedule.first_step(1)))
        assert sorted(i for spec in specs for i in spec.rows) == list(range(103))
        for spec in specs:
            assert 1 <= len(spec.rows) <= spec.bucket.batch_size
            assert {PLAN.buckets[i] for i in PLAN.assign(SIZES)[list(spec.rows)]} == {spec.bucket}


def test_a_step_is_a_pure_function_of_its_number(schedule):
    in_a_row = list(schedule.steps(0, 60))
    for step in (59, 0, 31):
        assert Schedule(SIZES, PLAN, seed=3, flip=True)[step] == in_a_row[step]


def test_order_and_mirroring_change_with_epoch_and_seed(schedule):
    n = schedule.first_step(1)
    other = Schedule(SIZES, PLAN, seed=4, flip=True)
    assert list(schedule.steps(0, n)) != list(schedule.steps(n, 2 * n))
    assert list(schedule.steps(0, n)) != list(other.steps(0, n))
    mirrored = [m for spec in schedule.steps(0, 20 * n) for m in spec.mirrored]
    assert 0.45 < np.mean(mirrored) < 0.55
    plain = Schedule(SIZES, PLAN, seed=3, flip=False)
    assert not any(m for spec in plain.steps(0, n) for m in spec.mirrored)


def test_mean_batch_is_the_normaliser_under_which_every_picture_weighs_the_same(schedule):
    """Each batch's summed loss over `mean_batch`, averaged over an epoch, is the mean over pictures."""
    losses = np.random.default_rng(1).normal(size=len(SIZES))
    steps = [
        losses[list(spec.rows)].sum() / schedule.mean_batch
        for spec in schedule.steps(0, schedule.first_step(1))
    ]
    assert np.mean(steps) == pytest.approx(losses.mean())


def test_knows_the_buckets_in_use_and_what_an_epoch_wastes_filler_rows_included(schedule):
    assert set(schedule.buckets) == set(PLAN.buckets)
    large = SIZES[PLAN.assign(SIZES) == 3]
    only = Schedule(large, PLAN, seed=0, flip=False)
    assert only.buckets == PLAN.buckets[3:]
    computed = only.first_step(1) * PLAN.buckets[3].pixels
    assert only.waste == pytest.approx(1 - large.prod(axis=1).sum() / computed)


def test_a_batch_of_a_bucket_for_both_orientations_holds_pictures_of_one():
    plan = plan_buckets(SIZES, 3, pixels_per_step=100_000, both_orientations=True)
    specs = in_order(SIZES, plan)
    assert sorted(i for spec in specs for i in spec.rows) == list(range(103))
    for spec in specs:
        shape = spec.bucket.shape[::-1] if spec.turned else spec.bucket.shape
        assert (SIZES[list(spec.rows)] <= shape).all()
        if spec.turned:  # only what must be
            assert (SIZES[list(spec.rows)] > spec.bucket.shape).any(axis=1).all()
    assert {spec.turned for spec in specs} == {False, True}


def test_in_order_counts_every_picture_once_for_an_evaluation():
    specs = in_order(SIZES, PLAN)
    counted = collections.Counter(i for spec in specs for i in spec.rows)
    assert counted == dict.fromkeys(range(103), 1)
    assert not any(m for spec in specs for m in spec.mirrored)


class TestScales:
    """A picture at several sizes, one an epoch."""

    SCALES = (0.5, 1.0, 1.41)
    SMALLEST = (16, 16)

    @pytest.fixture
    def scaled(self):
        everything = np.concatenate([at_scale(SIZES, scale, self.SMALLEST) for scale in self.SCALES])
        plan = plan_buckets(everything, 4, pixels_per_step=100_000, both_orientations=True)
        return Schedule(SIZES, plan, seed=1, flip=True, scales=self.SCALES, smallest=self.SMALLEST)

    def test_each_is_seen_once_an_epoch_and_at_every_scale_in_as_many_epochs(self, scaled):
        seen = collections.defaultdict(list)
        for epoch in range(3):
            specs = list(scaled.steps(scaled.first_step(epoch), scaled.first_step(epoch + 1)))
            assert sorted(i for spec in specs for i in spec.rows) == list(range(103))
            for spec in specs:
                for index, size in zip(spec.rows, spec.sizes, strict=True):
                    seen[index].append(size)
                    fits = size[::-1] if spec.turned else size
                    assert (np.array(fits) <= spec.bucket.shape).all()
        for index, sizes in seen.items():
            expected = [at_scale(SIZES[[index]], scale, self.SMALLEST)[0].tolist() for scale in self.SCALES]
            assert sorted(map(list, sizes)) == sorted(expected)

    def test_in_any_epoch_pictures_of_all_scales_are_mixed(self, scaled):
        specs = scaled.steps(0, scaled.first_step(1))
        ratios = {round(size[0] / SIZES[i, 0], 1) for spec in specs for i, size in zip(spec.rows, spec.sizes)}  # noqa: B905
        assert {0.5, 1.0, 1.4} <= ratios

    def test_steps_and_epochs_are_counted_alike(self, scaled):
        for epoch in range(7):
            first = scaled.first_step(epoch)
            assert scaled.epochs_done(first) == epoch
            assert epoch < scaled.epochs_done(first + 1) < epoch + 1
            assert epoch - 1 < scaled.epochs_done(first - 1) < epoch or epoch == 0
        assert (
            scaled[scaled.first_step(3)] == list(scaled.steps(0, scaled.first_step(4)))[scaled.first_step(3)]
        )

    def test_none_is_scaled_below_the_smallest_that_is_taken(self):
        sizes = np.array([[20, 100], [40, 100]])
        assert at_scale(sizes, 0.5, (16, 16)).tolist() == [[20, 100], [20, 50]]


class TestPairs:
    """Both pictures of a pair in one batch."""

    PAIRS = np.random.default_rng(1).permutation(103)[:60].reshape(30, 2)
    PAIRS = np.concatenate([PAIRS, [[PAIRS[0, 0], PAIRS[1, 1]]]])  # a picture may be in several

    @pytest.fixture(params=[False, True], ids=["upright", "either way"])
    def paired(self, request):
        plan = plan_buckets(
            pair_sizes(SIZES, self.PAIRS),
            4,
            pixels_per_step=150_000,
            batch_multiple=2,
            both_orientations=request.param,
        )
        return Schedule(SIZES, plan, seed=3, flip=True, pairs=self.PAIRS)

    def test_an_epoch_sees_every_pair_once_and_every_other_picture_once(self, paired):
        for epoch in range(2):
            specs = list(paired.steps(paired.first_step(epoch), paired.first_step(epoch + 1)))
            pairs = [number for spec in specs for number in spec.pairs]
            assert sorted(pairs) == list(range(31))
            alone = [row for spec in specs if not spec.pairs for row in spec.rows]
            assert sorted(alone) == sorted(set(range(103)) - set(self.PAIRS.ravel()))
            for spec in specs:
                assert len(spec.rows) <= spec.bucket.batch_size
                if spec.pairs:
                    assert list(spec.rows) == self.PAIRS[list(spec.pairs)].ravel().tolist()
                shape = spec.bucket.shape[::-1] if spec.turned else spec.bucket.shape
                assert (SIZES[list(spec.rows)] <= shape).all()

    def test_pairs_are_drawn_anew_each_epoch(self, paired):
        orders = [
            [n for spec in paired.steps(paired.first_step(e), paired.first_step(e + 1)) for n in spec.pairs]
            for e in range(2)
        ]
        assert orders[0] != orders[1]
        assert paired[5] == list(paired.steps(0, 9))[5]

    def test_both_of_a_pair_are_seen_at_one_scale(self):
        scales = (0.5, 1.0)
        sizes = np.concatenate([pair_sizes(at_scale(SIZES, s, (8, 8)), self.PAIRS) for s in scales])
        plan = plan_buckets(sizes, 4, pixels_per_step=150_000, batch_multiple=2)
        schedule = Schedule(SIZES, plan, seed=3, flip=True, scales=scales, smallest=(8, 8), pairs=self.PAIRS)
        seen = collections.Counter()
        for spec in schedule.steps(0, schedule.first_step(2)):
            whole = [size == tuple(SIZES[row]) for size, row in zip(spec.sizes, spec.rows, strict=True)]
            for place, pair in enumerate(spec.pairs):
                assert whole[2 * place] == whole[2 * place + 1]
                seen[pair, whole[2 * place]] += 1
        assert seen == {(pair, scale): 1 for pair in range(31) for scale in (True, False)}

    def test_waste_counts_what_is_decoded_twice(self, paired):
        specs = list(paired.steps(0, paired.first_step(1)))
        true = sum(int(SIZES[list(spec.rows)].prod(axis=1).sum()) for spec in specs)
        assert paired.waste == pytest.approx(1 - true / sum(spec.bucket.pixels for spec in specs))

    def test_without_pairs_nothing_changes(self):
        assert in_order(SIZES, PLAN, pairs=np.zeros((0, 2), int)) == in_order(SIZES, PLAN)
        assert pair_sizes(SIZES, None) is SIZES

    def test_batches_of_one_cannot_hold_pairs(self):
        plan = plan_buckets(pair_sizes(SIZES, self.PAIRS), 2)  # of one picture each
        with pytest.raises(ValueError, match="cannot hold pairs: plan with batch_multiple=2"):
            in_order(SIZES, plan, pairs=self.PAIRS)
