import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.test_util import check_grads

from spp_jax import (
    GeneralizedMean,
    Monoid,
    TopKMean,
    bin_edges,
    num_bins,
    pool_windows,
    spatial_pyramid_pool,
)
from spp_jax.layers import SpatialPyramidPool
from spp_jax.padded import Padded
from spp_jax.pooling.reductions import REDUCTIONS, Deviation, reduction
from spp_jax.testing import assert_padding_exact, pyramid_pool_reference


@reduction
class Softmax(Monoid):
    """A monoid with a combine of its own that learns: the mean, weighted by exp(sharpness * cell)."""

    sharpness: Any = 1.0

    def lift(self, cells):
        return self.sharpness * cells, jnp.ones_like(cells), cells

    def combine(self, a, b):
        (a_top, *a_sums), (b_top, *b_sums) = a, b
        top = jnp.maximum(a_top, b_top)
        safe = jnp.where(jnp.isfinite(top), top, 0)
        a_share, b_share = jnp.exp(a_top - safe), jnp.exp(b_top - safe)
        return top, *(a * a_share + b * b_share for a, b in zip(a_sums, b_sums, strict=True))

    def identity(self, state):
        return tuple(
            jnp.full((), fill, leaf.dtype) for fill, leaf in zip((-jnp.inf, 0, 0), state, strict=True)
        )

    def finish(self, state, count):
        _, weights, weighted = state
        return weighted / weights


@reduction
class LargestMagnitude(Monoid):
    combine = staticmethod(lax.max)

    def lift(self, cells):
        return jnp.abs(cells)


@reduction
class Smallest(Monoid):
    combine = staticmethod(lax.min)


@reduction
class Variance(Monoid):
    """Sums of a pytree."""

    def lift(self, cells):
        return {"sum": cells, "squares": cells**2}

    def finish(self, state, count):
        return state["squares"] / count - (state["sum"] / count) ** 2


@reduction
class Range(Monoid):
    """Maxima of a pytree, of which each has its own winners."""

    combine = staticmethod(lax.max)

    def lift(self, cells):
        return cells, -cells

    def finish(self, state, count):
        largest, smallest_negated = state
        return largest + smallest_negated


def softmax(cells):
    return (cells * np.exp(1.5 * cells)).sum() / np.exp(1.5 * cells).sum()


def top_3(cells):
    return np.sort(cells, axis=None)[::-1][:3].mean()


def cubic_mean(cells):
    return np.mean(np.maximum(cells, 1e-6) ** 3) ** (1 / 3)


def middle(cells, mask):
    """A function of (cells, mask) that is no class: the midpoint of the range."""
    low = jnp.where(mask, cells, jnp.inf).min(0)
    return (low + jnp.where(mask, cells, -jnp.inf).max(0)) / 2


CASES = {
    "deviation": ("deviation", np.std),
    "generalized_mean": ("generalized_mean", cubic_mean),
    "top_k_mean": (TopKMean(3), top_3),
    "Softmax": (Softmax(1.5), softmax),
    "LargestMagnitude": (LargestMagnitude(), lambda cells: np.abs(cells).max()),
    "Smallest": (Smallest(), np.min),
    "Variance": (Variance(), np.var),
    "Range": (Range(), np.ptp),
    "middle": (middle, lambda cells: (cells.min() + cells.max()) / 2),
}


@pytest.mark.parametrize(("reduce", "reference"), CASES.values(), ids=CASES)
class TestReductions:
    @pytest.mark.parametrize("rule", ["adaptive", "rounded"])
    def test_agree_with_numpy_on_padded_maps(self, reduce, reference, rule, x64):
        rng = np.random.default_rng(0)
        features = rng.normal(size=(4, 11, 8, 3))
        sizes = np.array([[11, 8], [5, 3], [0, 0], [1, 7]])
        pool = jax.jit(lambda x, s: spatial_pyramid_pool(x, s, levels=(1, 3, 2), reduce=reduce, rule=rule))
        expected = pyramid_pool_reference(features, sizes, levels=(1, 3, 2), reduce=reference, rule=rule)
        np.testing.assert_allclose(pool(features, sizes), expected, rtol=1e-9)

    def test_gradients_are_those_of_finite_differences(self, reduce, reference, x64):
        features = jnp.asarray(np.random.default_rng(0).uniform(0.1, 2, size=(2, 5, 6, 2)))
        sizes = jnp.array([[5, 6], [3, 2]])
        check_grads(
            jax.jit(lambda x: spatial_pyramid_pool(x, sizes, levels=(1, 2), reduce=reduce)),
            (features,),
            order=1,
            eps=1e-6,
        )

    @pytest.mark.parametrize("channels", [2, 40])
    def test_pool_windows(self, reduce, reference, channels, x64):
        features = np.random.default_rng(0).uniform(size=(1, 9, 8, channels))
        windows = np.array([[[[1, 2], [8, 7]], [[0, 0], [3, 8]]]])
        found = jax.jit(lambda x: pool_windows(x, windows, levels=(1, 2), reduce=reduce))(features)
        for number, (start, stop) in enumerate(windows[0]):
            cut = features[:, start[0] : stop[0], start[1] : stop[1]]
            expected = pyramid_pool_reference(cut, levels=(1, 2), reduce=reference)
            np.testing.assert_allclose(found[:, number], expected, rtol=1e-9)


@pytest.mark.parametrize(
    "reduce", [GeneralizedMean(2.0), TopKMean(3), pytest.param(Softmax(), marks=pytest.mark.slow), Range()]
)
def test_layers_are_exact_on_padded_batches(reduce):
    assert_padding_exact(SpatialPyramidPool((1, 2), reduce=reduce), ((5, 6), (3, 7)))


class TestGeneralizedMean:
    def test_is_the_mean_at_power_1_and_nears_the_maximum(self):
        features = np.random.default_rng(0).uniform(size=(1, 9, 7, 2)).astype(np.float32)
        for power, reduce, rtol in ((1.0, "mean", 1e-5), (60.0, "max", 0.08)):
            found = spatial_pyramid_pool(features, reduce=GeneralizedMean(power))
            np.testing.assert_allclose(found, spatial_pyramid_pool(features, reduce=reduce), rtol=rtol)

    @pytest.mark.slow
    def test_learns_its_power_one_or_one_per_channel(self, x64):
        features = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, size=(1, 5, 4, 2)))
        for power, order in ((3.0, 2), ([2.0, 4.0], 1)):
            check_grads(
                jax.jit(lambda p: spatial_pyramid_pool(features, levels=(1, 2), reduce=GeneralizedMean(p))),
                (jnp.asarray(power),),
                order=order,
            )

    def test_a_layer_has_it_as_a_parameter(self):
        layer = SpatialPyramidPool((1,), reduce="generalized_mean")
        x = Padded.whole(jnp.asarray(np.random.default_rng(0).uniform(size=(1, 4, 4, 2)), jnp.float32))
        gradient = nnx.grad(lambda layer: layer(x).sum())(layer)
        (leaf,) = jax.tree.leaves(gradient)
        assert float(leaf) > 0  # a larger power, a larger mean
        assert not jax.tree.leaves(nnx.state(SpatialPyramidPool(), nnx.Param))
        (learnt,) = SpatialPyramidPool(reduce=GeneralizedMean(2)).learnt
        assert jnp.issubdtype(learnt[...].dtype, jnp.floating)


def test_the_deviation_does_not_cancel_beside_a_large_mean():
    cells = np.random.default_rng(0).normal(1000, 0.01, (1, 24, 40, 3)).astype(np.float32)
    found = spatial_pyramid_pool(cells, levels=(1, 3), reduce="deviation")
    expected = pyramid_pool_reference(cells.astype(np.float64), levels=(1, 3), reduce=np.std)
    np.testing.assert_allclose(found, expected, rtol=2e-2)  # the cells themselves are of 6e-5 steps
    assert np.abs(found).max() < 0.02


@pytest.mark.parametrize("channels", [3, 40])
def test_the_deviation_of_windows_does_not_cancel_beside_a_large_mean(channels):
    cells = np.random.default_rng(0).normal(1000, 0.01, (1, 24, 40, channels)).astype(np.float32)
    windows = np.array([[[[0, 0], [24, 40]], [[3, 5], [9, 31]], [[2, 2], [3, 4]], [[5, 5], [6, 6]]]])
    found = pool_windows(cells, windows, levels=(1,), reduce="deviation")
    for number, (start, stop) in enumerate(windows[0]):
        cut = cells[:, start[0] : stop[0], start[1] : stop[1]].astype(np.float64)
        np.testing.assert_allclose(found[0, number, 0], cut[0].std(axis=(0, 1)), rtol=2e-2)


def test_several_states_of_the_deviation_merge_at_once_as_they_do_in_pairs(x64):
    rng = np.random.default_rng(0)
    states = [
        (jnp.asarray(rng.integers(0, 3, 50) * 1.0), *jnp.asarray(rng.uniform(size=(2, 50)))) for _ in range(5)
    ]
    states = [(n, jnp.where(n > 0, mean, 0), jnp.where(n > 1, squares, 0)) for n, mean, squares in states]
    deviation = Deviation()
    expected = functools.reduce(deviation.merge, states)
    for one, other in zip(deviation.merge_all(states), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


def test_the_deviation_of_windows_of_equal_cells_is_0():
    windows = np.array([[[[0, 0], [5, 6]], [[1, 2], [4, 5]]]])
    found = pool_windows(jnp.full((1, 5, 6, 2), 0.3), windows, levels=(1, 2), reduce="deviation")
    assert (np.asarray(found) == 0).all()


def test_the_deviation_of_equal_cells_and_its_gradient_are_0():
    cells = jnp.full((1, 5, 6, 2), 0.3)
    found, gradient = jax.value_and_grad(
        lambda x: spatial_pyramid_pool(x, levels=(1, 2), reduce="deviation").sum()
    )(cells)
    assert found == 0
    assert (gradient == 0).all()


def test_top_k_mean_of_a_bin_of_fewer_cells_is_their_mean():
    features = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    found = spatial_pyramid_pool(features, levels=(1, 2), reduce=TopKMean(4))
    np.testing.assert_allclose(found[0, :, 0], [3.5, 0.5, 1.5, 3.5, 4.5])


class TestACombineOfOnesOwn:
    def test_has_the_gradient_of_the_plain_loop(self, x64):
        """In the cells, and in what it learns, with padding, a filler and a window of one cell."""
        rng = np.random.default_rng(0)
        features = jnp.asarray(rng.normal(size=(3, 5, 4, 2)))
        sizes = np.array([[5, 4], [0, 0], [1, 3]])
        weights = rng.normal(size=(3, num_bins((1, 2)), 2))

        def loss(x, sharpness):
            pooled = spatial_pyramid_pool(x, sizes, levels=(1, 2), reduce=Softmax(sharpness))
            return (pooled * weights).sum()

        def plain(x, sharpness):
            total = 0.0
            for image, (height, width) in enumerate(sizes):
                bins = []
                for n in (1, 2):
                    rows, columns = bin_edges(height, n), bin_edges(width, n)
                    for top, bottom in zip(*rows, strict=True):
                        bins += [x[image, top:bottom, a:b] for a, b in zip(*columns, strict=True)]
                for cells, weight in zip(bins, weights[image], strict=True):
                    if cells.size:
                        share = jax.nn.softmax(sharpness * cells.reshape(-1, 2), axis=0)
                        total += ((share * cells.reshape(-1, 2)).sum(0) * weight).sum()
            return total

        found = jax.jit(jax.grad(loss, (0, 1)))(features, 1.5)
        expected = jax.grad(plain, (0, 1))(features, 1.5)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)

    def test_has_the_gradient_of_each_window_and_a_second_one(self, x64):
        features = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 1)))
        windows = [[[[0], [5]], [[1], [3]]]]

        def pool(x):
            return pool_windows(x, windows, levels=(1,), reduce=Softmax(1.5))

        check_grads(jax.jit(pool), (features,), order=2, modes=["rev"], eps=1e-5)

    def test_needs_no_derivative_at_its_identity(self):
        """Where -inf - -inf is no number, only values ask for it."""

        @reduction
        class Careless(Softmax):
            def combine(self, a, b):
                (a_top, *a_sums), (b_top, *b_sums) = a, b
                top = jnp.maximum(a_top, b_top)
                a_share, b_share = jnp.exp(a_top - top), jnp.exp(b_top - top)
                return top, *(a * a_share + b * b_share for a, b in zip(a_sums, b_sums, strict=True))

        features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 1)), jnp.float32)
        sizes = jnp.array([[0, 0], [3, 1]])

        def gradient(reduce):
            return jax.jit(
                jax.grad(lambda x: spatial_pyramid_pool(x, sizes, levels=(1, 2), reduce=reduce).sum())
            )

        found = gradient(Careless(1.5))(features)
        np.testing.assert_allclose(found, gradient(Softmax(1.5))(features), rtol=1e-5)
        assert (found[0] == 0).all()


def test_the_winner_of_any_max_gets_the_gradient_the_first_of_equals():
    features = jnp.array([[1.0, -2, 2, 0]])[..., None]
    gradient = jax.grad(lambda x: spatial_pyramid_pool(x, levels=(1,), reduce=LargestMagnitude()).sum())
    np.testing.assert_array_equal(gradient(features)[0, :, 0], [0, -1, 0, 0])


def test_no_nan_comes_from_a_filler_however_steep_finish_is():
    def loss(x, power):
        sizes = jnp.array([[0, 0], [2, 2]])
        return spatial_pyramid_pool(x, sizes, reduce=GeneralizedMean(power)).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.full((2, 2, 2, 1), 0.5), jnp.float32(3))
    assert all(np.isfinite(g).all() for g in gradients)
    assert (gradients[0][0] == 0).all()


def test_bins_that_a_rule_leaves_empty_give_zeros():
    for reduce in REDUCTIONS:
        found = spatial_pyramid_pool(
            jnp.full((1, 2, 2, 1), 3.0), levels=(3, 2), reduce=reduce, rule="partition"
        )
        of_one_cell = 0 if reduce == "deviation" else 3
        expected = np.array([1, 1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]) * of_one_cell
        np.testing.assert_allclose(found[0, :, 0], expected, rtol=1e-6, err_msg=reduce)


def test_reductions_of_like_fields_are_of_different_structure():
    """Lest jit take one for the other: with jax.tree_util.register_dataclass they compare equal."""
    structures = [jax.tree.structure(r) for r in (LargestMagnitude(), Smallest(), *REDUCTIONS.values())]
    assert len(set(structures)) == len(structures)
    assert jax.tree.structure(TopKMean(2)) != jax.tree.structure(TopKMean(3))
    assert jax.tree.structure(GeneralizedMean(2.0)) == jax.tree.structure(GeneralizedMean(3.0))


class TestRefuses:
    def test_a_name_that_is_none_a_number_and_a_class(self):
        features = np.zeros((1, 2, 2, 1), np.float32)
        with pytest.raises(ValueError, match="reduce='mode' is unknown; known are 'max', 'mean'"):
            spatial_pyramid_pool(features, reduce="mode")
        with pytest.raises(
            TypeError, match=r"must be a name, a Monoid .an instance. or a function of .*, got 3"
        ):
            spatial_pyramid_pool(features, reduce=3)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="an instance"):
            spatial_pyramid_pool(features, reduce=TopKMean)  # pyright: ignore[reportArgumentType]

    def test_a_function_that_gives_another_shape(self):
        features = np.zeros((1, 3, 4, 2), np.float32)
        for function in (lambda cells, mask: cells.sum(), lambda cells, mask: cells):
            with pytest.raises(TypeError, match=r"has to give \[channels\]"):
                spatial_pyramid_pool(features, reduce=function)

    def test_a_k_that_is_no_positive_int(self):
        for k in (0, -1, 1.5):
            with pytest.raises(ValueError, match="k must be an int >= 1"):
                TopKMean(k)  # pyright: ignore[reportArgumentType]

    def test_a_monoid_that_is_no_pytree_or_does_not_say_its_identity(self):
        class Bare(Monoid):
            pass

        @reduction
        class Product(Monoid):
            combine = staticmethod(lax.mul)

        features = np.zeros((1, 2, 2, 1), np.float32)
        with pytest.raises(TypeError, match="Bare is no pytree: decorate it"):
            spatial_pyramid_pool(features, reduce=Bare())
        with pytest.raises(NotImplementedError, match="has to give its identity"):
            spatial_pyramid_pool(features, reduce=Product())
