import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from conftest import noise_records, png
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from spp_jax import Scorer, create_model, plan_buckets
from spp_jax.compilation import data_mesh, replicated, use_compilation_cache
from spp_jax.config import Decoding, RunConfig
from spp_jax.data.decoding import decode
from spp_jax.scoring import forward_executables, programs, score_records, shipped
from spp_jax.scoring.ladder import Ladder, choose, grid_sides
from spp_jax.scoring.programs import executables_folder
from spp_jax.testing import assert_no_compilations, count_compilations
from spp_jax.training.losses import create_loss

LIMITS = ("min_compile_time_secs", "min_entry_size_bytes")
RECORDS = noise_records()


@pytest.fixture(scope="module")
def model():
    model = create_model("compact", widths=(4, 8), hidden=8, rngs=nnx.Rngs(0))
    # The head starts undecided, at 0.5 for every picture; move it.
    model.head.logits.kernel[...] = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    return model


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(model, RunConfig(buckets=3, pixels_per_step=20_000))


def test_paths_bytes_and_pixels_are_scored_alike_in_the_order_given(scorer, tmp_path):
    data = [RECORDS.photo(i) for i in range(5)]
    (tmp_path / "a.png").write_bytes(data[0])
    expected = scorer.score(data)
    assert expected.dtype == np.float32
    assert ((expected >= 0) & (expected <= 1)).all()
    assert len(set(expected.tolist())) == 5
    again = scorer.score([decode(data[4]), *data[1:4], tmp_path / "a.png"])
    np.testing.assert_allclose(again, expected[[4, 1, 2, 3, 0]], rtol=1e-5)


def test_any_plan_gives_the_same_scores(model):
    model.eval()
    graph, variables = nnx.split(model)
    mesh = data_mesh()
    variables = jax.device_put(variables, replicated(mesh))
    forward = forward_executables(graph, create_loss("good"), variables, mesh)
    scores = []
    for most, pixels in ((1, 1), (3, 30_000), (6, 8_000)):
        plan = plan_buckets(RECORDS.sizes, most, pixels_per_step=pixels)
        found, _, skipped = score_records(forward, variables, RECORDS, plan, mesh)
        assert not skipped
        scores.append(found)
    for found in scores[1:]:
        np.testing.assert_allclose(found, scores[0], rtol=1e-4)


def test_one_compilation_a_rung_and_none_for_rungs_met_before(model):
    scorer = Scorer(model)
    with count_compilations() as count:
        scorer.score_records(RECORDS)
    assert count.compiled["forward"] + count.cached["forward"] == len(scorer.programs) == 1
    with assert_no_compilations():
        scorer.score_records(RECORDS)
        scorer.score([RECORDS.photo(i) for i in range(20)])


def test_what_cannot_be_scored_is_nan_with_its_reason_and_costs_the_others_nothing(scorer):
    photos = [RECORDS.photo(0), b"text", "no/such.jpg", png(np.zeros((3, 50, 3), np.uint8)), RECORDS.photo(1)]
    done = []
    scores = scorer.score(photos, progress=done.append)
    np.testing.assert_array_equal(np.isnan(scores), [False, True, True, True, False])
    np.testing.assert_allclose(scores[[0, 4]], scorer.score([photos[0], photos[4]]), rtol=1e-5)
    assert sum(done) == 5
    told = {scored.place: scored for scored in scorer.stream(photos)}
    assert [told[place].reason == "" for place in range(5)] == [True, False, False, False, True]
    assert told[2].reason == "there is no such file"
    assert "smaller than the model takes: at least 8 high and 8 wide" in told[3].reason
    np.testing.assert_array_equal([told[place].score for place in range(5)], scores)


def test_nothing_to_score_is_an_empty_answer(scorer):
    assert scorer.score([]).shape == (0,)
    assert np.isnan(scorer.score([b"text"])).all()


def pixels(size, seed=0):
    return np.random.default_rng((seed, *size)).integers(0, 256, (*size, 3), np.uint8)


def test_single_calls_of_any_shapes_take_few_programs_and_then_no_more(model):
    rng = np.random.default_rng(0)
    sizes = list(dict.fromkeys(map(tuple, rng.integers(8, 200, (400, 2)).tolist())))[:300]
    scorer = Scorer(model)
    with count_compilations() as count:
        for size in sizes[:200]:
            assert np.isfinite(scorer.score([pixels(size)])).all()
    assert count.compiled["forward"] + count.cached["forward"] == len(scorer.programs) <= 16
    with assert_no_compilations():
        scorer.score([pixels((8, 199))])
        for size in sizes[200:]:
            scorer.score([pixels(size)])


def test_lines_of_pixels_are_scored_and_the_bound_holds_for_them(model):
    scorer = Scorer(model, programs=2)
    sizes = [(8, 3000), (3000, 8), (40, 40), (8, 700), (300, 9)]
    first = [scorer.score([pixels(size)])[0] for size in sizes]
    assert len(scorer.programs) == 2
    np.testing.assert_allclose(Scorer(model).score([pixels(size) for size in sizes]), first, rtol=1e-6)


def test_scores_do_not_depend_on_what_was_scored_before(model):
    photos = [RECORDS.photo(i) for i in range(12)]
    alone = np.concatenate([Scorer(model).score([photo]) for photo in photos[:3]])
    scorer = Scorer(model)
    scorer.score([pixels((150, 190))])
    np.testing.assert_allclose(scorer.score(photos)[:3], alone, rtol=1e-6)
    np.testing.assert_allclose([s.score for s in scorer.stream(iter(photos[:1]))], alone[:1], rtol=1e-6)


def test_eight_threads_share_a_scorer(model):
    photos = [RECORDS.photo(i) for i in range(8)]
    expected = Scorer(model).score(photos)
    scorer = Scorer(model)
    begin = threading.Barrier(8)

    def call(number):
        begin.wait()
        mine = [b"text"] * number + photos[number:] + photos[:number]
        scores, reasons = np.full(len(mine), np.nan), {}
        for place, score, reason in scorer.stream(mine):
            scores[place] = score
            reasons |= {place: reason} if reason else {}
        return scores, reasons

    with count_compilations() as count, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(8)))
    assert count.compiled["forward"] + count.cached["forward"] == len(scorer.programs)
    for number, (scores, reasons) in enumerate(results):
        assert set(reasons) == set(range(number))
        np.testing.assert_allclose(scores[number:], np.roll(expected, -number), rtol=1e-6)


def test_a_stream_opens_few_files_ahead_and_ends_when_it_is_left(scorer):
    opened = []

    def photos():
        for number in itertools.count():
            opened.append(number)
            yield RECORDS.photo(number % 40)

    stream = scorer.stream(photos())
    places = [next(stream).place for _ in range(50)]
    assert len(opened) <= 50 + 2 * 8 + 4
    assert sorted(places)[:30] == list(range(30))
    stream.close()


def test_a_slow_photograph_does_not_delay_those_after_it(scorer):
    class Slow:
        """Its pixels come when it is told."""

        come = threading.Event()

        def __fspath__(self):
            assert self.come.wait(30)
            return "no/such.jpg"

    stream = scorer.stream(iter([Slow(), *(RECORDS.photo(i) for i in range(5))]))
    before = {next(stream).place for _ in range(3)}  # in the order in which threads have read them
    assert 0 not in before
    Slow.come.set()
    assert {scored.place for scored in stream} == {*range(6)} - before


def test_accelerators_get_full_batches_and_at_most_two_row_counts(model, monkeypatch):
    scorer = Scorer(model, RunConfig(pixels_per_step=64 * 64 * 8))
    expected = scorer.score([RECORDS.photo(i) for i in range(19)])
    monkeypatch.setattr(Scorer, "_full", lambda self, shape: max(64 * 64 * 8 // (shape[0] * shape[1]), 1))
    scorer = Scorer(model, RunConfig(pixels_per_step=64 * 64 * 8))
    rows = []
    run = scorer._programs.__class__.__getitem__
    monkeypatch.setattr(
        type(scorer._programs),
        "__getitem__",
        lambda self, b: rows.append((b.shape, b.batch_size)) or run(self, b),
    )
    np.testing.assert_allclose(scorer.score([RECORDS.photo(i) for i in range(19)]), expected, rtol=1e-6)
    assert max(n for _, n in rows) > 1
    for shape in {shape for shape, _ in rows}:
        assert len({n for s, n in rows if s == shape}) <= 2


@pytest.fixture
def cache(tmp_path):
    """A cache folder of its own, where everything is kept."""
    names = [f"jax_{name}" for name in ("compilation_cache_dir", *(f"persistent_cache_{n}" for n in LIMITS))]
    before = {name: jax.config.values[name] for name in names}
    use_compilation_cache(tmp_path)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_judges_of_one_architecture_do_not_spoil_each_others_programs(cache, monkeypatch):
    """They have one program. What JAX's cache gave of it XLA writes again as something that cannot run."""
    photos, found = [RECORDS.photo(i) for i in range(3)], []
    for key in ("one judge", "another", "another"):
        scorer = Scorer.from_checkpoint(shipped("compact"))
        monkeypatch.setattr(scorer._programs, "_key", key)
        found.append(scorer.score(photos))
        np.testing.assert_allclose(found[-1], found[0], rtol=1e-6)  # in other rungs perhaps


def test_a_second_process_traces_and_compiles_nothing(cache):
    checkpoint = shipped("compact")
    photos = [RECORDS.photo(i) for i in range(10)]
    expected = Scorer.from_checkpoint(checkpoint).score(photos)
    folder = executables_folder()
    assert folder is not None
    assert len(list(folder.rglob("*.executable"))) == 1
    scorer = Scorer.from_checkpoint(checkpoint)
    with assert_no_compilations():
        found = scorer.score(photos)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(scorer.score(photos[:1]), expected[:1], rtol=1e-6)
    for path in folder.rglob("*.executable"):
        path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_allclose(Scorer.from_checkpoint(checkpoint).score(photos), expected, rtol=1e-6)
    with assert_no_compilations():  # the damaged one was replaced
        Scorer.from_checkpoint(checkpoint).score(photos)
    cache.chmod(0o777)
    assert executables_folder() is None  # what others may write is not run


def test_programs_are_kept_after_an_upgrade_as_before_it(cache, monkeypatch):
    """What JAX's cache holds of the version before cannot be kept, and would be traced at every start."""
    photos = [RECORDS.photo(0)]
    for version in ("1", "2"):
        monkeypatch.setattr(programs, "code_digest", lambda version=version: version)
        Scorer.from_checkpoint(shipped("compact")).score(photos)
        with assert_no_compilations():
            Scorer.from_checkpoint(shipped("compact")).score(photos)


class TestLadder:
    def test_rungs_hold_what_they_are_for_and_lie_on_the_grid(self):
        decoding = Decoding(max_pixels=40_000)
        sides = set(grid_sides(decoding, 8).tolist())
        ladder = Ladder(decoding)
        for size in np.random.default_rng(0).integers(8, 400, (100, 2)).tolist():
            height, width = ladder.rung(tuple(size), {})
            assert min(size) <= height <= width
            assert max(size) <= width
            assert {height, width} <= sides
        assert len(ladder.used) <= ladder.most

    def test_is_the_same_in_every_process(self):
        sizes = np.random.default_rng(0).integers(8, 400, (50, 2))
        rungs = [[ladder.rung(tuple(s), {}) for s in sizes.tolist()] for ladder in (Ladder(Decoding()),) * 1]
        again = Ladder(Decoding())
        assert rungs[0] == [again.rung(tuple(s), {}) for s in sizes.tolist()]

    def test_what_paid_for_a_collection_is_all_that_is_compiled_for_it_again(self):
        sizes = np.random.default_rng(0).integers(50, 700, (300, 2))
        first = Ladder(Decoding()).expect(sizes, {}, 2e6)
        assert 2 <= len(first) <= 14
        again = Ladder(Decoding()).expect(sizes, dict.fromkeys(first, 1e5), 2e6)
        assert set(again) <= set(first)

    def test_many_more_photographs_get_more_rungs(self):
        sizes = np.random.default_rng(0).integers(50, 700, (300, 2))
        few = Ladder(Decoding()).expect(sizes[:50], {}, 1e7)
        many = Ladder(Decoding()).expect(sizes, {}, 1e7, times=50)
        assert len(few) <= 2 < len(many) <= 14

    def test_a_warm_folder_is_padded_about_as_little_as_by_as_many_shapes_that_cost_nothing(self):
        rng = np.random.default_rng(0)  # small pictures of many shapes
        widths, ratios = rng.normal(300, 40, 200).clip(120, 500), np.exp(rng.normal(0.25, 0.3, 200))
        sizes = np.stack([widths / ratios, widths], axis=1).astype(int)
        ladder = Ladder(Decoding(max_pixels=250_000))
        ladder.expect(sizes, {}, times=500)
        held = np.array(
            [np.prod(ladder.held(tuple(size), expected=True) or np.nan) for size in sizes.tolist()]
        )
        free = plan_buckets(sizes, len(ladder.used), both_orientations=True).waste(sizes)
        assert 1 - sizes.prod(axis=1).sum() / held.sum() <= free + 0.01
        assert len(ladder.used) < ladder.most

    def test_usual_photographs_find_a_rung(self):
        for decoding in (Decoding(max_pixels=250_000), Decoding(), Decoding(input="warp")):
            ladder = Ladder(decoding)
            assert 1 <= len(ladder.expect_usual({})) <= 14
            usual = decoding.scaled([(3000, 4000), (4000, 6000)]) if decoding.max_pixels else [(224, 224)]
            for size in np.asarray(usual).tolist():
                assert ladder.held(tuple(size)) is not None


@pytest.mark.parametrize("most", [1, 2, 4])
def test_the_choice_is_the_best_that_brute_force_finds_or_near(most):
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(20):
        sizes, counts = rng.integers(4, 30, (6, 2)), rng.integers(1, 9, 6)
        prices = {tuple(sorted(shape)): 900.0 for shape in rng.integers(4, 30, (7, 2)).tolist()}
        prices |= {(30, 30): float(rng.choice([0, 50, 900]))}

        def cost(shapes, sizes=sizes, counts=counts, prices=prices):
            paid = [
                min((h * w for h, w in shapes if min(s) <= h and max(s) <= w), default=np.inf) for s in sizes
            ]
            return np.dot(paid, counts) + sum(prices[shape] for shape in shapes)

        chosen = choose(sizes, counts, prices, most, True)
        free = [shape for shape, price in prices.items() if not price]
        paying = [shape for shape, price in prices.items() if price]
        plans = ([*free, *some] for k in range(most + 1) for some in itertools.combinations(paying, k))
        ratios.append(cost(chosen) / min(map(cost, plans)))
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(np.array(ratios) < 1 + 1e-9) >= 0.8
    assert max(ratios) <= 1.15


def test_programs_is_at_least_one(model):
    with pytest.raises(ValueError, match="most=0 must be at least 1"):
        Scorer(model, programs=0)
