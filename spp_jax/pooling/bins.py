"""Where the bins of a pyramid lie, and how one reading of an axis serves every level.

A rule says where bin ``i`` of ``n`` starts and stops on an axis of ``L`` cells, half open. Four are
known, and adding one is a line in ``_RULES``:

``"adaptive"``
    ``[floor(i*L/n), ceil((i+1)*L/n))``: SPP-net, appendix A, and torch's adaptive pools. Covers every
    cell, is never empty, and neighbours share at most one cell.
``"partition"``
    The first ``L % n`` bins have one cell more than the others: ``numpy.array_split``, and the
    adaptive pools of equinox. Bins do not overlap; where ``L < n`` the last ones are empty.
``"rounded"``
    ``[round(i*L/n), round((i+1)*L/n))``, halves to even: the pyramid of keras-spp (which rounds in
    float32; here it is exact). Bins do not overlap; where ``L < n`` some are empty.
``"sliding"``
    A window of ``ceil(L/n)`` cells at stride ``floor(L/n)``: SPP-net, section 2.3 (single-size
    training). Defined where that gives ``n`` windows: ``L >= n``, and ``L % n <= L // n``. It leaves out
    the last ``L % n - 1`` cells.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

__all__ = [
    "AxisPlan",
    "Level",
    "Levels",
    "bin_edges",
    "cells_in_bins",
    "check_lengths",
    "longest_bin",
    "normalize_levels",
    "num_bins",
    "rule_named",
    "turned_bins",
]

Level: TypeAlias = "int | Sequence[int]"
"""Bins along every spatial axis, or one count per spatial axis."""

Levels: TypeAlias = tuple[tuple[int, ...], ...]
"""A pyramid as :func:`normalize_levels` gives it: hashable, one count of bins per spatial axis."""


_MOST_CELLS = np.iinfo(np.int32).max


class _Rule(NamedTuple):
    """Bin ``i`` of ``n`` over ``L`` cells; ``i``, ``n`` and ``L`` are integer arrays.

    Attributes:
        start: first cell, from (i, n, L).
        stop: one past the last cell, from (i, n, L).
        nests: ``start`` depends on ``i/n`` alone and ``stop`` on ``(i+1)/n`` alone, so that a bin is the
            union of the finer ones that it covers.
        overlaps: neighbours may share a cell.
        empties: a bin may be empty on an axis that is not.
        defined: whether the rule gives ``n`` bins, from (n, L).
    """

    start: Callable[[Any, Any, Any], Any]
    stop: Callable[[Any, Any, Any], Any]
    nests: bool = False
    overlaps: bool = False
    empties: bool = False
    defined: Callable[[Any, Any], Any] = lambda n, length: length >= 0


# With L = q*n + r, i*L/n = i*q + i*r/n: nothing below exceeds L + n*n + n, where i*L could overflow.


def _divided(a, b):
    """Quotient and remainder; nothing here is negative, so on JAX without the correction for signs."""
    if isinstance(a, jax.Array):
        a, b = jnp.broadcast_arrays(a, b)
        return lax.div(a, b), lax.rem(a, b)
    return np.divmod(a, b)


def _floor(i, n, length):
    quotient, remainder = _divided(length, n)
    return i * quotient + _divided(i * remainder, n)[0]


def _ceil(i, n, length):
    quotient, remainder = _divided(length, n)
    return i * quotient + _divided(i * remainder + n - 1, n)[0]


def _round(i, n, length):
    quotient, remainder = _divided(length, n)
    whole, rest = _divided(i * remainder, n)
    low = i * quotient + whole
    return low + ((2 * rest > n) | ((2 * rest == n) & (low % 2 == 1)))


def _split(i, n, length):
    quotient, remainder = _divided(length, n)
    longer = jnp.minimum if isinstance(length, jax.Array) else np.minimum
    return i * quotient + longer(i, remainder)


def _slide(i, n, length):
    return i * _divided(length, n)[0]


def _slide_end(i, n, length):
    quotient, remainder = _divided(length, n)
    return i * quotient + quotient + (remainder > 0)


_RULES: dict[str, _Rule] = {
    "adaptive": _Rule(_floor, lambda i, n, length: _ceil(i + 1, n, length), nests=True, overlaps=True),
    "partition": _Rule(_split, lambda i, n, length: _split(i + 1, n, length), empties=True),
    "rounded": _Rule(_round, lambda i, n, length: _round(i + 1, n, length), nests=True, empties=True),
    "sliding": _Rule(
        _slide,
        _slide_end,
        overlaps=True,
        defined=lambda n, length: (length == 0) | ((length >= n) & (length % n <= length // n)),
    ),
}


def rule_named(rule: str) -> _Rule:
    """The rule of that name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(rule, str) or rule not in _RULES:
        raise ValueError(f"rule={rule!r} is unknown; known are {', '.join(map(repr, _RULES))}")
    return _RULES[rule]


@overload
def bin_edges(length: jax.Array, bins: int, *, rule: str = ...) -> tuple[jax.Array, jax.Array]: ...
@overload
def bin_edges(
    length: int | Sequence[int] | np.ndarray | np.integer, bins: int, *, rule: str = ...
) -> tuple[np.ndarray, np.ndarray]: ...
def bin_edges(length, bins, *, rule="adaptive"):
    """Where each of ``bins`` bins over ``length`` cells starts and stops, in integer arithmetic.

    Args:
        length: cells, int or integer array of any shape, values >= 0. Ints and NumPy give NumPy
            (usable as slice bounds), JAX arrays and tracers give JAX.
        bins: how many bins, a static int >= 1.
        rule: static; one of those that :mod:`spp_jax.pooling.bins` describes.

    Returns:
        ``(starts, stops)``, int32, each of shape ``[*length.shape, bins]``.

    Raises:
        ValueError: ``bins`` is no int >= 1, ``rule`` is unknown, or a ``length`` known now is negative,
            beyond int32, or one for which the rule is not defined. Under ``jit``, where that cannot be
            checked, ``"sliding"`` gives the first ``bins`` windows, cut off at the length.
        TypeError: ``length`` is not of an integer type.

    Source: SPP-net, appendix A; the rule of ``torch.nn.AdaptiveMaxPool2d``.

    Example:
        >>> starts, stops = bin_edges(7, 3)
        >>> starts.tolist(), stops.tolist()
        ([0, 2, 4], [3, 5, 7])
    """
    bins = _positive_int(bins, "bins")
    rule_named(rule)  # a wrong name is said before a wrong length
    length = jnp.asarray(length) if isinstance(length, jax.Array) else np.asarray(length)
    if not jnp.issubdtype(length.dtype, jnp.integer):
        raise TypeError(f"bin_edges: length must be integers (cells), got dtype {length.dtype}")
    if not isinstance(length, Tracer):
        check_lengths(np.asarray(length), bins, rule)
    return AxisPlan((bins,), rule).edges(length)


def check_lengths(lengths: np.ndarray, bins: int, rule: str) -> None:
    """Refuse lengths, integers in cells, over which ``rule`` does not give ``bins`` bins.

    Raises:
        ValueError: as :func:`bin_edges` says.
    """
    defined = rule_named(rule).defined
    wrong = lengths[(lengths < 0) | (lengths > _MOST_CELLS)]
    if wrong.size:
        raise ValueError(f"bin_edges: length must be >= 0 cells and fit in int32, got {wrong[0]}")
    undefined = lengths[~defined(bins, lengths.astype(np.int32))]
    if undefined.size:
        raise ValueError(f"bin_edges: rule {rule!r} does not give {bins} bins over {undefined[0]} cells")


def num_bins(levels: Sequence[Level], spatial_rank: int = 2) -> int:
    """How many bins a pyramid has: the sum of those of its levels.

    Args:
        levels: the pyramid, as :func:`spp_jax.spatial_pyramid_pool` takes it.
        spatial_rank: the number of spatial axes.

    Raises:
        ValueError: see :func:`normalize_levels`.

    Example:
        >>> num_bins((1, 2, 4)), num_bins((1, 2, 4), spatial_rank=1)
        (21, 7)
    """
    return sum(math.prod(level) for level in normalize_levels(levels, spatial_rank))


def turned_bins(levels: Sequence[Level]) -> np.ndarray:
    """Where the bins of a map are in the pyramid of the map with its two axes swapped: int ``[num_bins]``.

    ``pyramid(features)`` is ``pyramid(features.swapaxes(1, 2))[:, turned_bins(levels)]``.

    Args:
        levels: the pyramid, of two axes.

    Raises:
        ValueError: see :func:`normalize_levels`; or a level has other bins per row than per column.
    """
    places, before = [], 0
    for rows, columns in normalize_levels(levels, 2):
        if rows != columns:
            raise ValueError(
                f"the level {rows, columns} of {levels} is not square: a batch that may be turned needs "
                "square levels; plan buckets of one orientation (both_orientations=False)"
            )
        places.append(before + np.arange(rows * columns).reshape(rows, columns).T.ravel())
        before += rows * columns
    return np.concatenate(places)


def normalize_levels(levels: Sequence[Level], spatial_rank: int) -> Levels:
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


def cells_in_bins(lengths: jax.Array, levels: Levels, rule: str) -> jax.Array:
    """How many cells each bin has.

    Args:
        lengths: int32 ``[batch, windows, spatial_rank]``, in cells.
        levels: normal.
        rule: one of those above.

    Returns:
        int32 ``[batch, windows, bins, 1]``: bins in the order of ``levels``, row-major inside a level.
    """
    counts = []
    for level in levels:
        cells = jnp.ones((*lengths.shape[:2], 1), jnp.int32)
        for axis, bins in enumerate(level):
            starts, stops = bin_edges(lengths[..., axis], bins, rule=rule)
            cells = (cells[..., None] * (stops - starts)[..., None, :]).reshape(*lengths.shape[:2], -1)
        counts.append(cells)
    return jnp.concatenate(counts, axis=-1)[..., None]


@functools.lru_cache(maxsize=1024)
def longest_bin(extent: int, bins: int, rule: str) -> int:
    """The most cells that a bin has on any length up to ``extent``, at least 1."""
    starts, stops = AxisPlan((bins,), rule).edges(np.arange(extent + 1))
    return max(1, int((stops - starts).max()))


@dataclasses.dataclass(frozen=True)
class AxisPlan:
    """How to read an axis once for several counts of bins, all of one rule. Static, hashable.

    Cut the axis at every ``i/n`` of every count ``n``. Where the rule nests, each bin is the union of
    the segments between its cuts, whatever the counts: (2, 3) takes one reading as (1, 2, 4) does. A
    segment of a rule that overlaps reaches over its cut as a bin does. Where cells may not be
    counted twice (a sum), segments end at their cuts instead, and the cell that lies across a cut is
    read once more as a *seam*, which belongs to the bins that end there.

    Attributes:
        counts: the counts of bins, all different. More than one needs a rule that nests.
        rule: the name of the rule.
        twice: a cell may be combined twice (max, min), so that no seams are needed.
    """

    counts: tuple[int, ...]
    rule: str = "adaptive"
    twice: bool = True

    @functools.cached_property
    def _cuts(self) -> list[Fraction]:
        return sorted({Fraction(i, n) for n in self.counts for i in range(n + 1)})

    @property
    def segments(self) -> int:
        """How many segments there are, seams not counted."""
        return len(self._cuts) - 1

    @property
    def seams(self) -> int:
        """How many seams there are, each of at most one cell."""
        return 0 if self.twice or not rule_named(self.rule).overlaps else self.segments - 1

    @property
    def empties(self) -> bool:
        """Whether bins are joined from segments of which some may be empty though the axis is not."""
        return len(self.counts) > 1 and rule_named(self.rule).empties

    def edges(self, length):
        """Starts and stops of the segments, then of the seams: int32 ``[*length.shape, all of them]``.

        Args:
            length: integer array of any shape, NumPy or JAX.
        """
        rule = rule_named(self.rule)
        of = [self.counts[0] if len(self.counts) == 1 else cut.denominator for cut in self._cuts]
        of = np.array(of, np.int32)
        index = np.array([cut * int(n) for cut, n in zip(self._cuts, of, strict=True)], np.int32)
        xp = jnp if isinstance(length, jax.Array) else np
        length = length.astype(np.int32)[..., None]
        stops = xp.minimum(rule.stop(index[1:] - 1, of[1:], length), length).astype(np.int32)
        starts = xp.minimum(rule.start(index[:-1], of[:-1], length), stops).astype(np.int32)
        if not self.seams:
            return starts, stops
        inner = starts[..., 1:]
        ends = xp.concatenate([inner, stops[..., -1:], stops[..., :-1]], axis=-1)
        return xp.concatenate([starts, inner], axis=-1), ends

    def members(self, count: int) -> tuple[tuple[int, ...], ...]:
        """The segments and seams of each of ``count`` bins, as indices into :meth:`edges`."""
        members = []
        at = [self._cuts.index(Fraction(i, count)) for i in range(count + 1)]
        for first, end in itertools.pairwise(at):
            seam = (self.segments + end - 1,) if self.seams and end < self.segments else ()
            members.append((*range(first, end), *seam))
        return tuple(members)


def _positive_int(value, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    return int(value)
