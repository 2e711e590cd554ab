"""Windows of a map: from boxes in the picture, one after the other, and the cells in any of them."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32, PyTree

__all__ = ["boxes_to_windows"]

Boxes: TypeAlias = Int32[Array, "batch windows rank"]
"""Of windows: their starts, or their lengths, in cells."""


def boxes_to_windows(boxes, strides: Sequence[int], offsets: Sequence[float], sizes=None):
    """The window of cells that a box in the picture covers.

    Those cells whose receptive field's centre lies inside the box: with ``x`` the box's edges and ``S``
    the product of the strides, ``floor(x/S) + 1`` to ``ceil(x/S) - 1``, after taking the offset of the
    first centre from ``x`` (SPP-net, appendix A, "Mapping a Window to Feature Maps"). Edges lie between
    pixels: a box that starts at pixel 3 starts at 2.5. A box that holds no centre gets the one cell
    nearest to its middle. The whole picture gives the whole map where a layer pads by half its window.

    Args:
        boxes: ``[..., 2, spatial_rank]``: starts, stops, half open, in pixels; integers, or floating
            where pictures were scaled. NumPy in, NumPy out; JAX in, JAX out.
        strides: per spatial axis, pixels from one centre to the next, as ``Geometry.strides`` has them.
        offsets: per spatial axis, the pixel of the first centre: ``Geometry.offsets``. Multiples of 1/2.
        sizes: integers that broadcast against ``[..., spatial_rank]``: the map's true cells. Windows are
            clipped to them, and the nearest cell is one of theirs. None: windows may reach beyond the
            map, even where a box at the picture's edge does not reach beyond the picture.

    Returns:
        int32 ``[..., 2, spatial_rank]`` windows, in cells.

    Raises:
        ValueError: the boxes' shape is another.

    Example:
        >>> boxes_to_windows([[32, 32], [100, 100]], strides=(16, 16), offsets=(0, 0)).tolist()
        [[2, 2], [7, 7]]
    """
    xp = jnp if isinstance(boxes, jax.Array) or isinstance(sizes, jax.Array) else np
    boxes = xp.asarray(boxes)
    rank = len(strides)
    if boxes.ndim < 2 or boxes.shape[-2:] != (2, rank):
        raise ValueError(f"boxes must have shape [..., 2, {rank}] (starts and stops), got {boxes.shape}")
    integers = xp.issubdtype(boxes.dtype, xp.integer)
    boxes = boxes.astype(np.int32 if integers else xp.promote_types(boxes.dtype, np.float32))
    # In half pixels everything is an integer.
    step = 2 * np.asarray(strides, np.int32)
    first = np.asarray([round(2 * offset) for offset in offsets], np.int32)
    edges = 2 * boxes - 1 - first
    starts = edges[..., 0, :] // step + 1
    stops = -(-edges[..., 1, :] // step)
    nearest = ((edges[..., 0, :] + edges[..., 1, :]) // 2 + step // 2) // step
    if sizes is not None:
        sizes = xp.asarray(sizes)
        starts, stops = xp.clip(starts, 0, sizes), xp.clip(stops, 0, sizes)
        nearest = xp.clip(nearest, 0, sizes - 1)
    empty = starts >= stops
    starts, stops = xp.where(empty, nearest, starts), xp.where(empty, nearest + 1, stops)
    return xp.stack([starts, stops], axis=-2).astype(np.int32)


def every_window(pool: Callable) -> Callable:
    """From a function of one window of each map to one of ``[batch, windows, rank]``: a loop over windows."""

    def pool_windows(features: PyTree, starts: Boxes, lengths: Boxes) -> PyTree:
        if starts.shape[1] == 1:
            pooled = pool(features, starts[:, 0], lengths[:, 0])
            return jax.tree.map(lambda leaf: leaf[:, None], pooled)
        boxes = jnp.moveaxis(starts, 1, 0), jnp.moveaxis(lengths, 1, 0)
        pooled = lax.map(lambda box: pool(features, *box), boxes)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), pooled)

    return pool_windows


def in_any_window(spatial: tuple[int, ...], starts: Boxes, lengths: Boxes) -> Bool[Array, "batch *spatial 1"]:
    """Where a cell is in some window: windows counted, as the product of where they are on each axis."""
    covered = []
    for axis, extent in enumerate(spatial):
        line = jnp.arange(extent, dtype=jnp.int32)
        start, length = starts[..., axis, None], lengths[..., axis, None]
        covered.append(((line >= start) & (line < start + length)).astype(jnp.float32))
    axes = "xyz"[: len(spatial)]
    counts = jnp.einsum(f"{','.join('bw' + axis for axis in axes)}->b{axes}", *covered)
    return (counts > 0.5)[..., None]
