import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from spp_jax import boxes_to_windows, create_model, num_bins, pool_windows
from spp_jax.layers import Conv, Geometry, MaxPool
from spp_jax.padded import Padded
from spp_jax.pooling.reductions import Monoid, reduction
from spp_jax.testing import pyramid_pool_reference

NUMPY = {"max": np.max, "mean": np.mean}

pool = jax.jit(pool_windows, static_argnames=("levels", "reduce", "rule"))


def cut_out(features, windows, sizes, **options):
    """Each window cut to its map's true size, cut out and pooled by the NumPy loop."""
    rank = features.ndim - 2
    rows = []
    for image, boxes, size in zip(features, windows, sizes, strict=True):
        for starts, stops in np.clip(boxes, 0, size):
            cut = image[tuple(slice(a, max(a, b)) for a, b in zip(starts, stops, strict=True))]
            rows.append(pyramid_pool_reference(cut[None], **options)[0])
    return np.array(rows).reshape(*windows.shape[:2], num_bins(options["levels"], rank), -1)


@st.composite
def cases(draw):
    """Windows in, across and beyond maps of few extents (each compiles), and true sizes of any."""
    spatial = draw(st.sampled_from([(40,), (17, 20), (5, 7, 6)]))
    rank = len(spatial)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = rng.integers(1, np.array(spatial) + 1, (2, rank))
    windows = rng.integers(-3, np.array(spatial) + 4, (2, 5, 2, rank))
    # Some have the rows of the window before them, in one map or in both.
    for image, number in draw(st.sets(st.tuples(st.integers(0, 1), st.integers(1, 4)))):
        windows[image, number, :, 0] = windows[image, number - 1, :, 0]
    features = rng.integers(-4, 4, (2, *spatial, 2)).astype(np.float64)
    return features, windows.astype(np.int32), sizes.astype(np.int32)


@pytest.mark.parametrize("reduce", ["max", "mean"])
class TestPoolWindows:
    @given(cases(), st.sampled_from([(1, 2), (3,)]), st.sampled_from([2, 200]))
    def test_gives_what_the_op_gives_on_each_window_cut_out(self, reduce, case, levels, channels):
        features, windows, sizes = case
        features = np.tile(features, channels // 2) + np.arange(channels)
        with jax.enable_x64(True):
            found = pool(features, windows, sizes, levels=levels, reduce=reduce)
        expected = cut_out(features, windows, sizes, levels=levels, reduce=NUMPY[reduce])
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("spatial", [(14,), (9, 7), (5, 4, 6)])
    def test_gradient_is_that_of_the_sum_over_windows_and_0_outside(self, reduce, spatial, x64):
        rng = np.random.default_rng(0)
        rank = len(spatial)
        features = jnp.asarray(rng.normal(size=(2, *spatial, 3)))
        extent = np.array(spatial) // 2 + 1  # of all windows: each other would compile
        low = rng.integers(0, np.array(spatial) - extent + 1, (2, 3, rank))
        windows = np.stack([low, low + extent], 2).astype(np.int32)
        weights = jnp.asarray(rng.normal(size=(2, 3, num_bins((1, 2), rank), 3)))
        options = {"levels": (1, 2), "reduce": reduce}

        def loss(x, windows):
            return (pool_windows(x, windows, **options) * weights[:, : windows.shape[1]]).sum()

        gradient = jax.jit(jax.grad(loss))(features, windows)
        alone = jax.jit(
            jax.grad(lambda x, w: (pool_windows(x, [[[[0] * rank, x.shape[1:-1]]]], **options) * w).sum())
        )
        covered = np.zeros(features.shape, bool)
        expected = np.zeros(features.shape)
        for image in range(2):
            for number, (starts, stops) in enumerate(windows[image]):
                inside = (image, *map(slice, starts, stops))
                covered[inside] = True
                expected[inside] += alone(features[inside][None], weights[image, number][None, None])[0]
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)
        assert (np.asarray(gradient)[~covered] == 0).all()

    def test_beyond_the_true_size_and_empty_windows_give_zeros_under_jit(self, reduce):
        features = jnp.full((1, 6, 6, 1), jnp.nan).at[:, :4, :4].set(1)
        sizes = jnp.array([[4, 4]])
        windows = jnp.array([[[[0, 0], [9, 9]], [[4, 4], [6, 6]], [[2, 2], [2, 2]], [[3, 3], [1, 1]]]])
        gradient = jax.jit(jax.grad(lambda x: pool_windows(x, windows, sizes, reduce=reduce).sum()))
        with pytest.raises(ValueError, match="reversed"):
            gradient(features)  # the windows are known while it is traced

        @jax.jit
        def run(x, windows, sizes):
            value, pull = jax.vjp(lambda x: pool_windows(x, windows, sizes, reduce=reduce), x)
            return value, pull(jnp.ones_like(value))[0]

        value, gradient = run(features, windows, sizes)
        np.testing.assert_array_equal(value[0, :, :, 0], [[1] * 21, [0] * 21, [0] * 21, [0] * 21])
        assert gradient[0, :4, :4].sum() == pytest.approx(21)
        assert gradient.sum() == pytest.approx(21)

    def test_vmap_and_no_windows_at_all(self, reduce):
        rng = np.random.default_rng(0)
        features = jnp.asarray(rng.normal(size=(3, 2, 8, 8, 2)), jnp.float32)
        windows = jnp.asarray(np.tile([[1, 2], [7, 8]], (3, 2, 2, 1, 1)), jnp.int32)
        run = jax.jit(functools.partial(pool_windows, reduce=reduce))
        expected = np.stack([run(x, w) for x, w in zip(features, windows, strict=True)])
        np.testing.assert_allclose(jax.jit(jax.vmap(run))(features, windows), expected, rtol=1e-6)
        assert run(features[0], jnp.zeros((2, 0, 2, 2), jnp.int32)).shape == (2, 0, 21, 2)


@pytest.mark.parametrize(
    ("windows", "sizes", "error", "said"),
    [
        ([[[[0, 0], [3, 5]]]], None, ValueError, r"windows\[0\]\[0\] = .* is outside its map's true cells"),
        ([[[[0, 0], [3, 4]]]], [[3, 3]], ValueError, "is outside its map's true cells"),
        ([[[[2, 0], [1, 4]]]], None, ValueError, "is reversed: it stops before it starts"),
        ([[[[2, 0], [2, 4]]]], None, ValueError, "is empty along some axes only"),
        ([[[0, 0], [3, 4]]], None, ValueError, r"must have shape \(1, 1, 2, 2\)|must have shape"),
        ([[[[0.0, 0.0], [3.0, 4.0]]]], None, TypeError, "windows must be integers"),
    ],
)
def test_windows_that_do_not_fit_are_refused(windows, sizes, error, said):
    features = np.zeros((1, 3, 4, 1), np.float32)
    for given_as in (windows, np.array(windows), jnp.array(windows)):
        with pytest.raises(error, match=said):
            pool_windows(features, given_as, sizes)


def test_unsigned_windows_are_checked_like_others():
    for windows in ([[[[2, 0], [1, 4]]]], [[[[0, 0], [3, 9]]]]):
        with pytest.raises(ValueError, match=r"reversed|outside"):
            pool_windows(np.zeros((1, 3, 4, 1), np.float32), np.array(windows, np.uint8))


def test_gradients_of_many_windows_are_summed_in_float32():
    features = jnp.ones((1, 2, 2, 1), jnp.bfloat16)
    windows = jnp.tile(jnp.array([[0, 0], [2, 2]]), (1, 1000, 1, 1))
    gradient = jax.grad(lambda x: pool_windows(x, windows, levels=(1,)).astype(jnp.float32).sum())
    assert gradient(features)[0, 0, 0, 0] == 1000


@pytest.mark.parametrize("channels", [2, 200])
def test_windows_that_follow_one_another_with_the_same_rows_read_these_once(channels):
    calls = []

    @reduction
    class CountedSum(Monoid):
        @staticmethod
        def combine(a, b):  # pyright: ignore[reportIncompatibleVariableOverride]
            jax.debug.callback(lambda: calls.append(1))
            return a + b

        def identity(self, state):
            return jnp.zeros((), state.dtype)

    features = jnp.ones((1, 64, 8, channels))
    run = jax.jit(functools.partial(pool_windows, levels=(1,), reduce=CountedSum()))

    def calls_of(tops: list[int]) -> int:
        calls.clear()
        windows = [[[[top, 1 + place], [top + 50, 3 + place]] for place, top in enumerate(tops)]]
        found = run(features, jnp.array(windows))
        jax.effects_barrier()
        np.testing.assert_array_equal(found, np.full((1, len(tops), 1, channels), 100))
        return len(calls)

    assert calls_of([7, 7, 7, 7, 7]) < 0.5 * calls_of([7, 8, 7, 8, 7])


def test_boxes_over_one_map_under_vmap_do_not_copy_it():
    features = jnp.ones((1, 64, 64, 8))
    windows = jnp.tile(jnp.array([[2, 3], [30, 40]]), (100, 1, 2, 1, 1))
    program = jax.jit(jax.vmap(pool_windows, (None, 0))).lower(features, windows).compile()
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 5 * features.nbytes
    assert (program(features, windows) == 1).all()


def test_sizes_and_windows_may_be_lists_of_traced_numbers():
    features = jnp.arange(12.0).reshape(1, 3, 4, 1)

    @jax.jit
    def pool_to(height, width):
        return pool_windows(features, [[[[0, 0], [height, width]]]], [[height, width]], levels=(1,))

    assert pool_to(2, 3)[0, 0, 0, 0] == 6


def test_an_empty_window_is_a_filler_outside_jit_too():
    pooled = pool_windows(np.ones((1, 3, 4, 1), np.float32), [[[[0, 0], [0, 0]], [[0, 0], [3, 4]]]])
    assert (pooled[0, 0] == 0).all()
    assert (pooled[0, 1] == 1).all()


def receptive_centres(geometry: Geometry, cells: int) -> np.ndarray:
    return np.arange(cells) * geometry.strides[0] + geometry.offsets[0]


class TestBoxes:
    @given(st.integers(1, 9), st.integers(-4, 12), st.integers(-20, 60), st.integers(1, 40))
    def test_cover_the_cells_whose_centre_lies_inside(self, stride, twice_offset, start, length):
        offset = twice_offset / 2
        ((first,), (stop,)) = boxes_to_windows([[start], [start + length]], [stride], [offset])
        centres = {cell: cell * stride + offset for cell in range(-100, 100)}
        inside = [cell for cell, centre in centres.items() if start - 0.5 < centre < start + length - 0.5]
        if inside:
            assert list(range(first, stop)) == inside
        else:
            middle = start - 0.5 + length / 2
            assert stop == first + 1
            assert abs(centres[first] - middle) == min(abs(centre - middle) for centre in centres.values())

    def test_follow_the_papers_formula_where_edges_are_given_between_pixels(self):
        # S = 16: floor(x / S) + 1 to ceil(x / S) - 1 for the edges x = 31.5 and 99.5.
        assert boxes_to_windows([[32, 32], [100, 100]], (16, 16), (0, 0)).tolist() == [[2, 2], [7, 7]]

    def test_are_numpy_for_numpy_and_jax_for_jax_and_take_fractions(self):
        found = boxes_to_windows(np.array([[[3.4], [17.9]]]), [4], [0])
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, [[[1], [5]]])
        boxes = jnp.array([[3, 5], [17, 40]])
        traced = jax.jit(lambda b: boxes_to_windows(b, (4, 4), (0.5, 0.5)))(boxes)
        np.testing.assert_array_equal(traced, boxes_to_windows(np.array(boxes), (4, 4), (0.5, 0.5)))

    def test_of_small_and_unsigned_types_do_not_wrap(self):
        boxes = [[[100], [200]]]
        for dtype in (np.uint8, np.uint16, np.int16, np.uint32, np.float16, np.int64):
            assert boxes_to_windows(np.array(boxes, dtype), [16], [0]).tolist() == [[[7], [13]]]
        for dtype in (jnp.uint8, jnp.uint32, jnp.bfloat16):
            assert boxes_to_windows(jnp.array(boxes, dtype), [16], [0]).tolist() == [[[7], [13]]]

    @given(st.integers(0, 63), st.integers(1, 64))
    def test_in_the_picture_give_windows_in_the_map_where_its_sizes_are_given(self, start, length):
        box = [[start], [min(64, start + length)]]
        ((first,), (stop,)) = boxes_to_windows(box, [8], [0], sizes=[8])
        assert 0 <= first < stop <= 8

    def test_of_another_shape_are_refused(self):
        with pytest.raises(ValueError, match=r"shape \[..., 2, 2\]"):
            boxes_to_windows([0, 0, 4, 4], (4, 4), (0, 0))


class TestGeometry:
    def layers(self):
        rngs = nnx.Rngs(0)
        return [
            Conv(1, 1, 7, strides=4, rngs=rngs),
            Conv(1, 1, 3, strides=2, kernel_dilation=2, rngs=rngs),
            MaxPool(2),
            Conv(1, 1, 3, padding=0, rngs=rngs),
        ]

    def test_of_a_chain_gives_the_sizes_of_the_layers_in_turn(self):
        chain = functools.reduce(Geometry.then, (layer.geometry for layer in self.layers()))
        sizes = expected = jnp.arange(120, 200)[:, None] * jnp.ones(2, jnp.int32)
        for layer in self.layers():
            expected = layer.geometry.output_sizes(expected)
        np.testing.assert_array_equal(chain.output_sizes(sizes), expected)

    def test_names_the_window_and_centre_that_a_cell_really_sees(self):
        layers = [*self.layers()[:2], self.layers()[3]]
        chain = functools.reduce(Geometry.then, (layer.geometry for layer in layers))
        for layer in layers:
            layer.kernel[...] = jnp.ones_like(layer.kernel[...])

        @jax.jit
        @jax.grad
        def seen(image, row):
            x = Padded.whole(image)
            for layer in layers:
                x = layer(x)
            return x.values[0, row, 2, 0]

        for row in (2, 3):
            rows = np.flatnonzero(np.asarray(seen(jnp.zeros((1, 96, 96, 1)), row)).any((0, 2, 3)))
            first = row * chain.strides[0] - chain.padding[0][0]
            assert rows[0] == first
            assert rows[-1] == first + chain.window[0] - 1
            assert (rows[0] + rows[-1]) / 2 == receptive_centres(chain, 5)[row]

    def test_the_whole_picture_is_the_whole_map_of_every_model(self):
        model = create_model("compact", rngs=nnx.Rngs(0))
        geometries = model.body.geometries  # pyright: ignore[reportFunctionMemberAccess]
        for height, width in ((64, 96), (57, 83), (33, 40)):
            maps = jax.eval_shape(model.body, Padded.whole(jnp.zeros((1, height, width, 3))))
            for features, geometry in zip(maps, geometries, strict=True):
                box = np.array([[0, 0], [height, width]])
                window = boxes_to_windows(box, geometry.strides, geometry.offsets)
                assert window.tolist() == [[0, 0], list(features.values.shape[1:3])]
