"""The op: pyramids of bins over whole feature maps and over windows of them.

Conventions, said once: arrays are channels-last, ``[batch, *spatial, channels]``, with one to three
spatial axes. Sizes are int32 ``[batch, spatial_rank]``, counted in cells of the feature map (not in
pixels), height before width. Bins are half open. ``levels`` and ``rule`` are static under ``jit``, and so
is what is hashable about ``reduce``; everything else is data.

How it runs. A map is a window that starts at 0, so there is one path. A monoid reads each axis in turn:
the axis is cut into segments that serve all levels (:class:`spp_jax.pooling.bins.AxisPlan`), each segment is
combined to one state (:mod:`spp_jax.pooling.reading`), and bins are joined from segments. Reading is the only
part that touches the whole map. Whatever is not a monoid is handed its cells bin by bin.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Spatial Pyramid Pooling in Deep Convolutional Networks for
Visual Recognition", ECCV 2014 (arXiv:1406.4729), section 2.2 for the pyramid and appendix A for the
floor/ceil rule of the bins and for windows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Int32, PyTree, Shaped

from spp_jax.pooling.bins import (
    AxisPlan,
    Level,
    bin_edges,
    check_lengths,
    longest_bin,
    normalize_levels,
    num_bins,
    rule_named,
)
from spp_jax.pooling.reading import NO_WINNER, PLAIN, SUMS, VALUES, WINNERS, Winner, read_pyramid
from spp_jax.pooling.reductions import CellFunction, Monoid, Reduction, reduction_named

__all__ = ["boxes_to_windows", "pool_windows", "spatial_pyramid_pool"]

_Levels: TypeAlias = tuple[tuple[int, ...], ...]
_Boxes: TypeAlias = Int32[Array, "batch windows rank"]
_Pooled: TypeAlias = Shaped[Array, "batch windows bins channels"]

_DENSE_BINS = 128  # up to here a TPU finds each cell's winners by comparing rather than by scattering


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
    """
    features, pyramid = _checked_features(features, levels)
    lengths = _checked_sizes(sizes, features, pyramid, rule)[:, None]
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
    run the convolutions once and score every region (SPP-net, section 4, detection).

    Args:
        features: as there.
        windows: int32 ``[batch, windows, 2, spatial_rank]``: starts, stops, half open, in cells.
            A window that is empty along every axis is a filler. Under ``jit``, where values cannot be
            checked, windows are clipped to the true cells, and one that is empty then is a filler.
            :func:`boxes_to_windows` makes them from boxes in the picture.
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
    """
    features, pyramid = _checked_features(features, levels)
    lengths = _checked_sizes(sizes, features, pyramid, rule)
    starts, window_lengths = _checked_windows(windows, features, lengths, pyramid, rule)
    return _pool(features, starts, window_lengths, reduction_named(reduce), levels=pyramid, rule=rule)


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


# --- checks -----------------------------------------------------------------------------------------


def _checked_features(features, levels) -> tuple[jax.Array, _Levels]:
    features = jnp.asarray(features)
    rank = features.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            "features must be [batch, *spatial, channels] with 1 to 3 spatial axes, got shape "
            f"{features.shape}"
        )
    if not all(features.shape[1:-1]):
        raise ValueError(f"features of shape {features.shape} have a spatial axis without cells")
    return features, normalize_levels(levels, rank)


def _checked_sizes(sizes, features: jax.Array, levels: _Levels, rule: str) -> jax.Array:
    extent = np.asarray(features.shape[1:-1], np.int32)
    expected = (features.shape[0], len(extent))
    if sizes is None:
        sizes = np.broadcast_to(extent, expected)
    sizes = _as_array(sizes)
    _check_integers(sizes, expected, "sizes", "(batch, spatial axes)", features)
    if not isinstance(sizes, Tracer):
        known = np.asarray(sizes)
        _refuse((known < 0) | (known > extent), "sizes", known, f"outside the array: 0 to {extent.tolist()}")
        _refuse_half_empty(known, "sizes", known)
        _check_rule(known, levels, rule)
    return jnp.clip(jnp.asarray(sizes, jnp.int32), 0, extent)


def _checked_windows(windows, features: jax.Array, sizes: jax.Array, levels: _Levels, rule: str):
    windows = _as_array(windows)
    count = windows.shape[1] if windows.ndim > 1 else 0
    expected = (features.shape[0], count, 2, features.ndim - 2)
    _check_integers(windows, expected, "windows", "(batch, windows, 2, spatial axes)", features)
    if not isinstance(windows, Tracer):
        known = np.asarray(windows).astype(np.int64)  # unsigned ones wrap
        lengths = known[:, :, 1] - known[:, :, 0]
        _refuse(lengths < 0, "windows", known, "reversed: it stops before it starts")
        _refuse_half_empty(lengths, "windows", known)
        if not isinstance(sizes, Tracer):
            most = np.asarray(sizes)[:, None, None]
            outside = ((known < 0) | (known > most)).any(2) & (lengths > 0)
            _refuse(outside, "windows", known, "outside its map's true cells")
        _check_rule(lengths, levels, rule)
    clipped = jnp.clip(jnp.asarray(windows, jnp.int32), 0, sizes[:, None, None])
    return clipped[:, :, 0], jnp.maximum(clipped[:, :, 1] - clipped[:, :, 0], 0)


def _check_integers(values, expected: tuple[int, ...], name: str, axes: str, features: jax.Array) -> None:
    if values.shape != expected:
        raise ValueError(
            f"{name} must have shape {expected} {axes} for features of shape {features.shape}, got "
            f"{values.shape}"
        )
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers (cells), got dtype {values.dtype}")


def _as_array(values) -> Any:
    """JAX's, if it is one or holds tracers, else NumPy's."""
    traced = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values))
    return jnp.asarray(values) if traced else np.asarray(values)


def _refuse_half_empty(lengths: np.ndarray, name: str, known: np.ndarray) -> None:
    half_empty = (lengths == 0) & (lengths != 0).any(-1, keepdims=True)
    _refuse(half_empty, name, known, "empty along some axes only; a filler is empty along all")


def _refuse(wrong: np.ndarray, name: str, known: np.ndarray, why: str) -> None:
    """Raise for the first row (or window) that is wrong along an axis, the last of ``wrong``."""
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0, :-1].tolist())
        place = "".join(f"[{i}]" for i in at)
        raise ValueError(f"{name}{place} = {known[at].tolist()} is {why}")


def _check_rule(lengths: np.ndarray, levels: _Levels, rule: str) -> None:
    for level in levels:
        for axis, bins in enumerate(level):
            check_lengths(lengths[..., axis], bins, rule)


def _check_shape(pooled: jax.Array, expected: tuple[int, ...]) -> None:
    if pooled.shape != expected:
        raise TypeError(
            f"the reduction gave an array of shape {pooled.shape}, not {expected}: a function of "
            "(cells, mask) has to give [channels], and finish what its states are shaped like"
        )


# --- the path ---------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("levels", "rule"), inline=True)
def _pool(
    features: Shaped[Array, "batch *spatial channels"],
    starts: _Boxes,
    lengths: _Boxes,
    reduction: Monoid | CellFunction,
    *,
    levels: _Levels,
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
        pooled = _pool_cells(reduction, features, starts, lengths, levels, rule)
    return pooled.astype(dtype)


def _pool_monoid(
    monoid: Monoid,
    features: Shaped[Array, "batch *spatial channels"],
    starts: _Boxes,
    lengths: _Boxes,
    levels: _Levels,
    rule: str,
) -> _Pooled:
    if monoid.touches_outside:
        real = _in_any_window(features.shape[1:-1], starts, lengths)
        features = jnp.where(real, features, jnp.ones((), features.dtype))
    state = monoid.lift(features)
    together = [levels] if rule_named(rule).nests else [(level,) for level in levels]
    parts = []
    for group in together:
        counts = (tuple(sorted(set(axis))) for axis in zip(*group, strict=True))
        axes = tuple(AxisPlan(axis, rule, twice=monoid.idempotent) for axis in counts)
        parts.append(_differentiable(monoid, group, axes)(state, starts, lengths))
    state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=2), *parts)
    count = _counts(lengths, levels, rule)
    # Where only a filler has empty bins, say so by its size: far cheaper than by counts.
    empty = count == 0 if rule_named(rule).empties else (lengths == 0).any(-1)[..., None, None]
    # Ones where a bin is empty: finish never sees what it could make NaN of, in a gradient either.
    state = jax.tree.map(lambda leaf: jnp.where(empty, jnp.ones((), leaf.dtype), leaf), state)
    pooled = monoid.finish(state, jnp.maximum(count, 1))
    _check_shape(pooled, (*count.shape[:-1], features.shape[-1]))
    return jnp.where(empty, jnp.zeros((), pooled.dtype), pooled)


def _pool_cells(
    function: CellFunction,
    features: Shaped[Array, "batch *spatial channels"],
    starts: _Boxes,
    lengths: _Boxes,
    levels: _Levels,
    rule: str,
) -> _Pooled:
    def pool(features, starts, lengths):
        return jnp.concatenate(
            [_pool_cells_of_level(function, features, starts, lengths, level, rule) for level in levels], 1
        )

    return _every_window(pool)(features, starts, lengths)


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
    _check_shape(pooled, (batch, bins, channels))
    return jnp.where(empty, jnp.zeros((), pooled.dtype), pooled)


def _every_window(pool: Callable) -> Callable:
    """From a function of one window of each map to one of ``[batch, windows, rank]``: a loop over windows."""

    def pool_windows(features: PyTree, starts: _Boxes, lengths: _Boxes) -> PyTree:
        if starts.shape[1] == 1:
            pooled = pool(features, starts[:, 0], lengths[:, 0])
            return jax.tree.map(lambda leaf: leaf[:, None], pooled)
        boxes = jnp.moveaxis(starts, 1, 0), jnp.moveaxis(lengths, 1, 0)
        pooled = lax.map(lambda box: pool(features, *box), boxes)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), pooled)

    return pool_windows


def _in_any_window(
    spatial: tuple[int, ...], starts: _Boxes, lengths: _Boxes
) -> Bool[Array, "batch *spatial 1"]:
    """Where a cell is in some window: windows counted, as the product of where they are on each axis."""
    covered = []
    for axis, extent in enumerate(spatial):
        line = jnp.arange(extent, dtype=jnp.int32)
        start, length = starts[..., axis, None], lengths[..., axis, None]
        covered.append(((line >= start) & (line < start + length)).astype(jnp.float32))
    axes = "xyz"[: len(spatial)]
    counts = jnp.einsum(f"{','.join('bw' + axis for axis in axes)}->b{axes}", *covered)
    return (counts > 0.5)[..., None]


def _counts(lengths: _Boxes, levels: _Levels, rule: str) -> Int32[Array, "batch windows bins 1"]:
    """Cells in each bin."""
    counts = []
    for level in levels:
        cells = jnp.ones((*lengths.shape[:2], 1), jnp.int32)
        for axis, bins in enumerate(level):
            starts, stops = bin_edges(lengths[..., axis], bins, rule=rule)
            cells = (cells[..., None] * (stops - starts)[..., None, :]).reshape(*lengths.shape[:2], -1)
        counts.append(cells)
    return jnp.concatenate(counts, axis=-1)[..., None]


# --- derivatives ------------------------------------------------------------------------------------


def _differentiable(monoid: Monoid, levels: _Levels, axes: tuple[AxisPlan, ...]) -> Callable:
    """State, starts and lengths to the state of every bin, with the derivative that is right and fast."""

    def reading(forms: tuple, monoid: Monoid, fold: Callable = lambda pool: pool) -> Callable:
        return _every_window(fold(read_pyramid(forms, monoid, levels, axes)))

    values = reading(VALUES, monoid, _folding_vmap)
    with_derivative = jax.custom_jvp(values)
    if not monoid.selects:
        derived = reading(SUMS if monoid.combine is lax.add else PLAIN, monoid)

        @with_derivative.defjvp
        def _(primals, tangents):
            state, starts, lengths = primals
            _, tangent = jax.jvp(lambda s: derived(s, starts, lengths), (state,), tangents[:1])
            return with_derivative(*primals), tangent

        return with_derivative

    winners = jax.custom_jvp(reading(WINNERS, Winner(monoid), _folding_vmap))

    @winners.defjvp
    def _(primals, tangents):
        value, index = winners(*primals)
        return (value, index), (_take(tangents[0], index), np.zeros(index.shape, jax.dtypes.float0))

    @with_derivative.defjvp
    def _(primals, tangents):
        value, index = winners(*primals)
        return value, _take(tangents[0], index)

    def by_leaf(state: PyTree, starts: jax.Array, lengths: jax.Array) -> PyTree:
        def pool(leaf):
            inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
            return (with_derivative if inexact else values)(leaf, starts, lengths)

        return jax.tree.map(pool, state)

    return by_leaf


def _folding_vmap(pool: Callable) -> Callable:
    """Under ``vmap`` the further axis joins the batch, since a loop of its own would run far slower.

    Boxes over one and the same state are looped over instead: the state would be copied for each.
    """
    pool = custom_vmap(pool)

    @pool.def_vmap
    def _(size, batched, state, *boxes):
        def spread(leaf, is_batched):
            return leaf if is_batched else jnp.broadcast_to(leaf, (size, *leaf.shape))

        state_batched, *boxes_batched = batched
        boxes = [*map(spread, boxes, boxes_batched)]
        if any(jax.tree.leaves(state_batched)):
            args = jax.tree.map(spread, state, state_batched), *boxes
            folded = jax.tree.map(lambda leaf: leaf.reshape(size * leaf.shape[1], *leaf.shape[2:]), args)
            pooled = jax.tree.map(
                lambda leaf: leaf.reshape(size, leaf.shape[0] // size, *leaf.shape[1:]), pool(*folded)
            )
        else:
            pooled = lax.map(lambda box: pool(state, *box), boxes)
        return pooled, jax.tree.map(lambda _: True, pooled)

    return pool


def _take(tangent: Shaped[Array, "batch *spatial channels"], index: _Pooled) -> _Pooled:
    """The cells at the winners' row-major indices, 0 where there is none. Linear in ``tangent``.

    Its transpose is the gradient of the pyramid: a scatter-add, or on a TPU, which scatters one update
    at a time, a comparison of each cell with the winners.
    """
    batch, windows, bins, channels = index.shape
    index = index.reshape(batch, windows * bins, channels)
    dtype = tangent.dtype
    if windows > 1:  # whose gradients are summed, many perhaps
        tangent = tangent.astype(jnp.promote_types(dtype, jnp.float32))

    def by_gather(tangent, index):
        # One index into a flat image rather than two: such a scatter takes about half the time on a CPU.
        place = index * channels + jnp.arange(channels, dtype=jnp.int32)
        found = index != NO_WINNER
        place = jnp.where(found, place, 0).reshape(batch, -1)
        taken = jnp.take_along_axis(tangent.reshape(batch, -1), place, axis=1, mode="promise_in_bounds")
        return jnp.where(found, taken.reshape(found.shape), jnp.zeros((), taken.dtype))

    def by_comparison(tangent, index):
        # Over the axes as they are: for a flat image a TPU copies the gradient from one layout to another.
        spatial = tangent.shape[1:-1]
        cells = jnp.arange(math.prod(spatial), dtype=jnp.int32).reshape(*spatial, 1)
        here = cells == index.reshape(*index.shape[:2], *(1,) * len(spatial), channels)
        taken = jnp.where(here, tangent[:, None], jnp.zeros((), tangent.dtype))
        return taken.sum(tuple(range(2, 2 + len(spatial))))

    on_tpu = by_comparison if windows * bins <= _DENSE_BINS else by_gather
    taken = lax.platform_dependent(tangent, index, tpu=on_tpu, default=by_gather)
    return taken.reshape(batch, windows, bins, channels).astype(dtype)
