"""What the derivative of a pyramid of states is: to every cell of a sum, to the winner of a max."""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, PyTree, Shaped

from spp_jax.pooling.bins import AxisPlan, Levels
from spp_jax.pooling.reading import (
    NO_WINNER,
    SCANNED,
    SUMS,
    VALUES,
    VALUES_OF_WINDOWS,
    WINNERS,
    WINNERS_OF_WINDOWS,
    Perhaps,
    Winner,
    join_bins,
    read_grid,
)
from spp_jax.pooling.reductions import Monoid
from spp_jax.pooling.windows import Boxes, every_window

_Pooled: TypeAlias = Shaped[Array, "batch windows bins channels"]

_DENSE_BINS = 128  # up to here a TPU finds each cell's winners by comparing rather than by scattering


def differentiable(monoid: Monoid, levels: Levels, axes: tuple[AxisPlan, ...]) -> Callable:
    """State, starts and lengths to the state of every bin, with the derivative that is right and fast."""
    reading = functools.partial(_reading, levels=levels, axes=axes)
    reading_fast = functools.partial(_reading_fast, levels=levels, axes=axes)
    values = reading_fast(VALUES, VALUES_OF_WINDOWS, monoid)
    with_derivative = jax.custom_jvp(values)
    if monoid.combine is lax.add:
        sums = reading(SUMS, monoid)

        @with_derivative.defjvp
        def _(primals, tangents):
            state, starts, lengths = primals
            _, tangent = jax.jvp(lambda s: sums(s, starts, lengths), (state,), tangents[:1])
            return with_derivative(*primals), tangent

        return with_derivative

    if not monoid.selects:

        @with_derivative.defjvp
        def _(primals, tangents):
            state, starts, lengths = primals
            # Of many windows the states are computed anew when the gradient comes, window by window.
            fold = jax.checkpoint if starts.shape[1] > 1 else lambda pool: pool
            states = reading(SCANNED, Perhaps(monoid), fold=fold)
            return jax.jvp(lambda s: states(s, starts, lengths)[1], (state,), tangents[:1])

        return with_derivative

    winners = jax.custom_jvp(reading_fast(WINNERS, WINNERS_OF_WINDOWS, Winner(monoid)))

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


def _reading(
    forms: tuple,
    monoid: Monoid,
    *,
    levels: Levels,
    axes: tuple[AxisPlan, ...],
    fold: Callable = lambda pool: pool,
) -> Callable:
    """State, starts and lengths to the state of every bin, in the forms for this backend."""
    read = read_grid(forms, monoid, axes)

    def read_and_join(state: PyTree, starts: jax.Array, lengths: jax.Array) -> PyTree:
        return join_bins(read(state, starts, lengths), monoid, levels, axes)

    if any(plan.seams for plan in axes):  # a grid of more states than there are bins: not kept of all windows
        return every_window(fold(read_and_join))
    read_every = every_window(fold(read))
    return lambda state, *boxes: join_bins(read_every(state, *boxes), monoid, levels, axes)


def _reading_fast(
    of_map: tuple, of_windows: tuple, monoid: Monoid, *, levels: Levels, axes: tuple[AxisPlan, ...]
) -> Callable:
    """In the form for a window of each map, or in that for many."""
    one = _reading(of_map, monoid, levels=levels, axes=axes, fold=_folding_vmap)
    many = _reading_windows(of_windows, monoid, levels=levels, axes=axes)

    def read(state: PyTree, starts: Boxes, lengths: Boxes) -> PyTree:
        return (one if starts.shape[1] == 1 else many)(state, starts, lengths)

    return read


def _reading_windows(forms: tuple, monoid: Monoid, *, levels: Levels, axes: tuple[AxisPlan, ...]) -> Callable:
    """State, starts and lengths to the state of every bin, in the forms of many windows for this backend."""
    join = functools.partial(join_bins, monoid=monoid, levels=levels, axes=axes)
    seams = any(plan.seams for plan in axes)  # a grid of more states than there are bins: not kept
    kept = join if seams else lambda states: states
    cpu, tpu, default = (functools.partial(form, kept=kept) for form in forms)
    read = read_grid((cpu, tpu, default), monoid, axes)

    @_folding_vmap
    def read_and_join(state: PyTree, starts: Boxes, lengths: Boxes) -> PyTree:
        found = read(state, jnp.moveaxis(starts, 1, 0), jnp.moveaxis(lengths, 1, 0))
        found = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)
        return found if seams else join(found)

    return read_and_join


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
