"""Invariant 1: a padded batch gives what each image gives alone. Layers have their own tests."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from spp_jax import Padded, bin_edges, create_model, pad_batch
from spp_jax.layers import BatchNorm, Conv, MaxPool
from spp_jax.models import SPPNet
from spp_jax.models.sppnet import Classifier, Stages
from spp_jax.testing import lone_tensors, padded_tensors, relative_errors


def apply(model: SPPNet, images) -> jax.Array:
    graph, state = nnx.split(model)
    return jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, images)


def with_a_moved_head(model: SPPNet) -> SPPNet:
    """A head that starts at zero hides everything before it."""
    shape = model.head.logits.kernel[...].shape
    model.head.logits.kernel[...] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return model


SIZES = np.random.default_rng(0).integers(8, 48, (20, 2))


@pytest.fixture(scope="module")
def compact():
    return with_a_moved_head(create_model("compact", rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(  # benchmarks/exactness.py takes more
    "first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(2, 20, 4))]
)
def test_logits_and_gradients_of_compact_for_random_sizes(compact, first):
    rng = np.random.default_rng(first)
    images = [rng.uniform(size=(*size, 3)) for size in SIZES[first : first + (4 if first else 2)]]
    alone = lone_tensors(compact, images)
    outside = math.nan if first % 8 else 1e6
    errors = relative_errors(padded_tensors(compact, images, outside=outside), alone)
    assert len(errors) > 11
    assert all(error <= 1e-9 for error in errors.values()), errors
    assert errors["input gradient outside the images"] == 0


@pytest.mark.slow
def test_turned_in_their_batch_images_give_compact_the_same(compact):
    images = [np.random.default_rng(n).uniform(size=(*SIZES[n], 3)) for n in range(4)]
    errors = relative_errors(padded_tensors(compact, images, turned=True), lone_tensors(compact, images))
    assert all(error <= 1e-9 for error in errors.values()), errors


@pytest.mark.slow
def test_in_float32_padding_costs_no_more_than_rounding_does(compact):
    rng = np.random.default_rng(1)
    images = [rng.uniform(size=(*size, 3)).astype(np.float32) for size in SIZES[:3]]
    alone = lone_tensors(compact, images, dtype=np.float32)
    rounding = relative_errors(alone, lone_tensors(compact, images))
    padding = relative_errors(padded_tensors(compact, images, dtype=np.float32), alone)
    assert np.max([*padding.values()]) <= 10 * np.max([*rounding.values()])


@pytest.mark.slow
def test_in_bfloat16_padding_costs_no_more_than_rounding_does():
    """Invariant 1 where the network computes in bfloat16: parameters and pictures stay float32."""
    narrow = with_a_moved_head(create_model("compact", dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    wide = with_a_moved_head(create_model("compact", rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    images = [rng.uniform(size=(*size, 3)).astype(np.float32) for size in SIZES[:2]]
    alone = lone_tensors(narrow, images, dtype=np.float32)
    rounding = relative_errors(alone, lone_tensors(wide, images, dtype=np.float32))
    padding = relative_errors(padded_tensors(narrow, images, dtype=np.float32), alone)
    assert narrow.body(Padded.whole(jnp.asarray(images[0][None])))[-1].values.dtype == jnp.bfloat16
    assert np.max([*padding.values()]) <= 2 * np.max([*rounding.values()])
    assert padding["input gradient outside the images"] == 0


def test_pictures_in_uint8_are_normalised_alike(compact):
    pixels = [np.random.default_rng(n).integers(0, 256, (*SIZES[n], 3), np.uint8) for n in range(3)]
    together = apply(compact, jax.tree.map(jnp.asarray, pad_batch(pixels, (50, 60))))
    for row, picture in enumerate(pixels):
        np.testing.assert_allclose(together[row], apply(compact, picture[None])[0], rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(
            together[row], apply(compact, picture[None] / np.float32(255))[0], rtol=2e-4, atol=1e-5
        )


class BatchStatistics(nnx.Module):
    """A body with everything that could dirty padding: biases, batch norm, a max-pool, a residual."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = Conv(3, 6, 3, strides=2, rngs=rngs)
        self.norm1 = BatchNorm(6, rngs=rngs)
        self.pool = MaxPool(3, strides=2, padding=1)
        self.conv2 = Conv(6, 6, 3, rngs=rngs)
        self.norm2 = BatchNorm(6, rngs=rngs)
        for layer in (self.conv1, self.conv2, self.norm1, self.norm2):
            assert layer.bias is not None
            layer.bias[...] = rngs.normal(layer.bias[...].shape, jnp.float32)

        layers = (self.conv1, self.pool, self.conv2)
        self.chain = tuple(layer.geometry for layer in layers)

    def __call__(self, x: Padded) -> Padded:
        x = self.pool(self.norm1(self.conv1(x)).map(nnx.relu))
        branch = self.norm2(self.conv2(x))
        return x.map(lambda values: nnx.relu(values + branch.values))


def logits_of_images_alone(params: Any, images: list[jax.Array]) -> jax.Array:
    """The same network over a list of images, none padded, sharing nothing but the statistics."""

    def conv(p, xs, stride):
        return [
            lax.conv_general_dilated(
                x[None],
                p["kernel"][...],
                (stride, stride),
                ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )[0]
            + p["bias"][...]
            for x in xs
        ]

    def norm(p, xs):
        cells = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in xs])
        mean, var = cells.mean(0), cells.var(0)
        return [(x - mean) / jnp.sqrt(var + 1e-5) * p["scale"][...] + p["bias"][...] for x in xs]

    def max_pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (3, 3, 1), (2, 2, 1), ((1, 1), (1, 1), (0, 0)))

    def pyramid(x):
        pooled = []
        for n in (1, 2, 4):
            (tops, bottoms), (lefts, rights) = bin_edges(x.shape[0], n), bin_edges(x.shape[1], n)
            for top, bottom in zip(tops, bottoms, strict=True):
                pooled += [x[top:bottom, a:b].max((0, 1)) for a, b in zip(lefts, rights, strict=True)]
        return jnp.concatenate(pooled)

    body = params["body"]["stages"][0]
    xs = norm(body["norm1"], conv(body["conv1"], [4 * x - 2 for x in images], 2))
    xs = [max_pool(jax.nn.relu(x)) for x in xs]
    branches = norm(body["norm2"], conv(body["conv2"], xs, 1))
    vectors = jnp.stack([pyramid(jax.nn.relu(x + b)) for x, b in zip(xs, branches, strict=True)])
    first, last = params["head"]["hidden"][0], params["head"]["logits"]
    hidden = jax.nn.relu(vectors @ first["kernel"][...] + first["bias"][...])
    return (hidden @ last["kernel"][...] + last["bias"][...])[:, 0]


@pytest.mark.parametrize(
    ("outside", "turned", "remat"),
    [
        (math.nan, False, False),
        pytest.param(1e6, False, False, marks=pytest.mark.slow),
        (math.nan, True, True),
    ],
)
def test_in_training_mode_statistics_are_over_the_batchs_true_cells(outside, turned, remat, x64):
    rngs = nnx.Rngs(0)
    model = SPPNet(
        Stages([BatchStatistics(rngs)], remat=remat),  # pyright: ignore[reportArgumentType]
        lambda bins, features: Classifier(bins, features, hidden=(5,), outputs=1, dtype=None, rngs=rngs),
        features=6,
        levels=(1, 2, 4),
        reduce=("max",),
    )
    with_a_moved_head(model).train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, (params, rest)
    )
    rng = np.random.default_rng(0)
    images = [rng.uniform(size=(*size, 3)) for size in ((9, 14), (21, 6), (8, 8), (13, 17), (5, 30))]
    weights = rng.normal(size=len(images))
    lying = [image.swapaxes(0, 1) if turned else image for image in images]
    padded = jax.tree.map(jnp.asarray, pad_batch([*lying, np.zeros((0, 0, 3))], (33, 33)))
    mask = padded.mask()

    def together(params, values):
        batch = Padded(values, padded.sizes, jnp.asarray(True) if turned else None)
        logits = nnx.merge(graph, params, rest, copy=True)(batch)[:, 0]
        return logits[:-1] @ weights, logits[:-1]

    def alone(params, images):
        logits = logits_of_images_alone(params, images)
        return logits @ weights, logits

    values = jnp.where(mask, padded.values, outside)
    (for_params, for_values), logits = jax.jit(jax.grad(together, (0, 1), has_aux=True))(params, values)
    (for_params_alone, for_images), expected = jax.jit(jax.grad(alone, (0, 1), has_aux=True))(
        params, [jnp.asarray(image) for image in images]
    )
    found = {"logits": logits, "outside": jnp.abs(jnp.where(mask, 0, for_values)).max()}
    wanted = {"logits": expected, "outside": jnp.zeros(())}
    for row, image in enumerate(lying):
        found[f"input gradient {row}"] = for_values[row, : image.shape[0], : image.shape[1]]
        wanted[f"input gradient {row}"] = for_images[row].swapaxes(0, 1) if turned else for_images[row]
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(for_params), jax.tree.leaves(for_params_alone), strict=True
    ):
        if "conv" in str(path) and "bias" in str(path) and "kernel" not in str(path):
            # A bias before a batch norm has no effect: its gradient is 0 but for rounding.
            assert np.abs(a).max() < 1e-12
            continue
        found[str(path)], wanted[str(path)] = a, b
    found, wanted = ({name: np.asarray(t) for name, t in part.items()} for part in (found, wanted))
    errors = relative_errors(found, wanted)
    assert all(error <= 1e-9 for error in errors.values()), errors
    assert errors["outside"] == 0


class TestModel:
    def test_takes_plain_arrays_and_refuses_what_is_no_batch_of_pictures(self, compact):
        assert apply(compact, jnp.zeros((2, 8, 11, 3), jnp.uint8)).shape == (2, 1)
        for shape in ((8, 8, 3), (1, 8, 8, 1)):
            with pytest.raises(ValueError, match=r"images must be \[batch, height, width, 3\]"):
                compact(jnp.zeros(shape, jnp.uint8))

    def test_min_size_is_the_smallest_it_takes(self, compact):
        height, width = compact.min_size
        assert np.isfinite(apply(compact, jnp.zeros((1, height, width, 3)))).all()
        with pytest.raises(ValueError, match=f"at least {height}x{width}"):
            compact(jnp.zeros((1, height - 1, 50, 3)))

    def test_outputs_levels_and_dtype_are_options_and_unknown_ones_an_error(self):
        model = create_model("compact", levels=(1, (2, 3)), outputs=10, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        logits = apply(model, jnp.zeros((2, 20, 30, 3), jnp.uint8))
        assert logits.shape == (2, 10)
        assert logits.dtype == jnp.bfloat16
        with pytest.raises(TypeError, match="colour"):
            create_model("compact", colour=1, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="'nosuch' is unknown; known are alexnet, compact"):
            create_model("nosuch", rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="levels is empty"):
            create_model("compact", levels=(), rngs=nnx.Rngs(0))
