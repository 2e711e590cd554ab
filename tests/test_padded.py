import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spp_jax import Padded, pad_batch

ARRAYS = [np.full((2, 3, 1), 7, np.uint8), np.full((1, 4, 1), 9, np.uint8), np.zeros((0, 0, 1), np.uint8)]


def test_pad_batch_puts_each_array_at_the_low_end_among_zeros():
    padded = pad_batch(ARRAYS, (3, 4))
    assert padded.values.dtype == np.uint8
    assert padded.sizes.dtype == np.int32
    np.testing.assert_array_equal(padded.sizes, [[2, 3], [1, 4], [0, 0]])
    np.testing.assert_array_equal(
        padded.values[..., 0],
        [
            [[7, 7, 7, 0], [7, 7, 7, 0], [0, 0, 0, 0]],
            [[9, 9, 9, 9], [0, 0, 0, 0], [0, 0, 0, 0]],
            [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
    )


def test_mask_is_true_on_the_cells_that_the_arrays_filled():
    padded = pad_batch(ARRAYS, (3, 4))
    mask = padded.mask()
    assert mask.shape == (3, 3, 4, 1)
    np.testing.assert_array_equal(mask, padded.values > 0)
    line = pad_batch([np.ones((2, 1)), np.ones((3, 1))], (4,))
    np.testing.assert_array_equal(line.mask()[..., 0], [[1, 1, 0, 0], [1, 1, 1, 0]])


def test_filled_replaces_what_is_not_real_and_stops_its_gradient():
    padded = pad_batch([np.ones((2, 1, 1))], (3, 1))
    values = jnp.asarray(padded.values).at[0, 2].set(jnp.nan)

    def loss(values):
        return (Padded(values, jnp.asarray(padded.sizes)).filled(0) ** 2).sum()

    value, gradient = jax.value_and_grad(loss)(values)
    assert value == 2
    np.testing.assert_array_equal(gradient[0, :, 0, 0], [2, 2, 0])


def test_is_a_pytree_that_passes_through_jit_vmap_and_tree_map():
    padded = Padded.whole(jnp.ones((4, 2, 2, 1)))
    assert isinstance(jax.tree.map(lambda x: None, padded), Padded)
    doubled = jax.jit(lambda p: p.map(lambda v: 2 * v))(padded)
    assert (doubled.values == 2).all()
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), padded)
    masks = jax.vmap(Padded.mask)(stacked)
    assert masks.shape == (2, 4, 2, 2, 1)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ([], "no arrays"),
        ([np.zeros((4, 3, 1))], r"array 0 of shape \(4, 3, 1\) is larger than \(3, 4\)"),
        ([np.zeros((2, 3, 1)), np.zeros((2, 3, 2))], "array 1 is float64"),
        ([np.zeros((2, 3, 1)), np.zeros((2, 3, 1), np.int8)], "expected float64"),
        ([np.zeros((2, 1))], "2 spatial axes"),
    ],
)
def test_pad_batch_refuses_what_does_not_fit(arrays, said):
    with pytest.raises(ValueError, match=said):
        pad_batch(arrays, (3, 4))
