"""Depthwise convolution: each channel by a kernel of its own, in the form that is fast on each backend.

XLA's grouped convolution is fast on accelerators and, on a CPU, tens of times slower than the arithmetic
takes. There the convolution is a sum of shifted products, one for each cell of the kernel, which XLA fuses
into one pass over the map. It is bilinear, and so are its two derivatives; each has a form of its own:

- for the images, one sum of shifted products for each phase of the strides, so that no zeros are
  multiplied;
- for the kernel, a loop over blocks of rows, which stay in the cache while every cell of the kernel has its
  sum from them.

The derivatives of the three are each other, so that the gradient may be differentiated again. Forward mode
(``jax.jvp``) is not supported.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["depthwise_conv"]

_ROWS, _PARTS = 4, 4  # of a block, and the parts of its rows that are summed: one accumulator for 16 products


class _Window(NamedTuple):
    """What is static: per spatial axis, the padding (low, high) and the stride."""

    padding: tuple[tuple[int, int], tuple[int, int]]
    strides: tuple[int, int]


def depthwise_conv(
    images: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
) -> jax.Array:
    """Convolve each channel with its own kernel (a cross-correlation, as everywhere in this field).

    On a CPU, sums are at least float32, whatever the dtype.

    Args:
        images: ``[batch, height, width, channels]``, floating.
        kernel: ``[rows, columns, channels]``, of the same dtype.
        strides: static; cells from one window to the next, per spatial axis.
        padding: static; zeros (before, behind) each spatial axis.

    Returns:
        ``[batch, height_out, width_out, channels]``, with sizes
        ``(size + before + behind - window) // stride + 1``.

    Raises:
        ValueError: shapes or dtypes do not fit each other.

    Example::

        same = depthwise_conv(x, jnp.full((3, 3, x.shape[-1]), 1 / 9), padding=((1, 1), (1, 1)))
    """
    if images.ndim != 4 or kernel.ndim != 3 or images.shape[-1] != kernel.shape[-1]:
        raise ValueError(
            "depthwise_conv: images must be [batch, height, width, channels] and the kernel "
            f"[rows, columns, channels], got {images.shape} and {kernel.shape}"
        )
    if images.dtype != kernel.dtype or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"depthwise_conv: images and kernel must be of one floating dtype, got {images.dtype} and "
            f"{kernel.dtype}"
        )
    before, behind = ((low, high) for low, high in padding)
    window = _Window((before, behind), (int(strides[0]), int(strides[1])))
    return _convolve(window, images, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution itself."""
    return lax.platform_dependent(
        images,
        kernel,
        cpu=functools.partial(_shifted, window),
        default=functools.partial(_grouped, window),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _for_images(window: _Window, extent: tuple[int, int], out: jax.Array, kernel: jax.Array) -> jax.Array:
    """The transpose in the images, ``extent`` cells each."""

    def transposed(out, kernel):
        shape = (out.shape[0], *extent, out.shape[-1])
        pull = jax.linear_transpose(
            lambda images: _grouped(window, images, kernel), jax.ShapeDtypeStruct(shape, out.dtype)
        )
        return pull(out)[0]

    cpu = functools.partial(_shifted_back, window, extent)
    return lax.platform_dependent(out, kernel, cpu=cpu, default=transposed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _for_kernel(window: _Window, cells: tuple[int, int], images: jax.Array, out: jax.Array) -> jax.Array:
    """The transpose in the kernel, of ``cells`` rows and columns."""

    def transposed(images, out):
        pull = jax.linear_transpose(
            lambda kernel: _grouped(window, images, kernel),
            jax.ShapeDtypeStruct((*cells, images.shape[-1]), images.dtype),
        )
        return pull(out)[0]

    cpu = functools.partial(_summed, window, cells)
    return lax.platform_dependent(images, out, cpu=cpu, default=transposed)


def _pull_convolve(window, arguments, out):
    images, kernel = arguments
    return (
        _for_images(window, images.shape[1:3], out, kernel),
        _for_kernel(window, kernel.shape[:2], images, out),
    )


def _pull_for_images(window, extent, arguments, images):
    out, kernel = arguments
    return _convolve(window, images, kernel), _for_kernel(window, kernel.shape[:2], images, out)


def _pull_for_kernel(window, cells, arguments, kernel):
    images, out = arguments
    return _for_images(window, images.shape[1:3], out, kernel), _convolve(window, images, kernel)


def _keeping(function: Callable) -> Callable:
    """The value, and the two arguments for its derivative."""
    return lambda *arguments: (function(*arguments), arguments[-2:])


_convolve.defvjp(_keeping(_convolve), _pull_convolve)
_for_images.defvjp(_keeping(_for_images), _pull_for_images)
_for_kernel.defvjp(_keeping(_for_kernel), _pull_for_kernel)


def _grouped(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    """As XLA has it: a group for each channel."""
    return lax.conv_general_dilated(
        images,
        kernel[:, :, None],
        window.strides,
        window.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


def _shifted(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    """A sum of shifted products."""
    (stride, across), dtype = window.strides, images.dtype
    height, width = _output_extent(window, images.shape[1:3], kernel.shape[:2])
    images, kernel = _wide(lax.pad(images, jnp.zeros((), dtype), _edges(window.padding)), kernel)
    extent = max(1 + stride * (height - 1), 0), max(1 + across * (width - 1), 0)
    products = (
        _times(_cut(images, (i, j), extent, window.strides), kernel, (i, j))
        for i, j in _places((kernel.shape[0], kernel.shape[1]))
    )
    return _sum(products).astype(dtype)


def _shifted_back(window: _Window, extent: tuple[int, int], out: jax.Array, kernel: jax.Array) -> jax.Array:
    """Each phase of the strides, the images' cells ``phase, phase + stride, ...``, is such a sum."""
    dtype = out.dtype
    axes = [
        _Phases.of(size, cells, stride, low, have)
        for size, cells, stride, (low, _), have in zip(
            extent, kernel.shape[:2], window.strides, window.padding, out.shape[1:3], strict=True
        )
    ]
    rows, columns = axes
    out, kernel = _wide(lax.pad(out, jnp.zeros((), dtype), _edges([rows.edges, columns.edges])), kernel)
    nothing = jnp.zeros((out.shape[0], rows.cells, columns.cells, out.shape[3]), out.dtype)

    def phase(down: Sequence[tuple[int, int]], across: Sequence[tuple[int, int]]) -> jax.Array:
        products = (
            _times(_cut(out, (u, v), (rows.cells, columns.cells)), kernel, (i, j))
            for i, u in down
            for j, v in across
        )
        return _sum(products) if down and across else nothing

    phases = jnp.stack(
        [jnp.stack([phase(down, across) for across in columns.taps], 3) for down in rows.taps], 2
    )
    batch, *_, channels = nothing.shape
    whole = phases.reshape(batch, rows.cells * len(rows.taps), columns.cells * len(columns.taps), channels)
    return whole[:, : extent[0], : extent[1]].astype(dtype)


class _Phases(NamedTuple):
    """Of one axis: which cells of the kernel meet which of the output, for each phase of the stride.

    Attributes:
        cells: of a phase.
        edges: zeros before and behind the output.
        taps: for each phase, pairs of a cell of the kernel and where in the output, so padded, it begins.
    """

    cells: int
    edges: tuple[int, int]
    taps: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, size: int, window: int, stride: int, low: int, have: int) -> "_Phases":
        # Cell `phase + stride * p` of the images is cell `i` of the window that stands at `p + u`.
        taps = [
            [(i, (phase + low - i) // stride) for i in range(window) if not (phase + low - i) % stride]
            for phase in range(stride)
        ]
        cells = -(-size // stride)
        begins = [u for within in taps for _, u in within]
        before = max(0, -min(begins))
        behind = max(0, cells + max(begins) - have)
        return cls(cells, (before, behind), [[(i, u + before) for i, u in within] for within in taps])


def _summed(window: _Window, cells: tuple[int, int], images: jax.Array, out: jax.Array) -> jax.Array:
    """Sums of products over a block of rows at a time."""
    (stride, across), dtype = window.strides, out.dtype
    batch, height, width, channels = out.shape
    rows = min(_ROWS, height)
    steps, part = -(-height // rows), -(-width // _PARTS)
    taken = stride * (rows - 1) + cells[0]
    # Zeros behind make even blocks and parts.
    needed = stride * (steps * rows - 1) + cells[0], across * (part * _PARTS - 1) + cells[1]
    edges = [
        (low, max(high, need - have - low))
        for (low, high), need, have in zip(window.padding, needed, images.shape[1:3], strict=True)
    ]
    zero = jnp.zeros((), dtype)
    images = lax.pad(images, zero, _edges(edges))
    out = lax.pad(out, zero, _edges([(0, steps * rows - height), (0, part * _PARTS - width)]))
    sums = jnp.zeros((batch, part, channels), _accumulated(dtype))

    def step(number, sums):
        block, ours = _wide(
            lax.dynamic_slice_in_dim(images, number * rows * stride, taken, 1),
            lax.dynamic_slice_in_dim(out, number * rows, rows, 1),
        )

        @functools.cache  # cells of the kernel share them
        def theirs(row: int, begin: int) -> jax.Array:
            cut = _cut(block, (row, begin), (1, across * (part - 1) + 1), (1, across))
            return lax.squeeze(cut, (1,))

        firsts = range(0, part * _PARTS, part)
        mine = [
            (row, first, lax.squeeze(_cut(ours, (row, first), (1, part)), (1,)))
            for row in range(rows)
            for first in firsts
        ]
        return tuple(
            lax.add(
                _sum(
                    lax.mul(theirs(i + stride * row, j + across * first), piece) for row, first, piece in mine
                ),
                found,
            )
            for (i, j), found in zip(_places(cells), sums, strict=True)
        )

    sums = lax.fori_loop(0, steps, step, (sums,) * math.prod(cells))
    return jnp.stack([found.sum((0, 1)) for found in sums]).reshape(*cells, channels).astype(dtype)


def _cut(
    images: jax.Array, begin: tuple[int, int], extent: tuple[int, int], strides: tuple[int, int] = (1, 1)
) -> jax.Array:
    """Rows and columns from ``begin`` on: what indexing gives, traced in a fraction of the time."""
    (top, left), (height, width), (batch, *_, channels) = begin, extent, images.shape
    stop = batch, top + height, left + width, channels
    return lax.slice(images, (0, top, left, 0), stop, (1, *strides, 1))


def _times(images: jax.Array, kernel: jax.Array, place: tuple[int, int]) -> jax.Array:
    """Each channel times its cell of the kernel at this place."""
    channels = kernel.shape[2]
    cell = lax.slice(kernel, (*place, 0), (place[0] + 1, place[1] + 1, channels))
    return lax.mul(images, lax.broadcast_in_dim(lax.squeeze(cell, (0, 1)), images.shape, (3,)))


def _sum(products: Iterable[jax.Array]) -> jax.Array:
    """One after the other, in order; there is at least one."""
    return functools.reduce(lax.add, products)


def _places(cells: tuple[int, int]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(cells[0]) for j in range(cells[1])]


def _output_extent(window: _Window, extent: Sequence[int], cells: Sequence[int]) -> tuple[int, int]:
    height, width = (
        max((size + low + high - cell) // stride + 1, 0)
        for size, cell, stride, (low, high) in zip(extent, cells, window.strides, window.padding, strict=True)
    )
    return height, width


def _edges(padding: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    return [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]


def _accumulated(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _wide(*arrays: jax.Array) -> list[jax.Array]:
    return [array.astype(_accumulated(array.dtype)) for array in arrays]
