import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_jax import BucketPlan, plan_buckets

side = st.integers(1, 60)
collections = st.lists(st.tuples(side, side), min_size=1, max_size=40)


@given(collections, st.integers(1, 6), st.sampled_from([1, 8]))
def test_every_image_fits_its_bucket_and_no_smaller_one_does(sizes, most, multiple):
    sizes = np.array(sizes)
    plan = plan_buckets(sizes, most, multiple=multiple)
    assert 1 <= len(plan.shapes) <= most
    shapes = np.array(plan.shapes)
    assert (shapes % multiple == 0).all()
    homes = plan.assign(sizes)
    for size, home in zip(sizes, homes, strict=True):
        fitting = [i for i, shape in enumerate(plan.shapes) if (size <= shape).all()]
        assert home == min(fitting, key=lambda i: plan.shapes[i][0] * plan.shapes[i][1])
    assert set(homes) == set(range(len(plan.shapes)))  # no bucket is compiled for nothing


@given(collections, st.randoms())
def test_the_plan_depends_on_the_collection_and_not_on_its_order(sizes, random):
    shuffled = list(sizes)
    random.shuffle(shuffled)
    assert plan_buckets(sizes, 4) == plan_buckets(shuffled, 4)


@given(st.lists(st.tuples(side, side), min_size=1, max_size=6, unique=True))
def test_as_many_buckets_as_distinct_sizes_pad_nothing(sizes):
    assert plan_buckets(sizes, 6, multiple=1).waste(sizes) == 0


def test_counts_stand_for_repeated_sizes():
    sizes, counts = [(10, 20), (30, 10), (12, 40)], [5, 1, 3]
    repeated = np.repeat(sizes, counts, axis=0)
    plan = plan_buckets(sizes, 2, counts=counts)
    assert plan == plan_buckets(repeated, 2)
    assert plan.waste(sizes, np.array(counts)) == pytest.approx(plan.waste(repeated))


def test_waste_is_the_padded_share_of_pixels():
    plan = BucketPlan(((4, 4), (8, 8)), (1, 1))
    assert plan.waste([(4, 2), (8, 8)]) == pytest.approx(8 / 80)


def test_comes_near_the_best_plan_that_brute_force_finds():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(20):
        sizes = rng.integers(1, 40, (7, 2))

        def padded(shapes, sizes=sizes):
            plan = BucketPlan(tuple(sorted(shapes, key=lambda s: s[0] * s[1])), (1,) * len(shapes))
            return (np.prod(plan.shapes, axis=1)[plan.assign(sizes)]).sum()

        sides = [sorted(set(sizes[:, axis].tolist())) for axis in (0, 1)]
        corners = list(itertools.product(*sides))
        largest = (sides[0][-1], sides[1][-1])
        best = min(padded({largest, corner}) for corner in corners)
        # Two buckets that are not nested: together they must hold everything.
        for pair in itertools.combinations(corners, 2):
            if all(any((size <= np.array(shape)).all() for shape in pair) for size in sizes):
                best = min(best, padded(pair))
        ratios.append(padded(plan_buckets(sizes, 2, multiple=1).shapes) / best)
    assert np.mean(ratios) < 1.06
    assert max(ratios) < 1.3


def test_batch_sizes_fill_the_pixels_of_a_step():
    plan = plan_buckets([(80, 80), (160, 400), (400, 160)], 3, pixels_per_step=100_000)
    areas = [h * w for h, w in plan.shapes]
    assert plan.batch_sizes == tuple(max(1, 100_000 // area) for area in areas)
    assert plan_buckets([(1000, 1000)], 1, pixels_per_step=10).batch_sizes == (1,)


def test_many_distinct_sizes_are_planned_on_a_coarser_grid_and_still_all_fit():
    sizes = np.random.default_rng(0).integers(50, 900, (20_000, 2))
    plan = plan_buckets(sizes, 8, multiple=1)
    grid = BucketPlan(tuple((h, w) for h in (474, 899) for w in (262, 474, 687, 899)), (1,) * 8)
    assert plan.waste(sizes) < grid.waste(sizes)


def test_json_keeps_the_plan():
    plan = plan_buckets([(10, 20), (30, 10)], 2, pixels_per_step=1000)
    assert BucketPlan.from_json(plan.to_json()) == plan
    assert hash(BucketPlan.from_json(plan.to_json())) == hash(plan)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"shapes": [], "batch_sizes": []}',
        '{"shapes": [[1, 2]], "batch_sizes": [1, 2]}',
        '{"shapes": [[1, 2], [3]], "batch_sizes": [1, 1]}',
        '{"shapes": [[1, 0]], "batch_sizes": [1]}',
    ],
)
def test_json_that_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match="bucket plan"):
        BucketPlan.from_json(text)


def test_an_image_larger_than_every_bucket_is_an_explained_error():
    plan = plan_buckets([(10, 20)], 1)
    with pytest.raises(ValueError, match=r"image 1 of size \[10, 25\] is larger than every bucket"):
        plan.assign([(10, 20), (10, 25)])


@pytest.mark.parametrize(
    ("sizes", "options", "said"),
    [
        ([], {}, "n >= 1"),
        ([(0, 4)], {}, "at least 1 pixel: image 0"),
        ([(3.0, 4.0)], {}, "must be integers"),
        ([(3, 4)], {"max_buckets": 0}, "max_buckets=0"),
        ([(3, 4)], {"multiple": 0}, "multiple=0"),
        ([(3, 4)], {"pixels_per_step": 0}, "pixels_per_step=0"),
        ([(3, 4)], {"counts": [0]}, "counts must be 1 integers >= 1"),
    ],
)
def test_bad_input_is_refused(sizes, options, said):
    with pytest.raises(ValueError, match=said):
        plan_buckets(sizes, **{"max_buckets": 2, **options})
