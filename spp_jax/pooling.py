"""The op: adaptive bins, pyramids of them, and the reductions that run over a bin.

Conventions, said once: arrays are channels-last, ``[batch, *spatial, channels]``, with one to three
spatial axes. Sizes are int32 ``[batch, spatial_rank]``, counted in cells of the feature map (not in
pixels), height before width. Bins are half open. ``levels`` and ``reduce`` are static under ``jit``;
everything else is data.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Spatial Pyramid Pooling in Deep Convolutional Networks for
Visual Recognition", ECCV 2014 (arXiv:1406.4729), section 2.2 for the pyramid and appendix A for the
floor/ceil rule of the bins.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

__all__ = ["Level", "bin_edges", "normalize_levels", "num_bins", "spatial_pyramid_pool"]

Level: TypeAlias = "int | Sequence[int]"
"""Bins along every spatial axis, or one count per spatial axis."""

_Bins: TypeAlias = tuple[int, ...]
_NO_WINNER = np.iinfo(np.int32).max


@overload
def bin_edges(length: jax.Array, bins: int) -> tuple[jax.Array, jax.Array]: ...
@overload
def bin_edges(
    length: int | Sequence[int] | np.ndarray | np.integer, bins: int
) -> tuple[np.ndarray, np.ndarray]: ...
def bin_edges(length, bins):
    """Where each of ``bins`` adaptive bins over ``length`` cells starts and stops.

    Bin ``i`` of ``n`` over length ``L`` is ``[floor(i*L/n), ceil((i+1)*L/n))``, in integer
    arithmetic. Together the bins cover every cell; no bin is empty unless ``L`` is 0, also where
    ``L < n``; neighbours share at most one cell.

    Args:
        length: cells, int or integer array of any shape, values >= 0. Ints and NumPy give NumPy
            (usable as slice bounds), JAX arrays and tracers give JAX.
        bins: how many bins, a static int >= 1.

    Returns:
        ``(starts, stops)``, int32, each of shape ``[*length.shape, bins]``.

    Raises:
        ValueError: ``bins`` is no int >= 1, or a ``length`` known now is negative.
        TypeError: ``length`` is not of an integer type.

    Source: SPP-net, appendix A; the rule of ``torch.nn.AdaptiveMaxPool2d``.
    """
    bins = _positive_int(bins, "bins")
    xp = jnp if isinstance(length, jax.Array) else np
    length = xp.asarray(length)
    if not xp.issubdtype(length.dtype, xp.integer):
        raise TypeError(f"bin_edges: length must be integers (cells), got dtype {length.dtype}")
    if not isinstance(length, Tracer) and length.size and int(length.min()) < 0:
        raise ValueError(f"bin_edges: length must be >= 0 cells, got {int(length.min())}")
    # L = q*n + r, so i*L/n = i*q + i*r/n: nothing here exceeds L + n*n, where i*L could overflow.
    length = length.astype(np.int32)[..., None]
    quotient, remainder = length // bins, length % bins
    index = xp.arange(bins, dtype=np.int32)
    starts = index * quotient + index * remainder // bins
    stops = (index + 1) * quotient - (-(index + 1) * remainder) // bins
    return starts.astype(np.int32), stops.astype(np.int32)


def num_bins(levels: Sequence[Level], spatial_rank: int = 2) -> int:
    """How many bins a pyramid has: ``num_bins((1, 2, 4)) == 1 + 4 + 16``.

    Args:
        levels: the pyramid, as :func:`spatial_pyramid_pool` takes it.
        spatial_rank: the number of spatial axes.

    Raises:
        ValueError: see :func:`normalize_levels`.
    """
    return sum(math.prod(level) for level in normalize_levels(levels, spatial_rank))


def normalize_levels(levels: Sequence[Level], spatial_rank: int) -> tuple[_Bins, ...]:
    """Levels as a hashable tuple with one count of bins per spatial axis: ``(2,) -> ((2, 2),)``.

    Args:
        levels: a non-empty sequence; each level is an int >= 1, or one such int per spatial axis.
        spatial_rank: the number of spatial axes.

    Raises:
        ValueError: there are no levels, one is zero, negative or no int, or one has another number
            of axes than ``spatial_rank``.
    """
    if isinstance(levels, int | np.integer) or not isinstance(levels, Sequence):
        raise ValueError(f"levels must be a sequence such as (1, 2, 4), got {levels!r}")
    if not levels:
        raise ValueError("levels is empty: give at least one level, such as (1,)")
    normal = []
    for level in levels:
        axes = tuple(level) if isinstance(level, Sequence) else (level,) * spatial_rank
        if len(axes) != spatial_rank:
            raise ValueError(
                f"levels={levels!r}: level {level!r} names {len(axes)} axes, "
                f"the features have {spatial_rank} spatial axes"
            )
        normal.append(tuple(_positive_int(n, f"levels={levels!r}: bins") for n in axes))
    return tuple(normal)


def spatial_pyramid_pool(
    features: jax.Array | np.ndarray,
    sizes: jax.Array | np.ndarray | Sequence[Sequence[int]] | None = None,
    *,
    levels: Sequence[Level] = (1, 2, 4),
    reduce: str = "max",
) -> jax.Array:
    """Pool each feature map over a pyramid of adaptive bins into a vector of fixed length.

    With ``"max"`` the index of each bin's winner is kept, and values and gradients go through that
    index: ties go to the first cell in row-major order and a NaN wins its bin, as in torch. (A
    gradient that finds the winner again by comparing values is silently wrong under ``jit``.)
    Both reductions can be differentiated forward and backward, repeatedly.

    Args:
        features: ``[batch, *spatial, channels]``, one to three spatial axes. Max takes any real
            dtype, mean floating ones.
        sizes: int32 ``[batch, spatial_rank]``, the true cells of each map, between 0 and the array's
            own extent; cells beyond are never read, whatever they hold. None: every cell is real.
            Under ``jit``, where values cannot be checked, sizes are clipped to that range.
        levels: static; each level an int, or one int per spatial axis.
        reduce: static; ``"max"`` or ``"mean"``. Means are summed in at least float32.

    Returns:
        ``[batch, num_bins(levels), channels]`` in the dtype of ``features``: bins in the order of
        ``levels``, row-major inside a level. A map of size 0 gives zeros, with zero gradient.

    Raises:
        ValueError: shapes do not fit, a size known now is outside the array, ``levels`` is
            malformed (:func:`normalize_levels`), or ``reduce`` is unknown.
        TypeError: a dtype that the reduction does not take.

    Source: SPP-net, section 2.2 and appendix A.
    """
    features = jnp.asarray(features)
    rank = features.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            "features must be [batch, *spatial, channels] with 1 to 3 spatial axes, got shape "
            f"{features.shape}"
        )
    if not all(features.shape[1:-1]):
        raise ValueError(f"features of shape {features.shape} have a spatial axis without cells")
    pyramid = normalize_levels(levels, rank)
    if not isinstance(reduce, str) or reduce not in _REDUCTIONS:
        raise ValueError(f"reduce={reduce!r} is unknown; known are {', '.join(map(repr, _REDUCTIONS))}")
    if sizes is None:
        extent = np.array([features.shape[1:-1]], np.int32)
        bounds = jnp.asarray(np.repeat(extent, features.shape[0], 0))
    else:
        bounds = _checked_sizes(sizes, features)
    return _REDUCTIONS[reduce](features, bounds, pyramid)


def _checked_sizes(sizes, features: jax.Array) -> jax.Array:
    extent = np.asarray(features.shape[1:-1], np.int32)
    expected = (features.shape[0], len(extent))
    if not isinstance(sizes, jax.Array):
        sizes = np.asarray(sizes)
    if sizes.shape != expected:
        raise ValueError(
            f"sizes must have shape {expected} (batch, spatial axes) for features of shape "
            f"{features.shape}, got {sizes.shape}"
        )
    if not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise TypeError(f"sizes must be integers (cells), got dtype {sizes.dtype}")
    if not isinstance(sizes, Tracer):
        known = np.asarray(sizes)
        outside = ((known < 0) | (known > extent)).any(axis=1)
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"sizes[{row}] = {known[row].tolist()} lies outside the array: features of shape "
                f"{features.shape} hold 0 to {extent.tolist()} cells"
            )
    return jnp.clip(jnp.asarray(sizes, jnp.int32), 0, extent)


def _positive_int(value, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    return int(value)


# --- max: find each bin's winner (no gradient), then gather it (the gradient is the scatter) -------


def _max_pyramid(features: jax.Array, sizes: jax.Array, pyramid: tuple[_Bins, ...]) -> jax.Array:
    if jnp.issubdtype(features.dtype, jnp.complexfloating):
        raise TypeError(f'reduce="max" needs ordered values, got dtype {features.dtype}')
    batch, *spatial, channels = features.shape
    winners = _winners(lax.stop_gradient(features), sizes, pyramid)
    cells = features.reshape(batch, math.prod(spatial), channels)
    found = winners != _NO_WINNER
    pooled = jnp.take_along_axis(cells, jnp.where(found, winners, 0), axis=1)
    return jnp.where(found, pooled, jnp.zeros((), features.dtype))


def _winners(features: jax.Array, sizes: jax.Array, pyramid: tuple[_Bins, ...]) -> jax.Array:
    """The row-major cell index of each bin's maximum, int32 ``[batch, bins, channels]``.

    Every level whose bins are unions of another level's bins is taken from those: where ``m``
    divides ``n``, ``floor(i*(n/m)*L/n) == floor(i*L/m)``, and the same for the stops, for any ``L``.
    """
    batch, *spatial, channels = features.shape
    position = jnp.arange(math.prod(spatial), dtype=jnp.int32).reshape(1, *spatial, 1)
    everywhere = features, jnp.broadcast_to(position, features.shape)

    @jax.named_scope("spp_level")
    def level_from_cells(level: _Bins):
        best = everywhere
        for axis, bins in enumerate(level):
            best = _best_in_bins(best, axis + 1, *bin_edges(sizes[:, axis], bins))
        return best

    done: dict[_Bins, tuple[jax.Array, jax.Array]] = {}
    for level in sorted(set(pyramid), key=math.prod, reverse=True):
        finer = [other for other in done if all(n % m == 0 for m, n in zip(level, other, strict=True))]
        if finer:
            done[level] = _best_in_blocks(done[min(finer, key=math.prod)], level)
        else:
            done[level] = level_from_cells(level)
    return jnp.concatenate([done[level][1].reshape(batch, -1, channels) for level in pyramid], axis=1)


def _best_in_bins(best, axis: int, starts: jax.Array, stops: jax.Array):
    """Reduce ``axis`` to one (value, index) pair per bin; cells outside the bin are not seen."""
    values, index = best
    along = [1] * values.ndim
    along[axis] = -1
    per_image = [-1] + [1] * (values.ndim - 1)
    line = jnp.arange(values.shape[axis], dtype=jnp.int32).reshape(along)
    reduced = []
    for i in range(starts.shape[-1]):
        inside = (line >= starts[:, i].reshape(per_image)) & (line < stops[:, i].reshape(per_image))
        pair = jnp.where(inside, values, _lowest(values.dtype)), jnp.where(inside, index, _NO_WINNER)
        reduced.append(_reduce_best(pair, (axis,)))
    values, index = zip(*reduced, strict=True)
    return jnp.stack(values, axis), jnp.stack(index, axis)


def _best_in_blocks(best, level: _Bins):
    """The pairs of a coarse level from those of a finer one that it divides into."""
    batch, *fine, channels = best[0].shape
    blocks = [(m, n // m) for m, n in zip(level, fine, strict=True)]
    shape = (batch, *itertools.chain.from_iterable(blocks), channels)
    axes = tuple(2 + 2 * axis for axis in range(len(level)))
    return _reduce_best(tuple(part.reshape(shape) for part in best), axes)


def _reduce_best(pair, axes: tuple[int, ...]):
    values, index = pair
    identity = jnp.asarray(_lowest(values.dtype), values.dtype), jnp.int32(_NO_WINNER)
    return lax.reduce((values, index), identity, _better, axes)


def _better(a, b):
    """The larger value, NaN above all; at ties the smaller index. Associative and commutative."""
    (a_value, a_index), (b_value, b_index) = a, b
    if jnp.issubdtype(a_value.dtype, jnp.floating):
        a_nan, b_nan = a_value != a_value, b_value != b_value
        above = (a_value > b_value) | (a_nan & ~b_nan)
        tied = (a_value == b_value) | (a_nan & b_nan)
    else:
        above, tied = a_value > b_value, a_value == b_value
    first = above | (tied & (a_index < b_index))
    return lax.select(first, a_value, b_value), lax.select(first, a_index, b_index)


def _lowest(dtype):
    if jnp.issubdtype(dtype, jnp.floating):
        return -jnp.inf
    return False if dtype == jnp.bool_ else jnp.iinfo(dtype).min


# --- mean: one small matrix per axis and level --------------------------------------------------


def _mean_pyramid(features: jax.Array, sizes: jax.Array, pyramid: tuple[_Bins, ...]) -> jax.Array:
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise TypeError(f'reduce="mean" needs floating features, got dtype {features.dtype}')
    batch, *spatial, channels = features.shape
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    lines = [jnp.arange(length, dtype=jnp.int32) for length in spatial]
    # NaN times a weight of 0 is NaN: what is outside has to be zeros before any product.
    real = jnp.ones((batch,) + (1,) * (len(spatial) + 1), bool)
    for axis, line in enumerate(lines):
        along = [1] * features.ndim
        along[axis + 1] = -1
        real &= line.reshape(along) < sizes[:, axis].reshape([-1] + [1] * (features.ndim - 1))
    cells = jnp.where(real, features, 0).astype(dtype)

    def pool(level: _Bins) -> jax.Array:
        pooled = cells
        for axis, bins in enumerate(level):
            starts, stops = (edge[..., None] for edge in bin_edges(sizes[:, axis], bins))
            inside = (lines[axis] >= starts) & (lines[axis] < stops)
            weights = inside / jnp.maximum(stops - starts, 1).astype(dtype)
            moved = jnp.moveaxis(pooled, axis + 1, 1)
            pooled = jnp.einsum("bnl,bl...->bn...", weights, moved, precision=lax.Precision.HIGHEST)
            pooled = jnp.moveaxis(pooled, 1, axis + 1)
        return pooled.reshape(batch, -1, channels)

    return jnp.concatenate([pool(level) for level in pyramid], axis=1).astype(features.dtype)


_REDUCTIONS: dict[str, Callable[[jax.Array, jax.Array, tuple[_Bins, ...]], jax.Array]] = {
    "max": _max_pyramid,
    "mean": _mean_pyramid,
}
