"""The op: pyramids of bins over whole feature maps and over windows of them.

Conventions, said once: arrays are channels-last, ``[batch, *spatial, channels]``, with one to three
spatial axes. Sizes are int32 ``[batch, spatial_rank]``, counted in cells of the feature map (not in
pixels), height before width. Bins are half open. ``levels`` and ``rule`` are static under ``jit``, and so
is what is hashable about ``reduce``; everything else is data.

How it runs. A map is a window that starts at 0, so there is one path. A monoid reads each axis in turn:
the axis is cut into segments that serve all levels (:class:`spp_jax.pooling.bins.AxisPlan`), each segment is
combined to one state (:mod:`spp_jax.pooling.reading`), and bins are joined from segments. Reading is the only
part that touches the whole map; :mod:`spp_jax.pooling.derivatives` says what its derivative is. Whatever is
not a monoid is handed its cells bin by bin (:mod:`spp_jax.pooling.cells`).

Source: K. He, X. Zhang, S. Ren, J. Sun, "Spatial Pyramid Pooling in Deep Convolutional Networks for
Visual Recognition", ECCV 2014 (arXiv:1406.4729), section 2.2 for the pyramid and appendix A for the
floor/ceil rule of the bins and for windows.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from spp_jax.pooling.bins import AxisPlan, Level, Levels, cells_in_bins, num_bins, rule_named
from spp_jax.pooling.cells import pool_cells
from spp_jax.pooling.checks import check_shape, checked_features, checked_sizes, checked_windows
from spp_jax.pooling.derivatives import differentiable
from spp_jax.pooling.reductions import CellFunction, Monoid, Reduction, reduction_named
from spp_jax.pooling.windows import Boxes, in_any_window

__all__ = ["pool_windows", "spatial_pyramid_pool"]

_Pooled: TypeAlias = Shaped[Array, "batch windows bins channels"]


def spatial_pyramid_pool(
    features: Shaped[Array | np.ndarray, "batch *spatial channels"],
    sizes: Array | np.ndarray | Sequence[Sequence[int]] | None = None,
    *,
    levels: Sequence[Level] = (1, 2, 4),
    reduce: Reduction = "max",
    rule: str = "adaptive",
) -> Shaped[Array, "batch bins channels"]:
    """Pool each feature map over a pyramid of bins into a vector of fixed length.

    With max the index of each bin's winner is kept when a derivative is taken, and the derivative goes
    through that index: ties go to the first cell in row-major order and a NaN wins its bin, as in
    torch. (A gradient that finds the winner again by comparing values is silently wrong under ``jit``.)
    All reductions here can be differentiated forward and backward, repeatedly.

    Args:
        features: ``[batch, *spatial, channels]``, one to three spatial axes. Max takes any real
            dtype, the others floating ones.
        sizes: int32 ``[batch, spatial_rank]``, the true cells of each map, between 1 and the array's
            own extent; cells beyond are never read, whatever they hold. A row that is 0 along every
            axis is a filler. None: every cell is real. Under ``jit``, where values cannot be checked,
            sizes are clipped to between 0 and the extent, and a map with a size of 0 is a filler.
        levels: static; each level an int, or one int per spatial axis.
        reduce: a name (``"max"``, ``"mean"``, ``"generalized_mean"``, ``"top_k_mean"``) or a reduction
            as :mod:`spp_jax.pooling.reductions` describes; a pytree, its arrays differentiated.
        rule: static; where bins lie, as :mod:`spp_jax.pooling.bins` describes.

    Returns:
        ``[batch, num_bins(levels), channels]`` in the dtype of ``features``: bins in the order of
        ``levels``, row-major inside a level. Fillers, and bins that a rule leaves empty, give zeros,
        with zero gradient.

    Raises:
        ValueError: shapes do not fit, a size known now is outside the array or 0 along some axes only,
            ``levels`` is malformed (:func:`spp_jax.pooling.bins.normalize_levels`), ``reduce`` or ``rule`` is
            unknown, or the rule is not defined for a size known now.
        TypeError: a dtype that the reduction does not take, or a reduction that gives another shape.

    Source: SPP-net, section 2.2 and appendix A.

    Example:
        >>> features = jnp.arange(12.0).reshape(1, 3, 4, 1)
        >>> spatial_pyramid_pool(features, [[2, 3]], levels=(1, 2))[0, :, 0].tolist()
        [6.0, 1.0, 2.0, 5.0, 6.0]
    """
    features, pyramid = checked_features(features, levels)
    lengths = checked_sizes(sizes, features, pyramid, rule)[:, None]
    reduction = reduction_named(reduce)
    return _pool(features, jnp.zeros_like(lengths), lengths, reduction, levels=pyramid, rule=rule)[:, 0]


def pool_windows(
    features: Shaped[Array | np.ndarray, "batch *spatial channels"],
    windows: Array | np.ndarray | Sequence[Any],
    sizes: Array | np.ndarray | Sequence[Sequence[int]] | None = None,
    *,
    levels: Sequence[Level] = (1, 2, 4),
    reduce: Reduction = "max",
    rule: str = "adaptive",
) -> Shaped[Array, "batch windows bins channels"]:
    """Pool any number of windows of each feature map over a pyramid of bins.

    What :func:`spatial_pyramid_pool` gives on each window cut out, in one call with the windows as data:
    run the convolutions once and score every region (SPP-net, section 4, detection). On a CPU, windows that
    come one after the other with the same starts and stops on the first axis read their rows once, so sorted
    windows are read sooner; on other backends each window is read alone.

    Args:
        features: as there.
        windows: int32 ``[batch, windows, 2, spatial_rank]``: starts, stops, half open, in cells.
            A window that is empty along every axis is a filler. Under ``jit``, where values cannot be
            checked, windows are clipped to the true cells, and one that is empty then is a filler.
            :func:`spp_jax.boxes_to_windows` makes them from boxes in the picture.
        sizes: as there.
        levels: as there.
        reduce: as there.
        rule: as there.

    Returns:
        ``[batch, windows, num_bins(levels), channels]`` in the dtype of ``features``; zeros for fillers.

    Raises:
        ValueError: as there; also if a window known now reaches beyond its map's true size, stops
            before it starts, or is empty along some axes only.
        TypeError: as there; also for windows that are no integers.

    Example:
        >>> features = jnp.arange(12.0).reshape(1, 3, 4, 1)
        >>> windows = [[[[0, 0], [2, 2]], [[1, 1], [3, 4]]]]
        >>> pool_windows(features, windows, levels=(1,))[0, :, 0, 0].tolist()
        [5.0, 11.0]
    """
    features, pyramid = checked_features(features, levels)
    lengths = checked_sizes(sizes, features, pyramid, rule)
    starts, window_lengths = checked_windows(windows, features, lengths, pyramid, rule)
    return _pool(features, starts, window_lengths, reduction_named(reduce), levels=pyramid, rule=rule)


@functools.partial(jax.jit, static_argnames=("levels", "rule"), inline=True)
def _pool(
    features: Shaped[Array, "batch *spatial channels"],
    starts: Boxes,
    lengths: Boxes,
    reduction: Monoid | CellFunction,
    *,
    levels: Levels,
    rule: str,
) -> _Pooled:
    batch, windows, rank = starts.shape
    dtype, channels = features.dtype, features.shape[-1]
    if not windows or 0 in features.shape:
        return jnp.zeros((batch, windows, num_bins(levels, rank), channels), dtype)
    if not (isinstance(reduction, Monoid) and reduction.selects):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"only max and min take features of dtype {dtype}; the others, floating ones")
        features = features.astype(jnp.promote_types(dtype, jnp.float32))
    if isinstance(reduction, Monoid):
        pooled = _pool_monoid(reduction, features, starts, lengths, levels, rule)
    else:
        pooled = pool_cells(reduction, features, starts, lengths, levels, rule)
    return pooled.astype(dtype)


def _pool_monoid(
    monoid: Monoid,
    features: Shaped[Array, "batch *spatial channels"],
    starts: Boxes,
    lengths: Boxes,
    levels: Levels,
    rule: str,
) -> _Pooled:
    if monoid.touches_outside:
        real = in_any_window(features.shape[1:-1], starts, lengths)
        features = jnp.where(real, features, jnp.ones((), features.dtype))
    state = monoid.lift(features)
    together = [levels] if rule_named(rule).nests else [(level,) for level in levels]
    parts = []
    for group in together:
        counts = (tuple(sorted(set(axis))) for axis in zip(*group, strict=True))
        axes = tuple(AxisPlan(axis, rule, twice=monoid.idempotent) for axis in counts)
        parts.append(differentiable(monoid, group, axes)(state, starts, lengths))
    state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=2), *parts)
    count = cells_in_bins(lengths, levels, rule)
    # Where only a filler has empty bins, say so by its size: far cheaper than by counts.
    empty = count == 0 if rule_named(rule).empties else (lengths == 0).any(-1)[..., None, None]
    # Ones where a bin is empty: finish never sees what it could make NaN of, in a gradient either.
    state = jax.tree.map(lambda leaf: jnp.where(empty, jnp.ones((), leaf.dtype), leaf), state)
    pooled = monoid.finish(state, jnp.maximum(count, 1))
    check_shape(pooled, (*count.shape[:-1], features.shape[-1]))
    return jnp.where(empty, jnp.zeros((), pooled.dtype), pooled)
