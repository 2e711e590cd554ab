import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from spp_jax import Padded, pad_batch
from spp_jax.layers import (
    BatchNorm,
    Conv,
    DepthwiseConv,
    Dropout,
    Geometry,
    GroupNorm,
    MaxPool,
    SpatialPyramidPool,
)
from spp_jax.testing import (
    assert_padding_exact,
    lone_tensors,
    padded_tensors,
    pyramid_pool_reference,
    relative_errors,
)

SIZES = ((9, 14), (16, 5), (7, 7), (12, 13))
OUTSIDE = (np.nan, np.inf, 3.0)


def conv(**options):
    return Conv(3, 4, options.pop("kernel_size", 3), rngs=nnx.Rngs(0), **options)


def depthwise(**options):
    return DepthwiseConv(3, options.pop("kernel_size", 3), rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    "layer",
    [
        conv(),
        conv(strides=2),
        conv(kernel_size=7, strides=(4, 2)),
        conv(kernel_size=(1, 5), use_bias=False),
        conv(padding=0),
        conv(padding=2, strides=3),
        conv(kernel_dilation=2, padding=2),
        conv(strides=2, padding=((0, 2), (1, 0))),
        depthwise(),
        depthwise(kernel_size=5, strides=2, padding=((1, 3), (1, 3)), use_bias=False),
        depthwise(kernel_size=(2, 3), strides=(3, 2), padding=0),
        MaxPool(2),
        MaxPool(3, strides=2, padding=((0, 1), (1, 0))),
        MaxPool(3, strides=2, padding=1),
        MaxPool((3, 1), strides=1),
        BatchNorm(3, rngs=nnx.Rngs(0), use_running_average=True),
        GroupNorm(3, group_size=1, rngs=nnx.Rngs(0)),
        GroupNorm(3, group_size=3, rngs=nnx.Rngs(0)),
        SpatialPyramidPool(),
        SpatialPyramidPool((1, (2, 3)), reduce="mean"),
    ],
    ids=lambda layer: type(layer).__name__ if isinstance(layer, nnx.Module) else None,
)
def test_on_a_padded_batch_gives_what_it_gives_on_each_image_alone(layer):
    assert_padding_exact(layer, SIZES, outside=OUTSIDE, both_orientations=False)


@pytest.mark.parametrize(
    "layer",
    [
        conv(strides=2),
        conv(kernel_size=5, padding=0, feature_group_count=1),
        conv(kernel_dilation=2, padding=2),
        conv(strides=2, padding=((0, 2), (0, 2))),
        depthwise(strides=2, padding=((0, 2), (0, 2))),
        depthwise(kernel_size=5),
        MaxPool(3, strides=2, padding=1),
        BatchNorm(3, rngs=nnx.Rngs(0), use_running_average=True),
        GroupNorm(3, group_size=3, rngs=nnx.Rngs(0)),
        SpatialPyramidPool((1, 2, 3)),
        SpatialPyramidPool((3,), reduce="mean"),
    ],
    ids=lambda layer: type(layer).__name__ if isinstance(layer, nnx.Module) else None,
)
def test_on_a_turned_batch_gives_the_same_turned(layer):
    images = [np.random.default_rng(n).normal(size=(*size, 3)) for n, size in enumerate(SIZES)]
    alone = lone_tensors(layer, images)
    for turned in (True, False):
        errors = relative_errors(padded_tensors(layer, images, turned=turned), alone)
        assert all(error <= 1e-9 for error in errors.values()), (turned, errors)
        assert errors["input gradient outside the images"] == 0


@pytest.mark.parametrize(
    "layer",
    [
        conv(kernel_size=(1, 5)),
        conv(strides=(4, 2)),
        conv(padding=((0, 2), (1, 1))),
        depthwise(kernel_size=(3, 1)),
        MaxPool((3, 1), strides=1),
        SpatialPyramidPool((1, (2, 3))),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_differs_by_axis_refuses_a_batch_that_may_be_turned(layer):
    x = dataclasses.replace(Padded.whole(jnp.zeros((1, 8, 8, 3))), turned=jnp.asarray(False))
    with pytest.raises(ValueError, match=r"plan buckets of one orientation \(both_orientations=False\)"):
        layer(x)


@pytest.mark.parametrize("spatial", [(8,), (6, 7, 5)])
def test_convolves_one_and_three_spatial_axes(spatial):
    kernel = (3,) * len(spatial)
    sizes = [spatial, tuple(n - 2 for n in spatial)]
    assert_padding_exact(Conv(3, 4, kernel, strides=2, rngs=nnx.Rngs(0)), sizes)
    assert_padding_exact(MaxPool(kernel, strides=2, padding=1), sizes)


def lone_conv(layer: Conv, image: np.ndarray) -> jax.Array:
    """The convolution of an image alone, straight from lax."""
    g = layer.geometry
    assert isinstance(layer.kernel_dilation, tuple)
    assert layer.bias is not None
    out = lax.conv_general_dilated(
        jnp.asarray(image[None]),
        layer.kernel[...],
        g.strides,
        g.padding,
        rhs_dilation=layer.kernel_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out[0] + layer.bias[...]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2},
        {"padding": 0},
        {"kernel_size": 5, "strides": 3},
        {"kernel_dilation": 3, "padding": 1},
        {"strides": 2, "padding": ((0, 2), (2, 1))},
    ],
)
def test_true_sizes_follow_the_convolution_of_the_image_alone(options):
    layer = conv(**options)
    images = [
        np.random.default_rng(n).normal(size=(*size, 3)).astype(np.float32) for n, size in enumerate(SIZES)
    ]
    out = layer(jax.tree.map(jnp.asarray, pad_batch(images, (20, 21))))
    for row, image in enumerate(images):
        expected = lone_conv(layer, image)
        assert tuple(out.sizes[row].tolist()) == expected.shape[:2]
        cells = out.values[(row, *map(slice, expected.shape[:2]))]
        np.testing.assert_allclose(cells, expected, rtol=1e-5, atol=1e-5)


def test_a_chain_of_uneven_paddings_is_one_geometry():
    same = Geometry((3, 5), (2, 2), ((0, 2), (1, 3)))  # of TensorFlow's SAME, as sizes are halved upwards
    chain = same.then(same)
    assert chain == Geometry((7, 13), (4, 4), ((0, 6), (3, 9)))
    sizes = jnp.array([[1, 9], [8, 16], [31, 33]])
    np.testing.assert_array_equal(chain.output_sizes(sizes), -(-sizes // 4))
    np.testing.assert_array_equal(same.output_sizes(same.output_sizes(sizes)), -(-sizes // 4))
    assert same.offsets == (1.0, 1.0)
    assert chain.offsets == (3.0, 3.0)


def test_a_depthwise_layer_refuses_what_it_does_not_do():
    with pytest.raises(TypeError, match="DepthwiseConv: kernel_dilation is not an option"):
        depthwise(kernel_dilation=2)
    with pytest.raises(TypeError, match="two spatial axes"):
        depthwise(kernel_size=(3,))


def test_sizes_of_filler_rows_and_of_images_too_small_become_0():
    x = Padded(jnp.ones((3, 6, 6, 3)), jnp.array([[0, 0], [2, 6], [3, 3]], jnp.int32))
    assert conv(padding=0)(x).sizes.tolist() == [[0, 0], [0, 4], [1, 1]]
    assert conv(padding=2)(x).sizes.tolist()[0] == [0, 0]  # though three zeros and nothing fit the window
    assert MaxPool(2)(x).sizes.tolist() == [[0, 0], [1, 3], [1, 1]]


def test_max_pool_refuses_padding_beyond_half_its_window():
    with pytest.raises(ValueError, match="more than half the window"):
        MaxPool(2, padding=2)


class TestBatchNormInTraining:
    images = tuple(np.random.default_rng(n).normal(1, 2, (*SIZES[n], 3)).astype(np.float32) for n in range(4))
    cells = np.concatenate([image.reshape(-1, 3) for image in images])

    def batch(self, outside=np.nan):
        filler = np.zeros((0, 0, 3), np.float32)
        padded = jax.tree.map(jnp.asarray, pad_batch([*self.images, filler], (20, 17)))
        return padded.map(lambda values: jnp.where(padded.mask(), values, outside))

    def norm(self, **options):
        return BatchNorm(3, rngs=nnx.Rngs(0), use_running_average=False, **options)

    @pytest.mark.parametrize("outside", OUTSIDE)
    def test_statistics_are_over_the_batchs_true_cells(self, outside):
        norm = self.norm(momentum=0.9, epsilon=1e-5)
        out = norm(self.batch(outside))
        mean, var = self.cells.mean(0), self.cells.var(0)
        for row, image in enumerate(self.images):
            found = out.values[(row, *map(slice, image.shape[:2]))]
            np.testing.assert_allclose(found, (image - mean) / np.sqrt(var + 1e-5), atol=1e-5)
        np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
        np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var, rtol=1e-5)

    def test_gradients_are_those_of_the_cells_alone_and_0_outside(self, x64):
        batch = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, self.batch())
        weights = jnp.asarray(np.random.default_rng(1).normal(size=batch.values.shape))
        mask = batch.mask()
        graph, params, rest = nnx.split(self.norm(), nnx.Param, ...)
        params, rest = jax.tree.map(lambda x: x.astype(jnp.float64), (params, rest))

        def loss(params, values):
            out = nnx.merge(graph, params, rest, copy=True)(Padded(values, batch.sizes))
            return (out.filled(0) * weights).sum()

        def expected(params, cells):
            scaled = (cells - cells.mean(0)) / jnp.sqrt(cells.var(0) + 1e-5)
            scaled = scaled * params["scale"][...] + params["bias"][...]
            return (scaled * weights[mask[..., 0]]).sum()

        for_params, for_values = jax.jit(jax.grad(loss, (0, 1)))(params, batch.values)
        for_params_alone, for_cells = jax.grad(expected, (0, 1))(params, batch.values[mask[..., 0]])
        np.testing.assert_allclose(for_values[mask[..., 0]], for_cells, rtol=1e-9, atol=1e-12)
        assert (for_values[~mask[..., 0]] == 0).all()
        for name in ("scale", "bias"):
            np.testing.assert_allclose(
                for_params[name][...], for_params_alone[name][...], rtol=1e-9, atol=1e-11
            )

    def test_a_batch_without_real_cells_teaches_nothing(self):
        norm = self.norm()
        out = norm(Padded(jnp.full((2, 4, 4, 3), jnp.nan), jnp.zeros((2, 2), jnp.int32)))
        assert jnp.isfinite(out.values).all()
        assert (norm.mean[...] == 0).all()
        assert (norm.var[...] == 1).all()


def test_the_pyramid_layer_stores_its_statics_and_adds_nothing():
    layer = SpatialPyramidPool((1, (2, 3)))
    features = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    found = layer(Padded(jnp.asarray(features), jnp.array([[5, 7], [3, 4]], jnp.int32)))
    assert layer.num_bins == found.shape[1] == 7
    np.testing.assert_array_equal(
        found, pyramid_pool_reference(features, [[5, 7], [3, 4]], levels=(1, (2, 3)))
    )


class TestDropout:
    def test_drops_its_share_anew_at_each_call_and_scales_the_rest(self):
        layer = Dropout(0.25, rngs=nnx.Rngs(0))
        x = jnp.ones((50, 200))
        first, second = layer(x), layer(x)
        assert (first == 0).mean() == pytest.approx(0.25, abs=0.02)
        np.testing.assert_allclose(first[first != 0], 1 / 0.75, rtol=1e-6)
        assert (first != second).any()

    def test_what_is_dropped_in_a_row_does_not_depend_on_how_many_there_are(self):
        few, many = (Dropout(0.5, rngs=nnx.Rngs(0))(jnp.ones((rows, 40))) for rows in (3, 8))
        np.testing.assert_array_equal(few, many[:3])

    def test_in_evaluation_nothing_is_dropped_nor_counted(self):
        layer = Dropout(0.5, rngs=nnx.Rngs(0))
        layer.eval()
        np.testing.assert_array_equal(layer(jnp.ones((3, 4))), 1)
        assert layer.count[...] == 0


class TestConvolutionOfWindowsApart:
    """Where the stride is the kernel's extent or more, a CPU multiplies matrices instead."""

    @pytest.mark.parametrize(
        ("kernel", "strides", "padding"),
        [(3, 4, 1), (1, 2, 0), ((2, 3), (2, 4), ((0, 1), (2, 0))), (2, 5, 2)],
    )
    @pytest.mark.parametrize("shape", [(8, 12), (7, 9), (13, 10)])
    def test_is_the_convolution_with_its_derivatives(self, kernel, strides, padding, shape, x64):
        layer = Conv(
            3, 4, kernel, strides=strides, padding=padding, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )
        assert layer.conv_general_dilated is not lax.conv_general_dilated
        rng = np.random.default_rng(0)
        x, weights = jnp.asarray(rng.normal(size=(2, *shape, 3))), layer.kernel[...]

        def plain(x, weights):
            geometry = layer.geometry
            numbers = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(
                x, weights, geometry.strides, geometry.padding, dimension_numbers=numbers
            )

        def ours(x, weights):
            copy = nnx.clone(layer)
            copy.kernel[...] = weights
            return copy(Padded.whole(x)).values

        expected, pull = jax.vjp(plain, x, weights)
        found, pull_ours = jax.vjp(ours, x, weights)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        cotangent = jnp.asarray(rng.normal(size=expected.shape))
        for mine, theirs in zip(pull_ours(cotangent), pull(cotangent), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)

    def test_other_strides_groups_and_dilations_stay_convolutions(self):
        for options in (
            {"strides": 2},
            {"strides": 4, "feature_group_count": 3},
            {"strides": 6, "kernel_dilation": 2},
        ):
            layer = Conv(3, 6, 3, rngs=nnx.Rngs(0), **options)
            assert layer.conv_general_dilated is lax.conv_general_dilated
