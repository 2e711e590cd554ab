"""One axis of a map to the states of its segments: the only part of the op with a form per backend.

A form makes of a monoid a function ``read(state, axis, starts, stops, plan)``. It takes a state, a
pytree of arrays ``[batch, *spatial, channels]``, and segments of one spatial axis, int32
``[batch, segments]`` between ``starts`` and ``stops``, laid out by a :class:`spp_jax.bins.AxisPlan`; it
gives the state with one entry per segment in place of that axis.

Three forms give values: `plain`, which is what the others are held to, `masked` and `gathered`. Two give
the winners of a max or min besides, `masked_winners` and `gathered_winners`, and one, `scattered`, gives
sums in a way whose transpose is fast.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32, PyTree, Shaped

from spp_jax.bins import AxisPlan
from spp_jax.reductions import Monoid

NO_WINNER = np.iinfo(np.int32).max

_ROWS_A_STEP = 16  # gathered rows that one step of a CPU loop combines before it writes its state back


class Winner(Monoid):
    """A max or min that remembers where: states are pairs (value, row-major index).

    At ties the smaller index wins.
    """

    def __init__(self, values: Monoid):
        """Make the monoid of winners of ``values``, a max or min."""
        self.values = values

    def combine(self, a, b):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The better pair of two."""
        (a_value, a_index), (b_value, b_index) = a, b
        value = self.values.combine(a_value, b_value)
        a_index = jnp.where(_is(a_value, value), a_index, NO_WINNER)
        b_index = jnp.where(_is(b_value, value), b_index, NO_WINNER)
        return value, lax.min(a_index, b_index)

    def identity(self, state):
        """Of the values, with no winner."""
        return self.values.identity(state[0]), jnp.int32(NO_WINNER)


def _is(value: jax.Array, best: jax.Array) -> jax.Array:
    """Whether a value is the best one of those it was compared with: equal, or NaN."""
    if jnp.issubdtype(value.dtype, jnp.floating):
        return (value == best) | (value != value)
    return value == best


def read_pyramid(
    forms: tuple[Callable, Callable],
    monoid: Monoid,
    levels: Sequence[tuple[int, ...]],
    axes: Sequence[AxisPlan],
) -> Callable:
    """A function of (state, starts, lengths) that pools one window of each map, in the form of its backend.

    Args:
        forms: for a CPU, and for everything else.
        monoid: what combines the states.
        levels: normal, of one number of axes.
        axes: one plan per spatial axis, whose counts hold those of every level.

    Returns:
        The function: state ``[batch, *spatial, channels]``, a pytree; starts and lengths int32
        ``[batch, spatial_rank]``; to states ``[batch, bins, channels]``.
    """

    def in_form(form: Callable) -> Callable:
        read = form(monoid)

        def pool(
            state: PyTree[Shaped[Array, "batch *spatial channels"]],
            starts: Int32[Array, "batch rank"],
            lengths: Int32[Array, "batch rank"],
        ) -> PyTree[Shaped[Array, "batch bins channels"]]:
            edges = {plan: plan.edges(lengths) for plan in axes}
            for axis, plan in enumerate(axes):
                first, stop = (starts[..., None] + edge for edge in edges[plan])
                state = read(state, axis + 1, first[:, axis], stop[:, axis], plan)
            pooled = []
            for level in levels:
                part = state
                for axis, (bins, plan) in enumerate(zip(level, axes, strict=True)):
                    part = _joined(part, axis + 1, plan.members(bins), monoid.combine)
                pooled.append(jax.tree.map(lambda leaf: leaf.reshape(len(leaf), -1, leaf.shape[-1]), part))
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *pooled)

        return pool

    cpu, default = map(in_form, forms)

    @jax.named_scope("spatial_pyramid_pool")
    def pool(*args):
        # The one place where the form is chosen; an exported program carries all that it may need.
        return lax.platform_dependent(*args, cpu=cpu, default=default)

    return pool


def _joined(state: PyTree, axis: int, members: Sequence[Sequence[int]], combine: Callable) -> PyTree:
    """One state per bin from those of its members, segments and seams."""

    def pick(indices: Sequence[int]) -> PyTree:
        """States at equidistant indices: a slice."""
        first, last = indices[0], indices[-1]
        stride = indices[1] - first if len(indices) > 1 else 1
        return jax.tree.map(lambda leaf: lax.slice_in_dim(leaf, first, last + 1, stride, axis), state)

    def concatenate(parts: Sequence[PyTree]) -> PyTree:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *parts)

    def of_equal_length(members: Sequence[Sequence[int]]) -> PyTree:
        return functools.reduce(combine, [pick(nth) for nth in zip(*members, strict=True)])

    # Neighbouring bins with equally many members are joined at once; for levels that divide the finest
    # one that is all of them, or, where there are seams, all but the last.
    groups: list[list[Sequence[int]]] = []
    for within in members:
        previous = groups[-1] if groups else []
        step = [b - a for a, b in itertools.pairwise([bin[0] for bin in (*previous[-2:], within)])]
        if previous and len(previous[0]) == len(within) and len(set(step)) == 1:
            previous.append(within)
        else:
            groups.append([within])
    return concatenate([of_equal_length(group) for group in groups])


def plain(monoid: Monoid) -> Callable:
    """A segment is a mask over all cells. What JAX can differentiate, and what the others are held to."""

    def read(state, axis, starts, stops, plan):
        def expanded(leaf):
            return jnp.expand_dims(leaf, axis)

        shape = jax.tree.leaves(state)[0].shape
        along = (-1, *(1,) * (axis - 1), starts.shape[1], *(1,) * (len(shape) - axis))
        line = jnp.arange(shape[axis], dtype=jnp.int32).reshape(-1, *(1,) * (len(shape) - axis - 1))
        inside = (line >= starts.reshape(along)) & (line < stops.reshape(along))
        identity = monoid.identity(state)
        masked = jax.tree.map(lambda leaf, none: jnp.where(inside, expanded(leaf), none), state, identity)
        if monoid.combine is lax.add:
            return jax.tree.map(lambda leaf: leaf.sum(axis + 1), masked)
        return lax.reduce(masked, identity, monoid.combine, (axis + 1,))

    return read


def scattered(monoid: Monoid) -> Callable:
    """Sums again, for their transpose: each row of the gradient is the sum of its segment's and seams'.

    The segments of a sum do not overlap, so a row is added to one of them, and its gradient is copied
    from there; a seam is one row.
    """
    del monoid

    def read(state, axis, starts, stops, plan):
        def sums(leaf):
            line = jnp.arange(leaf.shape[axis], dtype=jnp.int32)
            long_stops = stops[:, : plan.segments, None]
            segment = (line >= long_stops).sum(1)
            real = (line >= starts[:, :1]) & (line < stops[:, plan.segments - 1, None])
            rows = jnp.moveaxis(leaf, axis, 1)
            image = jnp.arange(len(rows))[:, None]
            added = jnp.zeros((len(rows), plan.segments, *rows.shape[2:]), rows.dtype)
            added = added.at[image, jnp.where(real, segment, plan.segments)].add(rows, mode="drop")
            seam = starts[:, plan.segments :]
            there = (seam < stops[:, plan.segments :]).reshape(*seam.shape, *(1,) * (rows.ndim - 2))
            seams = rows.at[image, seam].get(mode="clip")
            seams = jnp.where(there, seams, jnp.zeros((), rows.dtype))
            return jnp.moveaxis(jnp.concatenate([added, seams], 1), 1, axis)

        return jax.tree.map(sums, state)

    return read


def masked(monoid: Monoid) -> Callable:
    """All segments in one reduction with one result each, so that the map is read once: TPU and GPU."""

    def read(state, axis, starts, stops, plan):
        rank = jax.tree.leaves(state)[0].ndim
        line = jnp.arange(jax.tree.leaves(state)[0].shape[axis], dtype=jnp.int32)
        line = line.reshape(-1, *(1,) * (rank - axis - 1))
        identity = monoid.identity(state)
        segments = []
        for start, stop in zip(starts.T, stops.T, strict=True):
            per_image = (-1, *(1,) * (rank - 1))
            inside = (line >= start.reshape(per_image)) & (line < stop.reshape(per_image))
            segments.append(jax.tree.map(lambda x, none, i=inside: jnp.where(i, x, none), state, identity))

        def combine(a, b):
            return [monoid.combine(*pair) for pair in zip(a, b, strict=True)]

        read = lax.reduce(segments, [identity] * len(segments), combine, (axis,))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *read)

    return read


def masked_winners(winner: Winner) -> Callable:
    """The same over pairs (value, row-major index)."""

    def read(state, axis, starts, stops, plan):
        if axis == 1:
            cells = jnp.arange(math.prod(state.shape[1:-1]), dtype=jnp.int32)
            state = state, jnp.broadcast_to(cells.reshape(*state.shape[1:-1], 1), state.shape)
        return masked(winner)(state, axis, starts, stops, plan)

    return read


def gathered(monoid: Monoid) -> Callable:
    """True rows alone are gathered, from all segments at once, several a step of a loop: CPU.

    Where a cell may be combined twice, a segment's last row stands in for those beyond its end, so that
    there is no mask. The loop's trip count is data, which keeps XLA from fusing across it. Its first
    step is taken outside, which saves the state one trip through memory.
    """

    def read(state, axis, starts, stops, plan):
        identity = monoid.identity(state)
        flat = jax.tree.map(lambda leaf: _flattened(leaf, axis), state)
        shape = jax.tree.leaves(state)[0].shape
        rows = _Rows.of(shape, axis, starts[:, : plan.segments], stops[:, : plan.segments])

        def gather(rows: _Rows, offset) -> PyTree:
            cells = jax.tree.map(lambda leaf: rows.gather(leaf, offset), flat)
            if monoid.idempotent and not plan.empties:
                return cells
            inside = rows.inside(offset)
            return jax.tree.map(lambda x, none: jnp.where(inside, x, none), cells, identity)

        def step(number, best):
            for row in range(rows_a_step):
                cells = gather(rows, number * rows_a_step + row)
                best = cells if best is None else monoid.combine(best, cells)
            return best

        rows_a_step, steps = _steps(rows, plan, shape[axis])
        best = lax.fori_loop(1, steps, step, step(0, None))
        best = jax.tree.map(lambda leaf: _unflattened(leaf, shape, axis), best)
        if plan.seams:
            seams = _Rows.of(shape, axis, starts[:, plan.segments :], stops[:, plan.segments :])
            cells = jax.tree.map(lambda leaf: _unflattened(leaf, shape, axis), gather(seams, 0))
            best = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis), best, cells)
        return best

    return read


def gathered_winners(winner: Winner) -> Callable:
    """Two such loops: the best value of each segment, then the first index that holds it.

    Both read one buffer, since what a loop is given is not computed anew inside it; so comparing values
    is right here. No step is taken outside, where XLA could fuse it with what computes the features.
    """
    combine = winner.values.combine

    def read(state, axis, starts, stops, plan):
        values, index = (state, None) if axis == 1 else state
        identity, no_winner = winner.identity((values, index))
        shape = values.shape
        flat = _flattened(values, axis)
        rows = _Rows.of(shape, axis, starts, stops)
        rows_a_step, steps = _steps(rows, plan, shape[axis])
        some = rows.gather(flat, 0)  # what the loops start with varies over devices as the features do
        mine = some == some

        def offsets(number):
            return [number * rows_a_step + row for row in range(rows_a_step)]

        def improve(number, best):
            for offset in offsets(number):
                best = combine(best, rows.gather(flat, offset))
            return best

        best = lax.fori_loop(0, steps, improve, jnp.where(mine, identity, identity))
        cells_in_row = math.prod(shape[2:-1])
        beside = jnp.repeat(jnp.arange(cells_in_row, dtype=jnp.int32), shape[-1])
        flat_index = None if index is None else _flattened(index, axis)

        def index_at(offset):
            if flat_index is None:
                return rows.place(offset)[:, None] * cells_in_row + beside
            return rows.gather(flat_index, offset)

        def find(number, first):
            for offset in offsets(number):
                hit = _is(rows.gather(flat, offset), best)
                first = jnp.minimum(first, jnp.where(hit, index_at(offset), no_winner))
            return first

        first = lax.fori_loop(0, steps, find, jnp.where(mine, no_winner, no_winner))
        if plan.empties:
            best = jnp.where(rows.inside(0), best, identity)
            first = jnp.where(rows.inside(0), first, no_winner)
        return _unflattened(best, shape, axis), _unflattened(first, shape, axis)

    return read


class _Rows(NamedTuple):
    """Segments of one axis as rows of an array flattened to ``[before * along, behind]``; int32 each."""

    base: jax.Array
    start: jax.Array
    stop: jax.Array

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int, starts: jax.Array, stops: jax.Array) -> "_Rows":
        before = shape[:axis]
        base = jnp.arange(math.prod(before), dtype=jnp.int32).reshape(*before, 1) * shape[axis]
        per_image = (before[0], *(1,) * (axis - 1), starts.shape[1])
        edges = (edge.reshape(per_image) + base for edge in (jnp.zeros_like(starts), starts, stops))
        return cls(*(edge.reshape(-1) for edge in edges))

    def _row(self, offset) -> jax.Array:
        # A segment without cells, at the very start of an axis, would ask for the row before it.
        return jnp.maximum(jnp.minimum(self.start + offset, self.stop - 1), self.base)

    def gather(self, flat: jax.Array, offset) -> jax.Array:
        """Row ``offset`` of each segment, or its last."""
        return flat.at[self._row(offset)].get(mode="promise_in_bounds")

    def place(self, offset) -> jax.Array:
        """Where that row lies on its axis."""
        return self._row(offset) - self.base

    def inside(self, offset) -> jax.Array:
        """Whether each segment has a row ``offset``: ``[rows, 1]``."""
        return (self.start + offset < self.stop)[:, None]


def _steps(rows: _Rows, plan: AxisPlan, extent: int) -> tuple[int, jax.Array]:
    """Rows a step, static, so that the longest segment divides evenly; and the steps, at least 1."""
    starts, stops = plan.edges(np.array(extent, np.int32))
    longest = max(1, int((stops - starts)[: plan.segments].max()))
    rows_a_step = -(-longest // -(-longest // _ROWS_A_STEP))
    return rows_a_step, jnp.maximum(-(-jnp.max(rows.stop - rows.start) // rows_a_step), 1)


def _flattened(leaf: jax.Array, axis: int) -> jax.Array:
    return leaf.reshape(math.prod(leaf.shape[: axis + 1]), -1)


def _unflattened(flat: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    return flat.reshape(*shape[:axis], -1, *shape[axis + 1 :])


VALUES = gathered, masked
WINNERS = gathered_winners, masked_winners
SUMS = scattered, plain
PLAIN = plain, plain
