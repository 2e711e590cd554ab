"""The plain path: each bin's cells side by side, handed to a function of (cells, mask)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Shaped

from spp_jax.pooling.bins import Levels, bin_edges, longest_bin
from spp_jax.pooling.checks import check_shape
from spp_jax.pooling.reductions import CellFunction
from spp_jax.pooling.windows import Boxes, every_window


def pool_cells(
    function: CellFunction,
    features: Shaped[Array, "batch *spatial channels"],
    starts: Boxes,
    lengths: Boxes,
    levels: Levels,
    rule: str,
) -> Shaped[Array, "batch windows bins channels"]:
    """Windows of features that are cast already, level by level; empty bins give zeros."""

    def pool(features, starts, lengths):
        return jnp.concatenate(
            [_pool_cells_of_level(function, features, starts, lengths, level, rule) for level in levels], 1
        )

    return every_window(pool)(features, starts, lengths)


def _pool_cells_of_level(
    function: CellFunction,
    features: Shaped[Array, "batch *spatial channels"],
    starts: Int32[Array, "batch rank"],
    lengths: Int32[Array, "batch rank"],
    level: tuple[int, ...],
    rule: str,
) -> Shaped[Array, "batch bins channels"]:
    """Each bin's cells side by side, as many as the longest bin can have; masked, then the function."""
    batch, *spatial, channels = features.shape
    rank = len(level)
    cells, mask = features, jnp.ones((batch, *(1,) * (2 * rank), 1), bool)
    for axis, (bins, extent) in enumerate(zip(level, spatial, strict=True)):
        at = 1 + 2 * axis  # the axes before are bins and cells in turn
        first, stop = bin_edges(lengths[:, axis], bins, rule=rule)
        place = first[..., None] + jnp.arange(longest_bin(extent, bins, rule), dtype=jnp.int32)
        inside = place < stop[..., None]
        place = jnp.clip(starts[:, axis, None, None] + place, 0, extent - 1)
        mask = mask & inside.reshape(batch, *(1,) * (at - 1), *inside.shape[1:], *(1,) * (2 * rank - at))
        cells = jax.vmap(lambda image, where, at=at: jnp.take(image, where, axis=at - 1))(cells, place)
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    bins = math.prod(level)
    mask = mask.transpose(order).reshape(batch, bins, -1, 1)
    cells = cells.transpose(order).reshape(batch, bins, -1, channels)
    # An empty bin is shown to the function as full of zeros: a mean of nothing would be NaN.
    empty = ~mask.any(2)
    cells = jnp.where(mask, cells, jnp.zeros((), cells.dtype))
    pooled = jax.vmap(jax.vmap(function))(cells, mask | empty[:, :, None])
    check_shape(pooled, (batch, bins, channels))
    return jnp.where(empty, jnp.zeros((), pooled.dtype), pooled)
