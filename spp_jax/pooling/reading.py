"""A map to the states of its segments: the only part of the op with a form per backend.

A form makes of a monoid a function ``read(state, segments)``. It takes a state, a pytree of arrays
``[batch, *spatial, channels]``, and per spatial axis its segments, as an
:class:`spp_jax.pooling.bins.AxisPlan` lays them out; it gives the state with one entry per segment in place
of every axis.

Five forms give values: `plain`, which is what the others are held to, `masked`, `masked_at_once`, `gathered`
and `picked`. Three give the winners of a max or min besides: `masked_winners`, `gathered_winners` and
`picked_winners`. Two are there for their derivatives: `scattered` gives sums in a way whose transpose is
fast, `scanned` the states of any other combine in a program whose size does not grow with the map.

A form of many windows makes of a monoid, and of what is kept of a window, ``read(state, segments)`` whose
segments are those of all windows. `each_alone` makes one of a form of one window; `rows_shared` reads rows
once for windows that have them in common. Which backend takes which stands at the end of this file.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32, PyTree, Shaped

from spp_jax.pooling.bins import AxisPlan
from spp_jax.pooling.reductions import Monoid

NO_WINNER = np.iinfo(np.int32).max

_ROWS_A_STEP = 16  # gathered rows that one step of a CPU loop combines before it writes its state back
_LEFT_OVER = 0.045  # the share of a map that a TPU leaves to be written and read again between two axes
_MOST_RESULTS = 16  # of one reduction there, as each takes time for every cell
_CELLS_A_STEP = {1: (16,), 2: (4, 4), 3: (2, 2, 4)}  # of a window, along each axis of so many
_OWN_CELLS_A_STEP = {1: (4,), 2: (2, 2), 3: (1, 2, 2)}
_SMALL_SIDES = 12, 28  # cells: of a map of which much is left after one axis, though less than it has bins
_BYTES_AT_ONCE = 4 << 20  # of such maps, that a CPU's caches hold
_CELLS_AT_ONCE = 2**14  # of a map that is one bin, which a CPU reads in one reduction
_FEW_CHANNELS = 192  # of a cell: so few are read with their row
_OWN_ROWS_A_STEP = 4  # by a combine of one's own: each more makes the program longer, and soon slower


class _Segments(NamedTuple):
    """Of one spatial axis: the plan, and where its segments and seams lie.

    int32 ``[batch, of them]``; of many windows, ``[windows, batch, of them]``.
    """

    plan: AxisPlan
    starts: jax.Array
    stops: jax.Array

    def long(self) -> tuple[jax.Array, jax.Array]:
        """Starts and stops of the segments alone."""
        return self.starts[:, : self.plan.segments], self.stops[:, : self.plan.segments]

    def seams(self) -> tuple[jax.Array, jax.Array]:
        """Starts and stops of the seams, each of at most one cell."""
        return self.starts[:, self.plan.segments :], self.stops[:, self.plan.segments :]


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


class Perhaps(Monoid):
    """Any other monoid without need of an identity: states are pairs (whether there is one, state)."""

    def __init__(self, states: Monoid):
        """Make the monoid of states of ``states`` that may be absent."""
        self.states = states

    def combine(self, a, b):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of two that are there their combination, else the one that is."""
        (a_is, a_state), (b_is, b_state) = a, b
        both = self.states.merge(a_state, b_state)

        def chosen(a, b, both):
            return jnp.where(a_is, jnp.where(b_is, both, a), b)

        return a_is | b_is, jax.tree.map(chosen, a_state, b_state, both)


def _is(value: jax.Array, best: jax.Array) -> jax.Array:
    """Whether a value is the best one of those it was compared with: equal, or NaN."""
    same = lax.eq(value, best)
    return same | lax.ne(value, value) if jnp.issubdtype(value.dtype, jnp.floating) else same


def read_grid(
    forms: tuple[Callable, Callable, Callable], monoid: Monoid, axes: Sequence[AxisPlan]
) -> Callable:
    """A function of (state, starts, lengths) that reads one window of each map, in the form of its backend.

    Args:
        forms: for a CPU, for a TPU, and for everything else.
        monoid: what combines the states.
        axes: one plan per spatial axis.

    Returns:
        The function: state ``[batch, *spatial, channels]``, a pytree; starts and lengths int32
        ``[batch, spatial_rank]``; to states ``[batch, *segments and seams, channels]``. Where the forms are
        of many windows, all but the state have an axis of windows before.
    """
    cpu, tpu, default = (form(monoid) for form in forms)

    @jax.named_scope("spatial_pyramid_pool")
    def read(
        state: PyTree[Shaped[Array, "batch *spatial channels"]],
        starts: Int32[Array, "*windows batch rank"],
        lengths: Int32[Array, "*windows batch rank"],
    ) -> PyTree[Shaped[Array, "*windows_batch_and_grid _"]]:
        of_plan = {plan: plan.edges(lengths) for plan in axes}
        edges = [
            tuple(starts[..., axis, None] + edge[..., axis, :] for edge in of_plan[plan])
            for axis, plan in enumerate(axes)
        ]

        def in_form(read: Callable) -> Callable:
            return lambda state, edges: read(
                state, [_Segments(plan, *edge) for plan, edge in zip(axes, edges, strict=True)]
            )

        # The one place where the form is chosen; an exported program carries all that it may need.
        return lax.platform_dependent(
            state, edges, cpu=in_form(cpu), tpu=in_form(tpu), default=in_form(default)
        )

    return read


def join_bins(
    state: PyTree[Shaped[Array, "... _"]],
    monoid: Monoid,
    levels: Sequence[tuple[int, ...]],
    axes: Sequence[AxisPlan],
) -> PyTree[Shaped[Array, "... _"]]:
    """The bins of all levels from the states of their segments and seams.

    Args:
        state: ``[*before, *segments and seams, channels]``, a pytree, as :func:`read_grid` gives it.
        monoid: as there.
        levels: normal, of one number of axes.
        axes: as there; their counts hold those of every level.

    Returns:
        States ``[*before, bins, channels]``: bins in the order of ``levels``, row-major inside a level.
    """
    before = jax.tree.leaves(state)[0].ndim - len(axes) - 1
    pooled = []
    for level in levels:
        part = state
        for axis, (bins, plan) in enumerate(zip(level, axes, strict=True)):
            part = _joined(part, before + axis, plan.members(bins), monoid.merge)
        pooled.append(jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:before], -1, leaf.shape[-1]), part))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=before), *pooled)


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

    # Neighbouring bins whose members are equidistant are joined at once; for levels that divide the finest
    # one that is all of them, or, where there are seams, all but the last.
    groups: list[list[Sequence[int]]] = []
    for within in members:
        last = groups[-1][-2:] if groups else []
        steps = {y - x for pair in itertools.pairwise([*last, within]) for x, y in zip(*pair, strict=False)}
        if last and len(last[0]) == len(within) and len(steps) == 1:
            groups[-1].append(within)
        else:
            groups.append([within])
    return concatenate([of_equal_length(group) for group in groups])


def _axis_by_axis(read: Callable) -> Callable:
    """From a function that reads one axis, ``read(state, axis, segments)``, to one that reads all in turn."""

    def read_all(state, segments):
        for axis, of_axis in enumerate(segments, 1):
            state = read(state, axis, of_axis)
        return state

    return read_all


def plain(monoid: Monoid) -> Callable:
    """A segment is a mask over all cells. What JAX can differentiate, and what the others are held to."""

    def read(state, axis, segments):
        _, starts, stops = segments
        shape = jax.tree.leaves(state)[0].shape
        along = (-1, *(1,) * (axis - 1), starts.shape[1], *(1,) * (len(shape) - axis))
        line = jnp.arange(shape[axis], dtype=jnp.int32).reshape(-1, *(1,) * (len(shape) - axis - 1))
        inside = (line >= starts.reshape(along)) & (line < stops.reshape(along))
        identity = monoid.identity(state)
        masked = jax.tree.map(
            lambda leaf, none: jnp.where(inside, jnp.expand_dims(leaf, axis), none), state, identity
        )
        if monoid.combine is lax.add:
            return jax.tree.map(lambda leaf: leaf.sum(axis + 1), masked)
        return lax.reduce(masked, identity, monoid.merge, (axis + 1,))

    return _axis_by_axis(read)


def scattered(_: Monoid) -> Callable:
    """Sums again, for their transpose: each row of the gradient is the sum of its segment's and seams'.

    The segments of a sum do not overlap, so a row is added to one of them, and its gradient is copied
    from there; a seam is one row at most, and its gradient is added where that is.
    """

    def sums(leaf, axis, segments):
        starts, stops = segments.long()
        line = jnp.arange(leaf.shape[axis], dtype=jnp.int32)
        segment = (line >= stops[..., None]).sum(1)
        real = (line >= starts[:, :1]) & (line < stops[:, -1:])
        rows = jnp.moveaxis(leaf, axis, 1)
        image = jnp.arange(rows.shape[0])[:, None]
        added = jnp.zeros((rows.shape[0], starts.shape[1], *rows.shape[2:]), rows.dtype)
        added = added.at[image, jnp.where(real, segment, starts.shape[1])].add(rows, mode="drop")
        parts = [added]
        for start, stop in zip(*(edges.T for edges in segments.seams()), strict=True):
            seam = (line == start[:, None]) & (start < stop)[:, None]
            seam = seam.reshape(*seam.shape, *(1,) * (rows.ndim - 2))
            parts.append(jnp.where(seam, rows, jnp.zeros((), rows.dtype)).sum(1, keepdims=True))
        return jnp.moveaxis(jnp.concatenate(parts, 1), 1, axis)

    read = _axis_by_axis(
        lambda state, axis, segments: jax.tree.map(lambda leaf: sums(leaf, axis, segments), state)
    )

    def fenced(state, segments):
        # Always true, which XLA cannot know: else the transpose would join bins anew for every cell.
        real = jnp.stack([of_axis.stops.max() for of_axis in segments]).max() >= 0
        zeros = functools.partial(jax.tree.map, jnp.zeros_like)
        return lax.cond(real, lambda sums: sums, zeros, read(state, segments))

    return fenced


def scanned(perhaps: Perhaps) -> Callable:
    """Row after row to one state, begun anew at each segment: one loop an axis, which JAX can transpose.

    For a combine of the user's, of which JAX takes the derivative. Segments without seams do not overlap, so
    each row goes to one of them. Where it is its segment's first it is the state, and a segment without cells
    has that of some row: the identity, at which the derivative may be no number, is never combined.
    """
    monoid = perhaps.states

    def read(state, axis, segments):
        starts, stops = segments.long()
        rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, 0), state)
        length, batch, *others = jax.tree.leaves(rows)[0].shape
        line = jnp.arange(length, dtype=jnp.int32)[:, None, None]
        firsts = (line == starts).any(-1).reshape(length, batch, *(1,) * len(others))

        def step(before, row_and_first):
            row, first = row_and_first
            both = monoid.merge(before, row)
            state = jax.tree.map(lambda row, both: jnp.where(first, row, both), row, both)
            return state, state

        def at(rows, place):
            image = jnp.arange(batch, dtype=jnp.int32)[:, None]
            return jax.tree.map(lambda leaf: leaf[jnp.clip(place, 0, length - 1), image], rows)

        _, running = lax.scan(step, jax.tree.map(lambda leaf: leaf[0], rows), (rows, firsts))
        states = at(running, stops - 1)
        if segments.plan.seams:
            seams = at(rows, segments.seams()[0])
            states = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), states, seams)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, axis), states)

    def read_all(state, segments):
        full = functools.reduce(
            lax.bitwise_and,
            (_over_grid(s.starts < s.stops, axis, segments) for axis, s in enumerate(segments)),
        )
        return full[..., None], _axis_by_axis(read)(state, segments)

    return read_all


def masked(monoid: Monoid) -> Callable:
    """Segments in one reduction an axis with one result each, so that the map is read once: TPU and GPU.

    The longest axis is read first, since what is left after it is written and read again.
    """

    def read(state, segments):
        for axis in _longest_first(state):
            state = _masked_together(monoid, state, segments, [axis])
        return state

    return read


def masked_at_once(monoid: Monoid) -> Callable:
    """The same, but all axes in one reduction where much of the map would be left after one: TPU."""

    def read(state, segments):
        first, *others = _longest_first(state)
        results = [of_axis.starts.shape[1] for of_axis in segments]
        left = results[first] / jax.tree.leaves(state)[0].shape[first + 1]
        if others and left > _LEFT_OVER and math.prod(results) <= _MOST_RESULTS:
            return _masked_together(monoid, state, segments, range(len(segments)))
        return masked(monoid)(state, segments)

    return read


def _longest_first(state: PyTree) -> list[int]:
    """The spatial axes by their extents."""
    spatial = jax.tree.leaves(state)[0].shape[1:-1]
    return sorted(range(len(spatial)), key=lambda axis: -spatial[axis])


def _masked_together(
    monoid: Monoid, state: PyTree, segments: Sequence[_Segments], over: Sequence[int]
) -> PyTree:
    """The axes ``over``, neighbours, to their segments, in one reduction."""
    shape = jax.tree.leaves(state)[0].shape
    identity = monoid.identity(state)

    def inside(axis: int) -> list[jax.Array]:
        line = jnp.arange(shape[axis + 1], dtype=jnp.int32).reshape(-1, *(1,) * (len(shape) - axis - 2))
        per_image = (-1, *(1,) * (len(shape) - 1))
        edges = zip(segments[axis].starts.T, segments[axis].stops.T, strict=True)
        return [
            (line >= start.reshape(per_image)) & (line < stop.reshape(per_image)) for start, stop in edges
        ]

    parts = []
    for masks in itertools.product(*map(inside, over)):
        mask = functools.reduce(operator.and_, masks)
        parts.append(jax.tree.map(lambda x, none, mask=mask: jnp.where(mask, x, none), state, identity))

    def combine(a, b):
        return [monoid.merge(*pair) for pair in zip(a, b, strict=True)]

    parts = lax.reduce(parts, [identity] * len(parts), combine, tuple(axis + 1 for axis in over))
    grid = [segments[axis].starts.shape[1] for axis in over]
    first = over[0] + 1

    def placed(*leaves: jax.Array) -> jax.Array:
        stacked = jnp.stack(leaves, first)
        return stacked.reshape(*stacked.shape[:first], *grid, *stacked.shape[first + 1 :])

    return jax.tree.map(placed, *parts)


def masked_winners(winner: Winner) -> Callable:
    """The same over pairs (value, row-major index)."""

    def read(state, segments):
        spatial = state.shape[1:-1]
        index = jnp.arange(math.prod(spatial), dtype=jnp.int32).reshape(*spatial, 1)
        return masked(winner)((state, jnp.broadcast_to(index, state.shape)), segments)

    return read


def gathered(monoid: Monoid) -> Callable:
    """True rows alone are gathered, from all segments at once, several a step of a loop: CPU.

    Where a cell may be combined twice, a segment's last row stands in for those beyond its end, so that
    there is no mask. The loop's trip count is data, which keeps XLA from fusing across it. Its first
    step is taken outside, which saves the state one trip through memory.

    Where one bin is the whole of a map of few cells, the map is one masked reduction: its time is about the
    same, and it compiles in a fifth of the time.
    """
    by_rows = _gathered(monoid, **_steps_of(monoid))

    def read(state, segments):
        cells = math.prod(jax.tree.leaves(state)[0].shape[1:-1])
        if cells <= _CELLS_AT_ONCE and all(of_axis.starts.shape[1] == 1 for of_axis in segments):
            return _masked_together(monoid, state, segments, range(len(segments)))
        return by_rows(state, segments)

    return read


def _steps_of(monoid: Monoid) -> dict[str, int]:
    """How rows are gathered, as :func:`_gathered_axis` takes it: by a combine of one's own, few at a time."""
    ours = monoid.selects or monoid.combine is lax.add
    return {"outside": 1, "most": _ROWS_A_STEP} if ours else {"outside": 0, "most": _OWN_ROWS_A_STEP}


def _gathered_axis(monoid: Monoid, *, outside: int, most: int = _ROWS_A_STEP) -> Callable:
    """A function that reads one axis so.

    ``outside``, 0 or 1: steps taken before the loop, which XLA may fuse with what makes the state.
    ``most``: rows of a step.
    """

    def read(flat, shape, axis, segments, first_image=0):
        """One axis of the images, as many as ``shape`` says, from ``first_image`` of the array on."""
        plan = segments.plan
        identity = monoid.identity(flat)
        rows = _Rows.of(shape, axis, segments.long(), first_image)
        rows_a_step = _evenly(plan, shape[axis], most)
        steps = _steps(segments, rows_a_step)

        def gather(rows: _Rows, offset, count: int = 1) -> list[PyTree]:
            """Rows ``offset`` to ``offset + count - 1`` of each segment."""
            offsets = offset + np.arange(count, dtype=np.int32)[:, None]
            cells = [jax.tree.map(lambda leaf, at=at: _rows_at(leaf, at), flat) for at in rows.at(offsets)]
            if monoid.idempotent and not plan.empties:
                return cells
            return [
                jax.tree.map(lambda x, none, real=real: jnp.where(real, x, none), each, identity)
                for each, real in zip(cells, rows.inside(offsets), strict=True)
            ]

        def step(number, best):
            cells = gather(rows, number * rows_a_step, rows_a_step)
            return monoid.merge_all(cells if best is None else [best, *cells])

        # Made from the state, lest under shard_map it varies over fewer devices.
        first = step(0, None) if outside else _filled_like(gather(rows, 0)[0], identity)
        best = lax.fori_loop(outside, steps, step, first)
        best = jax.tree.map(lambda leaf: _unflattened(leaf, shape, axis), best)
        if plan.seams:
            (seams,) = gather(_Rows.of(shape, axis, segments.seams(), first_image), 0)
            seams = jax.tree.map(lambda leaf: _unflattened(leaf, shape, axis), seams)
            best = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis), best, seams)
        return best

    return read


def _whole_axis(read: Callable, state: PyTree, axis: int, segments: _Segments) -> PyTree:
    """An axis of all images of a state, by what :func:`_gathered_axis` gives."""
    flat = jax.tree.map(lambda leaf: _flattened(leaf, axis), state)
    return read(flat, jax.tree.leaves(state)[0].shape, axis, segments)


def _gathered(monoid: Monoid, *, outside: int, most: int = _ROWS_A_STEP) -> Callable:
    """All axes so, of as many images at once as a CPU's caches hold; as for :func:`_gathered_axis`."""
    read = _gathered_axis(monoid, outside=outside, most=most)

    def read_images(flat, shape, segments, first_image=0):
        state = read(flat, shape, 1, segments[0], first_image)
        for axis, of_axis in enumerate(segments[1:], 2):
            state = _whole_axis(read, state, axis, of_axis)
        return state

    def read_all(state, segments):
        shape = jax.tree.leaves(state)[0].shape
        images = _images_at_once(state)
        flat = jax.tree.map(lambda leaf: _flattened(leaf, 1), state)
        if images == segments[0].starts.shape[0]:
            return read_images(flat, shape, segments)
        return _some_by_some(lambda *some: read_images(flat, (images, *shape[1:]), *some), images, segments)

    return read_all


def _some_by_some(read: Callable, images: int, segments: Sequence[_Segments]) -> PyTree:
    """From a function of the segments of so many images, and of the first one's number, the state of all.

    What an axis leaves for the next is then still in a cache when that reads it: it is much of a small map.
    """
    batch = len(segments[0].starts)

    def some(first: jax.Array | int) -> PyTree:
        def edges(edge: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(edge, first, images)

        return read(
            [each._replace(starts=edges(each.starts), stops=edges(each.stops)) for each in segments], first
        )

    def step(number: jax.Array, whole: PyTree) -> PyTree:
        first = jnp.minimum(number * images, batch - images)  # some of the last ones may be read twice
        return jax.tree.map(
            lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, first, 0), whole, some(first)
        )

    # The first ones outside of the loop: under shard_map the whole varies over as many devices as they.
    whole = jax.tree.map(
        lambda part: jnp.pad(part, [(0, batch - images)] + [(0, 0)] * (part.ndim - 1)), some(0)
    )
    return lax.fori_loop(1, -(-batch // images), step, whole)


def _images_at_once(state: PyTree) -> int:
    """How many images of a batch a CPU reads at once: of small maps, as many as its caches hold."""
    leaves = jax.tree.leaves(state)
    batch, *spatial, _ = leaves[0].shape
    if not isinstance(batch, int):  # of a program that is exported for any
        return batch
    rounds = math.ceil(sum(leaf.nbytes for leaf in leaves) / _BYTES_AT_ONCE)
    small = len(spatial) > 1 and _SMALL_SIDES[0] <= max(spatial) <= _SMALL_SIDES[1]
    return -(-batch // rounds) if small and 2 < rounds < batch else batch


def picked(monoid: Monoid) -> Callable:
    """Cells gathered from the grid of all axes at once, several a step of a loop: windows, on a CPU.

    A window's own cells are all that is read, where reading axis by axis would read its rows to the edges of
    the map first. Segments and seams, which are short, have loops of their own.
    """
    most = _CELLS_A_STEP if monoid.selects or monoid.combine is lax.add else _OWN_CELLS_A_STEP

    def read(state, segments):
        batch, *spatial, channels = jax.tree.leaves(state)[0].shape
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, channels), state)
        masked = not monoid.idempotent or any(of_axis.plan.empties for of_axis in segments)
        identity = monoid.identity(state)

        def of_grid(grid: Sequence[_Segments], cells_a_step: Sequence[int]) -> PyTree:
            starts = [_over_grid(of_axis.starts, axis, grid) for axis, of_axis in enumerate(grid)]
            stops = [_over_grid(of_axis.stops, axis, grid) for axis, of_axis in enumerate(grid)]
            image = _over_grid(jnp.arange(batch, dtype=jnp.int32)[:, None], -1, grid)
            steps = [_steps(*pair) for pair in zip(grid, cells_a_step, strict=True)]

            def cell(offsets) -> PyTree:
                """The cell at these offsets in each segment, or its last one."""
                place, inside = image, jnp.ones_like(image, bool)
                for start, stop, offset, extent in zip(starts, stops, offsets, spatial, strict=True):
                    place = place * extent + jnp.maximum(jnp.minimum(start + offset, stop - 1), 0)
                    inside &= start + offset < stop
                cells = jax.tree.map(lambda leaf: _rows_at(leaf, place.reshape(-1)), flat)
                if not masked:
                    return cells
                return jax.tree.map(
                    lambda x, none: jnp.where(inside.reshape(-1, 1), x, none), cells, identity
                )

            def step(number, best):
                first = [
                    step * cells for step, cells in zip(_unraveled(number, steps), cells_a_step, strict=True)
                ]
                cells = [
                    cell([a + int(b) for a, b in zip(first, beyond, strict=True)])
                    for beyond in np.ndindex(*cells_a_step)
                ]
                return monoid.merge_all([best, *cells])

            best = _filled_like(cell([0] * len(grid)), identity)
            best = lax.fori_loop(0, functools.reduce(lax.mul, steps), step, best)
            return jax.tree.map(lambda leaf: leaf.reshape(*image.shape, channels), best)

        def of_rest(grid: list[_Segments], cells_a_step: list[int]) -> PyTree:
            """The grid begun so over the axes left, each of its segments and of its seams."""
            axis = len(grid)
            if axis == len(segments):
                return of_grid(grid, cells_a_step)
            of_axis = segments[axis]
            parts = [
                of_rest([*grid, of_axis._replace(starts=starts, stops=stops)], [*cells_a_step, cells])
                for (starts, stops), cells in (
                    (of_axis.long(), most[len(segments)][axis]),
                    *([(of_axis.seams(), 1)] if of_axis.plan.seams else []),
                )
            ]
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1 + axis), *parts)

        return of_rest([], [])

    return read


def each_alone(form: Callable) -> Callable:
    """From a form of one window to one of many: a loop over them."""

    def of_windows(monoid: Monoid, kept: Callable) -> Callable:
        """``kept``: from a window's states to what is kept of it."""
        read = form(monoid)

        def read_all(state, windows):
            plans = [of_axis.plan for of_axis in windows]

            def of_window(edges):
                return kept(read(state, [_Segments(*each) for each in zip(plans, *edges, strict=True)]))

            return lax.map(
                of_window, ([of_axis.starts for of_axis in windows], [of_axis.stops for of_axis in windows])
            )

        return read_all

    return of_windows


def rows_shared(monoid: Monoid, kept: Callable) -> Callable:
    """A loop over windows where those that follow one another with the same rows read these once: CPU.

    A window's rows, combined to its segments of the first axis, are a map again, of few rows. The next window
    with the same rows reads that map alone. A window whose rows are not its neighbours' is `picked`, so that
    only its own columns are read; but where cells have few channels a row of the map takes less time than
    the steps of a loop over cells.
    """
    read_axis = _gathered_axis(monoid, **_steps_of(monoid))
    by_cells, alone = picked(monoid), each_alone(picked)(monoid, kept)

    of_axis = functools.partial(_whole_axis, read_axis)

    def read_all(state, windows):
        if len(windows) == 1:
            return alone(state, windows)
        # What a state is lifted to of constants alone would be filled in anew for each window.
        state = lax.optimization_barrier(state)
        plans = [axis.plan for axis in windows]
        few = jax.tree.leaves(state)[0].shape[-1] <= _FEW_CHANNELS

        def step(before, window):
            edges, next_rows = window
            segments = [_Segments(plan, *edge) for plan, edge in zip(plans, edges, strict=True)]

            def by_rows(before):
                rows, states = lax.cond(
                    _equal(before[0], edges[0]),
                    lambda before: before,
                    lambda _: (edges[0], of_axis(state, 1, segments[0])),
                    before,
                )
                found = states
                for axis, others in enumerate(segments[1:], 2):
                    found = of_axis(found, axis, others)
                return (rows, states), kept(found)

            if few:
                return by_rows(before)
            shares = _equal(before[0], edges[0]) | _equal(next_rows, edges[0])
            return lax.cond(shares, by_rows, lambda before: (before, kept(by_cells(state, segments))), before)

        edges = [(axis.starts, axis.stops) for axis in windows]
        nowhere = tuple(-1 - 0 * each[0] for each in edges[0])
        next_rows = tuple(
            jnp.concatenate([each[1:], none[None]]) for each, none in zip(edges[0], nowhere, strict=True)
        )
        # Made from the state and the windows, lest under shard_map it varies over fewer devices.
        first = jnp.clip(edges[0][0][0], 0, jax.tree.leaves(state)[0].shape[1] - 1)
        image = jnp.arange(len(first), dtype=jnp.int32)[:, None]
        states = _filled_like(jax.tree.map(lambda leaf: leaf[image, first], state), monoid.identity(state))
        before = nowhere, states
        return lax.scan(step, before, (edges, next_rows))[1]

    return read_all


def _equal(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """Whether two axes of a window have the same starts and stops."""
    return functools.reduce(lax.bitwise_and, [(x == y).all() for x, y in zip(a, b, strict=True)])


def gathered_winners(winner: Winner) -> Callable:
    """The values so, then a loop over the cells of all segments for the first that holds its value.

    Comparing values is right here, because both loops are handed one array: what a loop is given is not
    computed anew for it. Hence no step outside, and hence the array is flat in one way for both: a second
    reshape would do for XLA to compute the features a second time, and to round them differently.
    """
    return _first_of(winner, _gathered(winner.values, outside=0))


def picked_winners(winner: Winner) -> Callable:
    """The same of windows, whose loop holds the array fast."""
    return _first_of(winner, picked(winner.values))


def _first_of(winner: Winner, values_of: Callable) -> Callable:
    def read(state, segments):
        values = values_of(state, segments)
        batch, *spatial, channels = state.shape
        grid = values.shape[1:-1]
        flat, best = _flattened(state, 1), values.reshape(-1, channels)

        def over_grid(edge: jax.Array, axis: int) -> jax.Array:
            return _over_grid(edge, axis, segments).reshape(-1)

        image = over_grid(jnp.arange(batch, dtype=jnp.int32)[:, None], -1)
        starts = [over_grid(of_axis.starts, axis) for axis, of_axis in enumerate(segments)]
        stops = [over_grid(of_axis.stops, axis) for axis, of_axis in enumerate(segments)]
        # One row-major loop over the steps of all axes: several cells a step on the last, one on the others.
        cells_a_step = [1] * (len(grid) - 1) + [_evenly(segments[-1].plan, spatial[-1])]
        steps = [_steps(of_axis, cells) for of_axis, cells in zip(segments, cells_a_step, strict=True)]
        total = functools.reduce(lax.mul, steps)

        def find(number, first):
            at_step = _unraveled(total - 1 - number, steps)  # backwards: the first is found last
            offsets: list = [step * cells for step, cells in zip(at_step, cells_a_step, strict=True)]
            offsets[-1] = offsets[-1] + np.arange(cells_a_step[-1], dtype=np.int32)[:, None]
            *before, last = (
                jnp.maximum(jnp.minimum(start + offset, stop - 1), 0)
                for start, stop, offset in zip(starts, stops, offsets, strict=True)
            )
            for place in reversed(range(cells_a_step[-1])):
                at = [*before, last[place]]
                # In the flat array, a row per cell of the first axis: in it, and before it.
                row, beside = image * spatial[0] + at[0], jnp.zeros_like(image)
                for axis in range(1, len(grid)):
                    beside = beside * spatial[axis] + at[axis]
                index = at[0] * math.prod(spatial[1:]) + beside
                cell = _cells_at(flat, row, beside * channels, channels)
                first = jnp.where(_is(cell, best), index[:, None], first)
            return first

        none = _filled_like(best, jnp.int32(NO_WINNER))
        index = lax.fori_loop(0, total, find, none)
        if any(of_axis.plan.empties for of_axis in segments):
            full = [start < stop for start, stop in zip(starts, stops, strict=True)]
            index = jnp.where(functools.reduce(lax.bitwise_and, full)[:, None], index, none)
        return values, index.reshape(values.shape)

    return read


def _unraveled(number: jax.Array, counts: Sequence[jax.Array]) -> list[jax.Array]:
    """The place along each axis of the cell of that row-major number in a grid of so many."""
    places = []
    for count in reversed(counts):
        places.insert(0, number % count)
        number = number // count
    return places


def _over_grid(values: jax.Array, axis: int, segments: Sequence[_Segments]) -> jax.Array:
    """Values of the segments of one axis, ``[batch, of them]``, or of images, over the grid of all axes."""
    grid = [of_axis.starts.shape[1] for of_axis in segments]
    along = (-1, *(values.shape[1] if other == axis else 1 for other in range(len(grid))))
    return jnp.broadcast_to(values.reshape(along), (len(values), *grid))


def _rows_at(flat: jax.Array, row: jax.Array) -> jax.Array:
    """``flat[row]`` for each of many."""
    numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(flat, row[:, None], numbers, (1, flat.shape[1]), mode=mode)


def _cells_at(flat: jax.Array, row: jax.Array, column: jax.Array, channels: int) -> jax.Array:
    """``flat[row, column : column + channels]`` for each of many: ``[many, channels]``."""
    numbers = lax.GatherDimensionNumbers((1,), (0,), (0, 1))
    place = jnp.stack([row, column], axis=-1)
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(flat, place, numbers, (1, channels), mode=mode)


class _Rows(NamedTuple):
    """Segments of one axis as rows of an array flattened to ``[before * along, behind]``; int32 each."""

    base: jax.Array
    start: jax.Array
    stop: jax.Array

    @classmethod
    def of(
        cls, shape: tuple[int, ...], axis: int, edges: tuple[jax.Array, jax.Array], first_image: Any
    ) -> "_Rows":
        """``edges``: starts and stops of segments; ``first_image``: where ``shape``'s begin in the array."""
        before = shape[:axis]
        line = jnp.arange(math.prod(before), dtype=jnp.int32).reshape(*before, 1)
        base = (line + first_image * math.prod(before[1:])) * shape[axis]
        per_image = (before[0], *(1,) * (axis - 1), edges[0].shape[1])
        places = (edge.reshape(per_image) + base for edge in (jnp.zeros_like(edges[0]), *edges))
        return cls(*(place.reshape(-1) for place in places))

    def at(self, offsets) -> jax.Array:
        """Where each segment has its rows ``offsets``, ``[n, 1]``, or its last one: ``[n, rows]``."""
        # A segment without cells, at the very start of an axis, would ask for the row before it.
        return jnp.maximum(jnp.minimum(self.start + offsets, self.stop - 1), self.base)

    def inside(self, offsets) -> jax.Array:
        """Whether each segment has rows ``offsets``, ``[n, 1]``: ``[n, rows, 1]``."""
        return (self.start + offsets < self.stop)[..., None]


def _evenly(plan: AxisPlan, extent: int, most: int = _ROWS_A_STEP) -> int:
    """How many rows a step takes, so that the longest segment of a map without padding divides evenly."""
    starts, stops = plan.edges(np.array(extent, np.int32))
    longest = max(1, int((stops - starts)[: plan.segments].max()))
    return -(-longest // -(-longest // most))


def _steps(segments: _Segments, rows_a_step: int) -> jax.Array:
    """How many steps the longest segment takes, at least 1."""
    longest = jnp.max(segments.stops - segments.starts)
    # Sizes that are constants would let XLA unroll the loop, and fuse what it fences off.
    longest = lax.optimization_barrier(longest)
    return jnp.maximum((longest + rows_a_step - 1) // rows_a_step, 1)


def _filled_like(state: PyTree, value: PyTree) -> PyTree:
    """A state of one value in every place; XLA drops what it was made from."""
    return jax.tree.map(lambda leaf, value: jnp.where(leaf == leaf, value, value), state, value)


def _flattened(leaf: jax.Array, axis: int) -> jax.Array:
    return leaf.reshape(math.prod(leaf.shape[: axis + 1]), -1)


def _unflattened(flat: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    return flat.reshape(*shape[:axis], -1, *shape[axis + 1 :])


VALUES = gathered, masked_at_once, masked
WINNERS = gathered_winners, masked_winners, masked_winners
VALUES_OF_WINDOWS = rows_shared, each_alone(masked_at_once), each_alone(masked)
WINNERS_OF_WINDOWS = each_alone(picked_winners), each_alone(masked_winners), each_alone(masked_winners)
SUMS = scattered, plain, plain
SCANNED = scanned, scanned, scanned
