from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spp_jax.layers import Conv
from spp_jax.padded import Padded
from spp_jax.testing import (
    assert_no_compilations,
    assert_padding_exact,
    count_compilations,
    pyramid_pool_reference,
)


class LeakyConv(Conv):
    """A convolution that forgets to clear the padding."""

    def __call__(self, x: Padded) -> Padded:
        return Padded(nnx.Conv.__call__(self, x.values), self.geometry.output_sizes(x.sizes))


def test_the_reference_pools_a_case_worked_by_hand():
    features = np.array([[[1, 2, 3], [4, 5, 6]]], float)[..., None]  # 2 x 3 cells
    # Level 2: rows 0 and 1; columns 0 to 1 and 1 to 2.
    assert pyramid_pool_reference(features, levels=(1, 2))[0, :, 0].tolist() == [6, 2, 3, 5, 6]
    assert pyramid_pool_reference(features, [[1, 2]], levels=(1, 2))[0, :, 0].tolist() == [2, 1, 2, 1, 2]


@pytest.mark.parametrize("outside", [np.nan, 1.0])
def test_assert_padding_exact_catches_a_layer_that_reads_the_padding(outside):
    with pytest.raises(AssertionError, match="output of image 0: differs"):
        assert_padding_exact(LeakyConv(3, 4, 3, rngs=nnx.Rngs(0)), outside=outside)


def test_assert_padding_exact_catches_statistics_over_the_batch():
    class Centred(nnx.Module):
        def __call__(self, x: Padded) -> Padded:
            mean = x.filled(0).sum((0, 1, 2)) / x.mask().sum()
            return x.map(lambda values: values - mean)

    with pytest.raises(AssertionError, match="differs"):
        assert_padding_exact(Centred())


def test_assert_padding_exact_catches_a_gradient_outside():
    class Summed(nnx.Module):
        def __call__(self, x: Padded) -> jax.Array:
            return (
                x.filled(0).sum((1, 2))
                + 0 * x.values.sum((1, 2))
                + (x.values - jax.lax.stop_gradient(x.values)).sum((1, 2))
            )

    with pytest.raises(AssertionError, match="input gradient outside the images"):
        assert_padding_exact(Summed(), outside=1.0)


def test_assert_padding_exact_takes_a_function_without_variables():
    assert_padding_exact(lambda x: x.map(lambda values: 2 * values))
    with pytest.raises(AssertionError, match="output of image 0"):
        assert_padding_exact(lambda x: jnp.nan_to_num(x.values).mean((1, 2)))


def test_count_compilations_counts_by_name_and_once_per_shape():
    @jax.jit
    def doubled_for_counting(x):
        return 2 * x

    arrays = [np.zeros(n, np.float32) for n in (3, 4, 3, 5)]
    with count_compilations() as count:
        for array in arrays:
            doubled_for_counting(array)
    assert count.compiled["doubled_for_counting"] == 3
    doubled_for_counting(jnp.zeros(6))
    assert count.compiled["doubled_for_counting"] == 3


def test_assert_no_compilations_names_function_shapes_and_cause():
    @jax.jit
    def tripled(x):
        return 3 * x

    tripled(np.zeros(3, np.float32))
    with assert_no_compilations():
        tripled(np.ones(3, np.float32))
    with pytest.raises(AssertionError) as caught, assert_no_compilations():
        tripled(np.zeros(4, np.float32))
    said = str(caught.value)
    assert said.startswith("tripled was compiled for (ShapedArray(float32[4]),). TRACING CACHE MISS at ")
    assert "different input types: * at x, now f32[4] and before f32[3]" in said


def test_assert_no_compilations_sees_other_threads():
    def quadrupled(x):
        return 4 * x

    with (
        pytest.raises(AssertionError, match="quadrupled was compiled"),
        assert_no_compilations(),
        ThreadPoolExecutor() as pool,
    ):
        pool.submit(jax.jit(quadrupled), np.zeros(3, np.float32)).result()
