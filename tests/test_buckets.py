import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spp_jax import Bucket, BucketPlan, plan_buckets

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
    plan = BucketPlan((Bucket((4, 4), 1), Bucket((8, 8), 1)))
    assert plan.waste([(4, 2), (8, 8)]) == pytest.approx(8 / 80)


def brute_force(sizes, most):
    """The least padded pixels of any plan: all sets of boxes whose sides are sides of images."""
    corners = np.array(list(itertools.product(*(sorted(set(axis)) for axis in sizes.T))))
    paid = np.where((sizes[None] <= corners[:, None]).all(-1), corners.prod(1)[:, None], np.inf)
    plans = itertools.combinations(range(len(corners)), min(most, len(corners)))
    return min(paid[list(plan)].min(0).sum() for plan in plans)


@pytest.mark.parametrize(("most", "optimal", "worst"), [(1, 40, 1.0), (2, 40, 1.0), (3, 35, 1.08)])
def test_is_the_best_plan_that_brute_force_finds_or_near(most, optimal, worst):
    """Of 40 collections of 7 random sizes, in how many it is optimal, and how far it is off at most."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(40):
        sizes = rng.integers(1, 40, (7, 2))
        plan = plan_buckets(sizes, most, multiple=1)
        found = np.prod(plan.shapes, axis=1)[plan.assign(sizes)].sum()
        ratios.append(found / brute_force(sizes, most))
    assert min(ratios) >= 1
    assert np.sum(np.array(ratios) == 1) >= optimal
    assert max(ratios) <= worst


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 4))
def test_one_axis_is_planned_within_a_twentieth_of_the_best(lengths, most):
    sizes = np.array(lengths)[:, None]
    plan = plan_buckets(sizes, most, multiple=1)
    found = np.array(plan.shapes)[plan.assign(sizes)].sum()
    assert found <= 1.05 * brute_force(sizes, most)


@given(collections, st.integers(2, 4))
def test_no_bucket_can_be_moved_anywhere_for_less(sizes, most):
    sizes = np.array(sizes)
    plan = plan_buckets(sizes, most, multiple=1)
    padded = np.prod(plan.shapes, axis=1)[plan.assign(sizes)].sum()
    corners = np.array(list(itertools.product(*(sorted(set(axis)) for axis in sizes.T))))
    for moved in range(len(plan.shapes)):
        others = np.array([shape for i, shape in enumerate(plan.shapes) if i != moved]).reshape(-1, 2)
        kept = np.where((sizes <= others[:, None]).all(-1), others.prod(1)[:, None], np.inf)
        there = np.where((sizes <= corners[:, None]).all(-1), corners.prod(1)[:, None], np.inf)
        assert np.minimum(there, kept.min(0, initial=np.inf)).sum(1).min() >= padded


def test_a_compilation_is_bought_only_where_it_saves_its_price():
    sizes = [(10, 10), (10, 12), (40, 40)]  # with 2 buckets 5 * 20 pixels more than with 3; with 1 ...
    counts = [5, 5, 1]

    def bought(price):
        plan = plan_buckets(sizes, 3, counts=counts, multiple=1, compilation_price=price)
        return len(plan.shapes)

    alone = 10 * 1600 - 10 * 120  # ... each of the ten small ones takes 1,600 pixels instead of 120
    assert [bought(price) for price in (0, 99, 101, alone - 1, alone + 1)] == [3, 3, 2, 2, 1]


def test_very_many_buckets_or_a_price_that_ends_the_search_take_seconds():
    sizes = np.random.default_rng(0).integers(50, 900, (1000, 2))
    assert plan_buckets(sizes, 40).waste(sizes) < plan_buckets(sizes, 8).waste(sizes)
    chosen = plan_buckets(sizes, 500, compilation_price=0.01 * 1000 * 500**2)
    assert 5 < len(chosen.shapes) < 30


def test_three_axes():
    sizes = np.random.default_rng(0).integers(1, 33, (500, 3))
    plan = plan_buckets(sizes, 8)
    assert len(plan.shapes) == 8
    halves = sorted(itertools.product((16, 32), repeat=3), key=lambda shape: (np.prod(shape), shape))
    assert plan.waste(sizes) < BucketPlan(tuple(Bucket(shape, 1) for shape in halves)).waste(sizes)


CALTECH = Path(__file__).parents[2] / "shared" / "photos" / "sizes" / "caltech101.csv"


@pytest.mark.skipif(not CALTECH.is_file(), reason=f"the real sizes are not there: {CALTECH}")
@pytest.mark.parametrize(("most", "waste", "shared"), [(12, 0.180, 0.148), (24, 0.115, 0.089)])
def test_real_sizes_pad_no_more_than_measured(most, waste, shared):
    rows = np.loadtxt(CALTECH, delimiter=",", skiprows=1, dtype=int)
    sizes, counts = rows[:, :2], rows[:, 2]
    scale = np.minimum(1, 1024 / sizes.max(axis=1, keepdims=True))
    sizes = np.maximum(1, np.round(sizes * scale)).astype(int)
    assert plan_buckets(sizes, most, counts=counts).waste(sizes, counts) <= waste
    both = plan_buckets(sizes, most, counts=counts, both_orientations=True)
    assert both.waste(sizes, counts) <= shared


def cost_of_finite(sizes, shapes, price, step, either):
    """Of these shapes, worked out image by image: pixels, filler rows, steps and compilations."""
    groups = {}
    for size in sizes:
        options = [(np.prod(shape), shape, False) for shape in shapes if (size <= shape).all()]
        options += [(np.prod(s), s, True) for s in shapes if either and (size[::-1] <= s).all()]
        if not options:
            return math.inf
        _, shape, turned = min(options)  # as it is, where it fits so
        groups.setdefault(shape, [0, 0])[turned] += 1
    total = 0.0
    for shape, counts in groups.items():
        area, room = int(np.prod(shape)), max(step // int(np.prod(shape)), 1)
        total += price + min(
            sum(math.ceil(n / rows) * (rows * area + step / 16) for n in counts)
            for rows in range(1, room + 1)
        )
    return total


@pytest.mark.parametrize("either", [False, True])
@pytest.mark.parametrize(("step", "price"), [(2000, 0), (2000, 700), (500, 300)])
def test_a_finite_plan_is_the_best_that_brute_force_finds_or_near(step, price, either):
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(10):
        sizes = rng.integers(4, 30, (4, 2))[rng.integers(0, 4, 9)]
        plan = plan_buckets(
            sizes,
            2,
            multiple=1,
            compilation_price=price,
            pixels_per_step=step,
            both_orientations=either,
            finite=True,
        )
        found = cost_of_finite(sizes, plan.shapes, price, step, either)
        sides = np.sort(sizes, axis=1) if either else sizes
        corners = list(itertools.product(*(sorted(set(axis)) for axis in sides.T.tolist())))
        corners = [c for c in corners if not either or c[0] <= c[1]]
        plans = (p for most in (1, 2) for p in itertools.combinations(corners, most))
        ratios.append(found / min(cost_of_finite(sizes, p, price, step, either) for p in plans))
        rows = sum(
            math.ceil(n / bucket.batch_size) * (bucket.pixels + step / 16)
            for n, bucket in _batches(plan, sizes)
        )
        assert rows + price * len(plan.buckets) == pytest.approx(found)  # its batch sizes are those counted
        assert all(bucket.pixels <= max(step, np.prod(bucket.shape)) for bucket in plan.buckets)
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(np.array(ratios) < 1 + 1e-9) >= 0.8
    assert max(ratios) <= 1.1


def _batches(plan, sizes):
    """How many images lie each way in each bucket."""
    homes = plan.assign(sizes)
    turned = plan.turned(sizes, homes)
    for number, bucket in enumerate(plan.buckets):
        for lie in (False, True):
            yield np.sum((homes == number) & (turned == lie)), bucket


def test_few_images_get_few_buckets_and_many_get_many():
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 700, (3_000, 2))

    def planned(n):
        options = {"multiple": 32, "pixels_per_step": 10**6, "both_orientations": True, "finite": True}
        return len(plan_buckets(sizes[:n], "auto", compilation_price=10**7, **options).buckets)

    few, some, many = planned(20), planned(300), planned(3_000)
    assert few <= 2 < some < many <= 32


def test_batches_of_a_finite_collection_are_even():
    sizes = [(10, 10)] * 10
    plan = plan_buckets(sizes, 1, multiple=1, pixels_per_step=700, finite=True)
    assert plan.buckets == (Bucket((10, 10), 5),)  # and not 7, and 3 with 4 rows of nothing
    assert plan_buckets(sizes, 1, multiple=1, pixels_per_step=700).batch_sizes == (7,)
    assert plan_buckets(sizes[:2], 1, multiple=1, pixels_per_step=700, finite=True).batch_sizes == (2,)


class TestBothOrientations:
    """Buckets that lie across and hold upright images turned."""

    def test_plans_and_pads_as_if_every_image_lay_across(self):
        sizes = np.random.default_rng(0).integers(20, 300, (500, 2))
        both = plan_buckets(sizes, 5, pixels_per_step=10**6, both_orientations=True)
        across = plan_buckets(np.sort(sizes, axis=1), 5, pixels_per_step=10**6)
        assert [bucket[:2] for bucket in both.buckets] == [bucket[:2] for bucket in across.buckets]
        assert both.assign(sizes).tolist() == across.assign(np.sort(sizes, axis=1)).tolist()
        assert both.waste(sizes) == across.waste(np.sort(sizes, axis=1))
        assert both.waste(sizes) < plan_buckets(sizes, 5).waste(sizes)

    def test_turns_only_what_does_not_fit_as_it_is(self):
        plan = BucketPlan((Bucket((4, 8), 1, True), Bucket((9, 9), 1, True)))
        sizes = [(4, 8), (8, 4), (5, 4), (4, 4), (9, 5)]
        assert plan.assign(sizes).tolist() == [0, 0, 0, 0, 1]
        assert plan.turned(sizes).tolist() == [False, True, True, False, False]

    def test_a_bucket_of_one_orientation_takes_no_image_turned(self):
        plan = BucketPlan((Bucket((4, 8), 1), Bucket((9, 9), 1)))
        assert plan.assign([(4, 8), (8, 4)]).tolist() == [0, 1]
        assert not plan.turned([(4, 8), (8, 4)]).any()

    def test_images_of_other_than_two_axes_have_none(self):
        with pytest.raises(ValueError, match="only images of two axes have two orientations"):
            plan_buckets([(3,), (4,)], 1, both_orientations=True)


def test_batch_sizes_fill_the_pixels_of_a_step():
    plan = plan_buckets([(80, 80), (160, 400), (400, 160)], 3, pixels_per_step=100_000)
    areas = [h * w for h, w in plan.shapes]
    assert plan.batch_sizes == tuple(max(1, 100_000 // area) for area in areas)
    assert all(50_000 < bucket.pixels <= 100_000 for bucket in plan.buckets)
    assert plan_buckets([(1000, 1000)], 1, pixels_per_step=10).batch_sizes == (1,)


def test_batch_sizes_are_multiples_of_the_batch_multiple():
    sizes = [(80, 80), (160, 400), (1000, 1000)]
    plan = plan_buckets(sizes, 3, pixels_per_step=600_000, batch_multiple=4)
    assert plan.batch_sizes == (600_000 // 6400 // 4 * 4, 8, 4)
    assert plan_buckets(sizes, 3, batch_multiple=4).batch_sizes == (4, 4, 4)


def test_many_distinct_sizes_are_planned_on_a_coarser_grid_and_still_all_fit():
    sizes = np.random.default_rng(0).integers(50, 900, (20_000, 2))
    plan = plan_buckets(sizes, 8, multiple=1)
    grid = [(h, w) for h in (474, 899) for w in (262, 474, 687, 899)]
    grid = sorted(grid, key=lambda shape: (np.prod(shape), shape))
    grid = BucketPlan(tuple(Bucket(shape, 1) for shape in grid))
    assert plan.waste(sizes) < grid.waste(sizes)


@pytest.mark.parametrize("both_orientations", [False, True])
def test_json_keeps_the_plan(both_orientations):
    plan = plan_buckets([(10, 20), (30, 10)], 2, pixels_per_step=1000, both_orientations=both_orientations)
    assert BucketPlan.from_json(plan.to_json()) == plan
    assert hash(BucketPlan.from_json(plan.to_json())) == hash(plan)


def plan_json(*buckets):
    described = [{"shape": s, "batch_size": n, "both_orientations": False} for s, n in buckets]
    return json.dumps({"format": 1, "buckets": described})


def test_the_json_of_a_plan_is_what_is_documented():
    assert json.loads(plan_buckets([(10, 20)], 1).to_json()) == json.loads(plan_json(([16, 24], 1)))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        plan_json(),
        plan_json(([1, 2], 1), ([3], 1)),
        plan_json(([1, 0], 1)),
        plan_json(([1, 2], 0)),
        plan_json(([1, 2.5], 1)),
        plan_json(([1, "2"], 1)),
        plan_json(([], 1)),
        plan_json(([4, 4], 1), ([2, 2], 1)),
        plan_json(([4, 4], 1), ([4, 4], 2)),
        plan_json(([4, 4], 1)).replace('"format": 1', '"format": 0'),
        plan_json(([4, 4], 1)).replace("batch_size", "batch"),
        plan_json(([4, 4], 1)).replace("false", "1"),
        plan_json(([4], 1)).replace("false", "true"),
    ],
)
def test_json_that_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match="this is no bucket plan: "):
        BucketPlan.from_json(text)


def test_draws_itself(tmp_path):
    pytest.importorskip("matplotlib")
    sizes = np.random.default_rng(0).integers(20, 200, (50, 2))
    for both in (False, True):
        plan = plan_buckets(sizes, 4, both_orientations=both)
        plan.draw(sizes, tmp_path / "plan.png", title="noise")
        with Image.open(tmp_path / "plan.png") as picture:
            assert len(np.unique(np.asarray(picture).reshape(-1, 4), axis=0)) > 10
    with pytest.raises(ValueError, match="two axes"):
        plan_buckets(sizes[:, :1], 4).draw(sizes[:, :1], tmp_path / "line.png")


def test_an_image_larger_than_every_bucket_is_an_explained_error():
    plan = plan_buckets([(10, 20)], 1)
    with pytest.raises(ValueError, match=r"image 1 of size \[10, 25\] is larger than every bucket"):
        plan.assign([(10, 20), (10, 25)])
    with pytest.raises(ValueError, match="sizes have 3 axes, and the buckets 2"):
        plan.assign([(10, 20, 1)])


@pytest.mark.parametrize(
    ("sizes", "options", "said"),
    [
        ([], {}, "n >= 1"),
        ([(0, 4)], {}, "at least 1 pixel: image 0"),
        ([(3.0, 4.0)], {}, "must be integers"),
        ([(3, 4)], {"max_buckets": 0}, "max_buckets=0"),
        ([(3, 4)], {"max_buckets": "auto"}, "max_buckets='auto' needs a compilation_price"),
        ([(3, 4)], {"max_buckets": "few"}, "max_buckets=few must be an integer"),
        ([(3, 4)], {"multiple": 0}, "multiple=0"),
        ([(3, 4)], {"pixels_per_step": 0}, "pixels_per_step=0"),
        ([(3, 4)], {"batch_multiple": 0}, "batch_multiple=0"),
        ([(3, 4)], {"compilation_price": -1}, "compilation_price=-1"),
        ([(3, 4)], {"compilation_price": math.nan}, "compilation_price=nan"),
        ([(3, 4)], {"pixels_per_step": 1e6}, "pixels_per_step=1000000.0 must be an integer"),
        ([(3, 4)], {"multiple": 8.0}, "multiple=8.0 must be an integer"),
        ([(3, 4)], {"counts": [0]}, "counts must be 1 integers >= 1"),
    ],
)
def test_bad_input_is_refused(sizes, options, said):
    with pytest.raises(ValueError, match=said):
        plan_buckets(sizes, **{"max_buckets": 2, **options})
