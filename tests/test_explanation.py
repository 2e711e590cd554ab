import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import png
from flax import nnx
from PIL import Image

from spp_jax import Scorer, create_model
from spp_jax.config import RunConfig
from spp_jax.data.decoding import UnreadableError, decode
from spp_jax.errors import UsageError
from spp_jax.models.sppnet import LinearHead, Pyramid
from spp_jax.padded import Padded
from spp_jax.pooling import bin_edges, boxes_to_windows
from spp_jax.scoring import list_shipped
from spp_jax.testing import assert_no_compilations
from spp_jax.training.losses import create_loss


def noise(size, seed=0):
    return np.random.default_rng((seed, *size)).integers(0, 256, (*size, 3), np.uint8)


def small(**options):
    model = create_model("compact", widths=(4, 8), hidden=8, rngs=nnx.Rngs(0), **options)
    kernel = model.head.logits.kernel
    kernel[...] = np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    return model


def of_several_maps(outputs=1):
    """A network of a linear head over two maps, each of levels and reductions of its own."""
    maps = (Pyramid(0, (1, (2, 3)), ("max", "mean"), 0.5), Pyramid(1, (1, 2), ("max",)))
    model = small(maps=maps, outputs=outputs)
    head = LinearHead(model.num_features, outputs, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    head.mean[...] = rng.uniform(0, 1, model.num_features).astype(np.float32)
    head.scale[...] = rng.uniform(0.5, 2, model.num_features).astype(np.float32)
    shape = head.logits.kernel.shape
    head.logits.kernel[...] = (rng.normal(size=shape) / 10).astype(np.float32)
    model.head = head
    return model


ONE_WAY = RunConfig(both_orientations=False)


@pytest.fixture(scope="module")
def scorer():
    return Scorer(small())


@pytest.fixture(scope="module")
def linear():
    return Scorer(of_several_maps(), ONE_WAY)


@pytest.mark.parametrize("judge", ["scorer", "linear"])
class TestEveryHead:
    def test_the_parts_add_up_to_the_logit_and_the_logit_gives_the_score(self, judge, request):
        judge = request.getfixturevalue(judge)
        photo = noise((60, 90))
        why = judge.explain(photo)
        assert abs(sum(why.parts.values()) - why.logit) < 1e-5
        score = judge.score([photo])[0]
        assert why.score == pytest.approx(score, abs=1e-5)
        assert 1 / (1 + np.exp(-why.logit)) == pytest.approx(score, abs=1e-5)
        assert next(iter(why.parts)) == "base"
        assert len(why.parts) > 3

    def test_the_whole_picture_as_a_box_has_the_pictures_score(self, judge, request):
        judge = request.getfixturevalue(judge)
        for size in ((60, 90), (90, 60), (61, 47), (8, 8), (9, 70)):
            found = judge.score_boxes(noise(size), [[0, 0, size[1], size[0]]])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, judge.score([noise(size)]), atol=1e-5)

    def test_boxes_are_judged_as_a_plain_loop_over_the_cut_map_does(self, judge, request):
        judge = request.getfixturevalue(judge)
        photo = noise((60, 90))
        boxes = [[0, 0, 45, 60], [13, 7, 71, 40], [30, 30, 33, 33], [50, 20, 90, 60], [0.5, 1.5, 20.25, 31]]
        network = nnx.merge(judge._parts[0], jax.tree.unflatten(judge._parts[1], judge.leaves))
        maps = network.maps(jnp.asarray(photo)[None])
        expected = []
        for left, top, right, bottom in boxes:
            cut = []
            for x, geometry in zip(maps, network.body.geometries, strict=True):
                box = np.array([[top, left], [bottom, right]])
                size = np.array(x.values.shape[1:3])
                (a, c), (b, d) = boxes_to_windows(box, geometry.strides, geometry.offsets, size)
                a, c = a * (top > 0), c * (left > 0)
                b, d = (size[0] if bottom >= 60 else b), (size[1] if right >= 90 else d)
                cut.append(Padded.whole(x.values[:, a:b, c:d]))
            expected.append(jax.nn.sigmoid(network.head(network.pooled(cut))[0, 0]))
        np.testing.assert_allclose(judge.score_boxes(photo, boxes), expected, atol=1e-5)


def test_windows_are_pooled_as_numpy_pools_the_cut_map(linear):
    network = linear._regions.network
    photo = noise((40, 56))
    windows = [np.array([[[[1, 2], [7, 9]]]]), np.array([[[[0, 1], [3, 5]]]])]
    maps = network.maps(jnp.asarray(photo)[None])
    vector = np.asarray(network.pooled_windows(maps, windows)).reshape(-1)
    expected = []
    for x, window, levels, functions, power in (
        (maps[0], windows[0], [(1, 1), (2, 3)], (np.max, np.mean), 0.5),
        (maps[1], windows[1], [(1, 1), (2, 2)], (np.max,), 1.0),
    ):
        (top, left), (bottom, right) = window[0, 0]
        cut = np.asarray(x.values)[0, top:bottom, left:right]
        for function in functions:
            for level in levels:
                rows, columns = (
                    list(zip(*bin_edges(n, bins), strict=True))
                    for n, bins in zip(cut.shape[:2], level, strict=True)
                )
                for (a, b), (c, d) in itertools.product(rows, columns):
                    pooled = function(cut[a:b, c:d], axis=(0, 1))
                    expected.append(np.sign(pooled) * np.abs(pooled) ** power)
    np.testing.assert_allclose(vector, np.concatenate(expected), atol=1e-5)


def test_of_a_linear_head_winners_other_parts_and_base_add_up_to_the_logit():
    judge = Scorer(of_maxima(), ONE_WAY)
    why = judge.explain(noise((50, 70)))
    moved = sum(float(each.effects.sum()) for each in why.winners)
    assert moved + why.parts["base"] == pytest.approx(why.logit, abs=1e-5)


def of_maxima():
    model = small(maps=(Pyramid(0, (1, 2), ("max",)), Pyramid(1, (1, 3), ("max",))))
    head = LinearHead(model.num_features, 1, rngs=nnx.Rngs(0))
    weights = np.random.default_rng(1).normal(size=head.logits.kernel.shape) / 10
    head.logits.kernel[...] = weights.astype(np.float32)
    model.head = head
    return model


def test_winners_are_where_the_gradient_of_the_op_goes(scorer):
    photo = noise((60, 90))
    why = scorer.explain(photo)
    network = scorer._regions.network
    maps = network.maps(jnp.asarray(photo)[None])
    for number, levels in ((0, (1, 2, 4)), (1, (1, 2, 4))):
        pool = network.pools[1]  # the maximum
        values = maps[number].values

        def picked(features, place, pool=pool):
            return pool(Padded.whole(features))[0, place].sum()

        places = list(
            itertools.chain.from_iterable([(n, i, j) for i in range(n) for j in range(n)] for n in levels)
        )
        found = {(each.level[0], *each.bin): each for each in why.winners if each.map == number}
        for place in (0, 3, 9, 20):
            hit = np.asarray(jax.grad(picked)(values, place))[0].sum(axis=-1)
            mine = found[places[place]]
            dense = np.zeros(hit.shape)
            dense[tuple(mine.cells.T)] = mine.channels
            np.testing.assert_array_equal(dense, hit)


def test_effects_are_gradient_times_feature_by_finite_differences(scorer):
    photo = noise((60, 90))
    why = scorer.explain(photo)
    regions = scorer._regions
    network = regions.network
    vector = np.asarray(network.features(jnp.asarray(photo)[None]), np.float64)[0]
    # The bin of level 1x1 is the first; in it the maxima of map 0 stand after its means.
    widths = [4, 4, 8, 8]  # map 0 mean and max, map 1 mean and max
    places = np.arange(4) + 4
    assert sum(widths) * 21 == len(vector)
    step = 1e-2
    up, down = vector.copy(), vector.copy()
    up[places] *= 1 + step
    down[places] *= 1 - step
    logits = regions.judge_vectors(np.stack([up, down]).astype(np.float32)).logits[:, 0]
    first = why.winners[0]
    assert (first.map, first.level) == (0, (1, 1))
    assert first.effects.sum() == pytest.approx((logits[0] - logits[1]) / (2 * step), rel=2e-2, abs=1e-4)


def test_a_portrait_in_a_turned_rung_is_explained_upright(scorer):
    photo = noise((90, 50))
    why = scorer.explain(photo)
    plain = Scorer(small(), ONE_WAY).explain(photo)
    assert why.map.shape == (90, 50)
    np.testing.assert_allclose(why.map, plain.map, atol=1e-5)
    for mine, other in zip(why.winners, plain.winners, strict=True):
        assert mine[:4] == other[:4]
        np.testing.assert_array_equal(mine.cells, other.cells)
        np.testing.assert_allclose(mine.effects, other.effects, atol=1e-5)
    boxes = [[3, 5, 40, 61], [0, 0, 50, 30]]
    np.testing.assert_allclose(
        scorer.score_boxes(photo, boxes), Scorer(small(), ONE_WAY).score_boxes(photo, boxes), atol=1e-5
    )


def test_boxes_of_a_photograph_that_is_judged_smaller_are_of_its_own_pixels():
    photo = Image.fromarray(noise((40, 60))).resize((240, 160))
    judge = Scorer(small(), RunConfig(max_pixels=60 * 40))
    found = judge.score_boxes(photo, [[0, 0, 240, 160], [120, 0, 240, 160]])
    shrunk = decode(photo, judge.config.decoding)
    half = shrunk.shape[1] / 2
    expected = judge.score_boxes(
        shrunk, [[0, 0, shrunk.shape[1], shrunk.shape[0]], [half, 0, shrunk.shape[1], shrunk.shape[0]]]
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert judge.explain(photo).map.shape == shrunk.shape[:2]
    with pytest.raises(ValueError, match="240 pixels wide and 160 high"):
        judge.score_boxes(photo, [[0, 0, 241, 160]])


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[0, 0, 91, 60]], r"boxes\[0\].*outside"),
        ([[0, 0, 9, 9], [-1, 0, 9, 9]], r"boxes\[1\].*outside"),
        ([[9, 0, 9, 9]], "no area"),
        ([[0, 9, 9, 8]], "no area"),
        ([[0, 0, np.nan, 9]], "not of four numbers"),
        ([0, 0, 9, 9], r"must be \[n, 4\]"),
        ([[0, 0, 9]], r"must be \[n, 4\]"),
    ],
)
def test_a_box_that_is_none_is_named(scorer, boxes, said):
    with pytest.raises(ValueError, match=said):
        scorer.score_boxes(noise((60, 90)), boxes)


def test_what_fills_up_a_call_of_few_boxes_is_empty_windows_which_take_no_time(scorer, monkeypatch):
    regions, given = scorer._regions, []
    boxes = np.array([[0, 0, 45, 60], [13, 7, 71, 40.0]])
    seen = scorer._seen(noise((60, 90)))

    class Watched:
        def __getitem__(self, bucket, programs=regions._windows):
            def call(leaves, maps_and_windows):
                given.extend(maps_and_windows[1])
                return programs[bucket].call(leaves, maps_and_windows)

            return types.SimpleNamespace(call=call)

    monkeypatch.setattr(regions, "_windows", Watched())
    regions.judge(seen, boxes)
    assert given
    for windows in given:
        lengths = np.diff(np.asarray(windows)[0], axis=1)
        assert len(lengths) == regions.chunk
        assert (lengths[:2] > 0).all()
        assert (lengths[2:] == 0).all()


def test_no_boxes_no_scores(scorer):
    assert scorer.score_boxes(noise((60, 90)), []).shape == (0,)
    assert scorer.score_boxes(noise((60, 90)), np.zeros((0, 4))).shape == (0,)


def test_what_cannot_be_judged_says_why(scorer):
    for call in (scorer.explain, scorer.crops, lambda photo: scorer.score_boxes(photo, [[0, 0, 2, 2]])):
        with pytest.raises(UnreadableError, match="no such file"):
            call("no/such.jpg")
        with pytest.raises(UnreadableError, match="smaller than the model takes"):
            call(noise((3, 50)))
        with pytest.raises(TypeError, match="one photograph"):
            call([noise((60, 90))])


def test_a_tiny_photograph_has_an_explanation_and_no_crops(scorer):
    why = scorer.explain(noise((8, 8)))
    assert why.map.shape == (8, 8)
    np.testing.assert_allclose(why.map, why.score, atol=1e-5)
    assert scorer.crops(noise((8, 8))) == []


def test_an_exif_rotated_file_is_explained_upright(scorer, tmp_path):
    pixels = noise((50, 90))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(pixels, -1)
    np.testing.assert_allclose(scorer.explain(tmp_path / "a.png").map, scorer.explain(upright).map, atol=1e-5)
    box = [[0, 10, 50, 60]]
    np.testing.assert_allclose(
        scorer.score_boxes(tmp_path / "a.png", box), scorer.score_boxes(upright, box), atol=1e-5
    )


def test_another_photograph_of_a_rung_compiles_nothing(scorer):
    scorer.explain(noise((60, 90)))
    with assert_no_compilations():
        scorer.explain(noise((90, 60), seed=2))
        scorer.crops(noise((59, 88)))
        scorer.score_boxes(noise((60, 90)), [[0, 0, 9, 9]])


def test_of_several_attributes_each_is_explained_by_itself():
    config = RunConfig(both_orientations=False, labels=("quality", "beauty"))
    judge = Scorer(of_several_maps(2), config, create_loss("good", attributes=config.labels))
    photo = noise((60, 90))
    scores = judge.score([photo])[0]
    for name, score in zip(judge.attributes, scores, strict=True):
        why = judge.explain(photo, attribute=name)
        assert (why.attribute, why.score) == (name, pytest.approx(score, abs=1e-5))
        assert sum(why.parts.values()) == pytest.approx(why.logit, abs=1e-5)
        assert judge.crops(photo, attribute=name, count=1)[0].original == pytest.approx(score, abs=1e-5)
    np.testing.assert_allclose(judge.score_boxes(photo, [[0, 0, 90, 60]])[0], scores, atol=1e-5)
    with pytest.raises(UsageError, match="'sharpness' is not judged"):
        judge.explain(photo, attribute="sharpness")


def test_a_score_read_from_several_logits_is_explained_by_its_log_odds():
    marks = (0.0, 0.5, 1.0)
    judge = Scorer(of_several_maps(3), ONE_WAY, create_loss("emd", marks=marks))
    photo = noise((60, 90))
    why = judge.explain(photo)
    score = judge.score([photo])[0]
    assert why.logit == pytest.approx(np.log(score / (1 - score)), abs=1e-4)
    assert sum(why.parts.values()) == pytest.approx(why.logit, abs=1e-5)


@pytest.fixture(scope="module")
def shipped_judge():
    if "compact" not in list_shipped():
        pytest.skip("the judge compact is not here")
    return Scorer.from_pretrained("compact")


def detailed(size, seed):
    """Smooth shapes with hard edges: a picture that is sharp."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.full((*size, 3), 128.0)
    for _ in range(60):
        cy, cx, radius = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(6, 30)
        picture[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(0, 255, 3)
    return picture


def blurred(picture):
    ndimage = pytest.importorskip("scipy.ndimage")
    return ndimage.gaussian_filter(picture, (4, 4, 0))


def test_a_sharp_object_in_a_blurred_field_is_the_best_part(shipped_judge):
    picture = detailed((300, 420), 0)
    photo = blurred(picture)
    photo[90:210, 240:380] = picture[90:210, 240:380]
    why = shipped_judge.explain(photo.astype(np.uint8))
    y, x = np.unravel_index(why.map.argmax(), why.map.shape)
    assert 90 <= y < 210
    assert 240 <= x < 380


@pytest.mark.parametrize("seed", range(4))
def test_a_blurred_half_has_the_lower_half_of_the_map(shipped_judge, seed):
    photo = detailed((300, 420), seed)
    photo[:, :210] = blurred(photo)[:, :210]
    why = shipped_judge.explain(png(photo.astype(np.uint8)))
    assert why.map[:, :210].mean() < why.map[:, 210:].mean()
