"""The depthwise convolution and its derivatives, in each form, against loops in NumPy, and against torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from spp_jax import depthwise
from spp_jax.depthwise import depthwise_conv

CASES = [  # size, kernel, strides, padding
    ((7, 9), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((8, 10), (3, 3), (2, 2), ((0, 1), (0, 1))),
    ((9, 6), (5, 5), (2, 2), ((1, 3), (1, 3))),
    ((5, 4), (5, 5), (1, 1), ((2, 2), (2, 2))),
    ((11, 7), (2, 3), (3, 1), ((0, 2), (2, 0))),
    ((6, 7), (1, 2), (3, 4), ((0, 0), (3, 1))),  # some cells are in no window
]


def loop(images, kernel, strides, padding):
    """Window by window."""
    padded = np.pad(images, ((0, 0), *padding, (0, 0)))
    extent = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:3], kernel.shape, strides, strict=False)]
    out = np.zeros((len(images), *extent, images.shape[-1]))
    for y, x in np.ndindex(*extent):
        top, left = y * strides[0], x * strides[1]
        window = padded[:, top : top + kernel.shape[0], left : left + kernel.shape[1]]
        out[:, y, x] = (window * kernel).sum((1, 2))
    return out


def arrays(size, kernel, channels=3, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, *size, channels)), rng.normal(size=(*kernel, channels))


@pytest.fixture(params=["of this backend", "grouped"])
def form(request, monkeypatch):
    """Also the form of other backends, on this one."""
    if request.param == "grouped":
        default = functools.partial(lambda *args, default, **_: default(*args))
        monkeypatch.setattr(depthwise.lax, "platform_dependent", default)
        jax.clear_caches()
        yield
        jax.clear_caches()
    else:
        yield


@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), CASES)
def test_each_window_of_each_channel_is_summed(size, kernel, strides, padding, form, x64):
    images, weights = arrays(size, kernel)
    found = depthwise_conv(jnp.asarray(images), jnp.asarray(weights), strides=strides, padding=padding)
    expected = loop(images, weights, strides, padding)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), CASES)
def test_its_gradients_are_the_transposes_of_the_loop(size, kernel, strides, padding, form, x64):
    images, weights = arrays(size, kernel)

    def forward(images, weights):
        return depthwise_conv(images, weights, strides=strides, padding=padding)

    out, pull = jax.vjp(jax.jit(forward), jnp.asarray(images), jnp.asarray(weights))
    cotangent = np.random.default_rng(1).normal(size=out.shape)
    for_images, for_kernel = pull(jnp.asarray(cotangent))
    # Linear in each: its value at a direction, times the cotangent, is the direction times the gradient.
    for seed in range(3):
        images_to, weights_to = arrays(size, kernel, seed=10 + seed)
        expected = (loop(images_to, weights, strides, padding) * cotangent).sum()
        np.testing.assert_allclose((images_to * for_images).sum(), expected, rtol=1e-10)
        expected = (loop(images, weights_to, strides, padding) * cotangent).sum()
        np.testing.assert_allclose((weights_to * for_kernel).sum(), expected, rtol=1e-10)


def test_it_is_differentiated_backwards_again(x64):
    images, weights = map(jnp.asarray, arrays((6, 7), (3, 3), batch=1))
    forward = functools.partial(depthwise_conv, strides=(2, 1), padding=((0, 2), (1, 1)))
    check_grads(lambda x, k: forward(jnp.sin(x), k**2), (images, weights), 2, modes=["rev"])


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 4)]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.tuples(st.integers(1, 3), st.integers(2, 3))] * 2),
)
def test_any_size_stride_and_padding_gives_what_the_grouped_form_gives(size, kernel, strides, padding):
    with jax.enable_x64(True):
        images, weights = map(jnp.asarray, arrays(size, kernel, batch=1))
        window = depthwise._Window(padding, strides)

        @jax.jit  # one program a shape, and not dozens
        def both(images, weights):
            expected, pull = jax.vjp(functools.partial(depthwise._grouped, window), images, weights)
            found = (
                depthwise._shifted(window, images, weights),
                depthwise._shifted_back(window, size, expected, weights),
                depthwise._summed(window, kernel, images, expected),
            )
            return found, (expected, *pull(expected))

        for found, expected, error in zip(*both(images, weights), (1e-12, 1e-11, 1e-11), strict=True):
            np.testing.assert_allclose(found, expected, atol=error)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_are_summed_in_float32(dtype):
    images, weights = (jnp.asarray(array, dtype) for array in arrays((7, 9), (5, 5)))
    padding = ((2, 2), (2, 2))
    out, pull = jax.vjp(functools.partial(depthwise_conv, padding=padding), images, weights)
    assert out.dtype == dtype
    expected = loop(np.asarray(images, np.float64), np.asarray(weights, np.float64), (1, 1), padding)
    np.testing.assert_allclose(np.asarray(out, float), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-3)
    assert [gradient.dtype for gradient in pull(out)] == [dtype, dtype]


def test_under_vmap_it_gives_each_its_own(x64):
    images, weights = arrays((6, 5), (3, 3), batch=6)
    weights = np.stack([weights, -2 * weights, weights[::-1]])
    images = images.reshape(3, 2, *images.shape[1:])
    found = jax.vmap(functools.partial(depthwise_conv, padding=((1, 1), (1, 1))))(
        jnp.asarray(images), jnp.asarray(weights)
    )
    for n in range(3):
        expected = loop(images[n], weights[n], (1, 1), ((1, 1), (1, 1)))
        np.testing.assert_allclose(found[n], expected, atol=1e-12)


@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), CASES[:4])
def test_torch_gives_the_same(size, kernel, strides, padding):
    torch = pytest.importorskip("torch", reason="the comparison with torch needs the extra 'compare'")
    images, weights = (array.astype(np.float32) for array in arrays(size, kernel))
    forward = functools.partial(depthwise_conv, strides=strides, padding=padding)
    out, pull = jax.vjp(forward, jnp.asarray(images), jnp.asarray(weights))
    leaves = [torch.tensor(array, requires_grad=True) for array in (images, weights)]
    (top, bottom), (left, right) = padding
    padded = torch.nn.functional.pad(leaves[0].permute(0, 3, 1, 2), (left, right, top, bottom))
    theirs = torch.nn.functional.conv2d(
        padded, leaves[1].permute(2, 0, 1)[:, None], stride=strides, groups=images.shape[-1]
    ).permute(0, 2, 3, 1)
    theirs.backward(theirs.detach())
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)
    for gradient, leaf in zip(pull(out), leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused():
    images, kernel = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3))
    with pytest.raises(ValueError, match=r"got \(1, 4, 4, 3\) and \(3, 3, 2\)"):
        depthwise_conv(images, kernel[..., :2])
    with pytest.raises(ValueError, match="of one floating dtype, got float32 and bfloat16"):
        depthwise_conv(images, kernel.astype(jnp.bfloat16))
