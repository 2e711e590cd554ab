"""What is done to the cells of a bin.

Two tiers. A :class:`Monoid` is read on the fast path, each cell once for all levels. Any function of
(cells, mask) is applied bin by bin on the plain path: slower, and free. Either is a pytree: what is
static about it is hashable, and its arrays, if it learns, are differentiated.

Write one and pass it as ``reduce``, or give it a name in ``REDUCTIONS``.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
    "REDUCTIONS",
    "CellFunction",
    "Deviation",
    "GeneralizedMean",
    "Max",
    "Mean",
    "Monoid",
    "Reduction",
    "TopKMean",
    "reduction",
    "reduction_named",
]

State: TypeAlias = Any
"""A pytree of arrays, each of the shape of the cells that it was lifted from."""

CellFunction: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""From cells ``[cells, channels]`` and mask ``[cells, 1]`` to ``[channels]``.

Cells where the mask is False are zeros and not part of the bin; at least one is True. Cells are floating,
and cast to float32 where they have less.
"""


@dataclass_transform(frozen_default=True, eq_default=False)
def reduction(cls: type) -> type:
    """Decorate a reduction: makes it a frozen dataclass and a pytree.

    Its fields are arrays (or numbers) that are differentiated, save those whose metadata say
    ``{"static": True}``. (`jax.tree_util.register_dataclass` will not do: the structures of two such
    classes with as many fields compare equal, in jax 0.10 and 0.11, so that ``jit`` may take the one for
    the other.)
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)
    arrays = [field.name for field in fields if not field.metadata.get("static")]
    static = [field.name for field in fields if field.metadata.get("static")]

    def flatten(self):
        return [getattr(self, name) for name in arrays], tuple(getattr(self, name) for name in static)

    def unflatten(auxiliary, children):
        self = object.__new__(cls)  # no checks: children may be placeholders
        for name, value in [*zip(arrays, children, strict=True), *zip(static, auxiliary, strict=True)]:
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls


class Monoid:
    """A reduction that may take its cells in any order and grouping.

    ``finish(combine(lift(a), combine(lift(b), ...)), count)``. Subclass it, decorated with
    :func:`reduction`; the methods not overridden give the sum of the cells.

    ``combine`` is associative and commutative, and elementwise. `jax.lax.add` (the default), `jax.lax.max`
    and `jax.lax.min`, as a ``staticmethod``, work on each array of a state: with add the gradient goes to
    every cell, with max and min to the winner whose index was kept, the first in row-major order. Any
    other function takes two whole states, and its derivative is taken by JAX, row by row, which is slower;
    ``combine(identity, identity)`` has to be the identity (beware of ``-inf - -inf``). ``combine`` and
    ``identity`` do not use the reduction's arrays. Under anything but max and min, cells are floating, and
    cast to float32 where they have less.

    ``lift``, ``finish`` and a ``combine`` of your own are differentiated as they are written: where one has
    a derivative of NaN, so has every cell of that bin, also if the bin's own cotangent is 0.

    Example:
        >>> from spp_jax import spatial_pyramid_pool
        >>> @reduction
        ... class MeanSquare(Monoid):
        ...     def lift(self, cells):
        ...         return cells**2
        ...
        ...     def finish(self, state, count):
        ...         return state / count
        >>> spatial_pyramid_pool(jnp.array([[[3.0], [4.0]]]), levels=(1,), reduce=MeanSquare()).item()
        12.5
    """

    combine: Callable[[State, State], State] = staticmethod(lax.add)

    def lift(self, cells: jax.Array) -> State:
        """Cells ``[..., channels]`` to their states, elementwise."""
        return cells

    def identity(self, state: State) -> State:
        """Of ``combine``: a pytree like ``state``, of scalars."""
        return jax.tree.map(lambda leaf: _identity(self.combine, leaf.dtype), state)

    def merge(self, a: State, b: State) -> State:
        """Two states to one by ``combine``."""
        by_leaf = self.selects or self.combine is lax.add
        return jax.tree.map(self.combine, a, b) if by_leaf else self.combine(a, b)

    def merge_all(self, states: Sequence[State]) -> State:
        """Several states to one; where a combine of one's own has a shorter way, override it."""
        return functools.reduce(self.merge, states)

    def finish(self, state: State, count: jax.Array) -> jax.Array:
        """States ``[..., channels]`` of bins of ``count`` cells, int32 ``[..., 1]`` >= 1, to features."""
        return state

    @property
    def idempotent(self) -> bool:
        """Whether ``combine(a, a) == a``, so that a cell may be combined twice."""
        return self.selects

    @property
    def selects(self) -> bool:
        """Whether ``combine`` picks one of its arguments: `jax.lax.max` or `jax.lax.min`."""
        return self.combine in (lax.max, lax.min)

    @property
    def touches_outside(self) -> bool:
        """Whether the derivative touches cells that are in no bin, which then may not hold NaN."""
        return type(self).lift is not Monoid.lift or not (self.selects or self.combine is lax.add)


Reduction: TypeAlias = "str | Monoid | CellFunction"


@reduction
class Max(Monoid):
    """The largest cell; NaN above all; ties go to the first in row-major order (SPP-net, section 2.2)."""

    combine = staticmethod(lax.max)


@reduction
class Mean(Monoid):
    """The mean of the cells, summed in at least float32."""

    def finish(self, state, count):
        """The sum, over the count."""
        return state / count


@reduction
class Deviation(Monoid):
    """The standard deviation of the cells, over their number: 0 for a bin of one cell.

    Counts, means and sums of squares about the mean are joined pair by pair, so that nothing cancels where
    the mean is large against the deviation, as it does in ``mean(x**2) - mean(x)**2`` (Chan, Golub and
    LeVeque 1983, "Algorithms for Computing the Sample Variance", equation 2.1). Where the deviation is 0,
    so is its derivative.
    """

    def lift(self, cells):
        """One cell: count 1, the cell as mean, no squares."""
        return jnp.ones_like(cells), cells, jnp.zeros_like(cells)

    @staticmethod
    def combine(a, b):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The pairwise update."""
        (a_count, a_mean, a_squares), (b_count, b_mean, b_squares) = a, b
        count = a_count + b_count
        share = b_count / jnp.maximum(count, 1)
        apart = b_mean - a_mean
        return count, a_mean + apart * share, a_squares + b_squares + apart * apart * (a_count * share)

    def merge_all(self, states):
        """The update of several at once: one division, whatever their number."""
        counts, means, squares = zip(*states, strict=True)
        count = functools.reduce(lax.add, counts)
        near = means[0]  # counted from one of them, equal means have that very mean
        for number, mean in zip(counts[1:], means[1:], strict=True):
            near = jnp.where(number > 0, mean, near)
        beyond = (number * (each - near) for number, each in zip(counts, means, strict=True))
        mean = near + functools.reduce(lax.add, beyond) / jnp.maximum(count, 1)
        apart = (number * (each - mean) ** 2 for number, each in zip(counts, means, strict=True))
        return count, mean, functools.reduce(lax.add, (*squares, *apart))

    def identity(self, state):
        """No cells."""
        return jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), state)

    def finish(self, state, count):
        """The root of the mean of the squares."""
        squares = state[2] / count
        flat = squares <= 0
        return jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, squares)))


@reduction
class GeneralizedMean(Monoid):
    """``mean(max(x, 1e-6) ** power) ** (1 / power)``: the mean at power 1, the maximum at infinity.

    Radenovic, Tolias, Chum 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation"
    (arXiv:1711.02512), section 3.2, with its learnable power; for features that are not negative. A NaN
    makes the gradient of every cell of its bins NaN.

    Attributes:
        power: floating scalar or ``[channels]``, learnable, not 0.
    """

    power: Any = 3.0

    def lift(self, cells):
        """The cells to the power."""
        return jnp.maximum(cells, 1e-6) ** jnp.asarray(self.power)

    def finish(self, state, count):
        """The mean, to one over the power."""
        return (state / count) ** (1 / jnp.asarray(self.power))


@reduction
class TopKMean:
    """The mean of the ``k`` largest cells, or of all where the bin has fewer. On the plain path.

    Attributes:
        k: static, >= 1.
    """

    k: int = dataclasses.field(default=4, metadata={"static": True})

    def __post_init__(self):
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"TopKMean: k must be an int >= 1, got {self.k!r}")

    def __call__(self, cells: jax.Array, mask: jax.Array) -> jax.Array:
        """Cells ``[cells, channels]``, mask ``[cells, 1]`` -> ``[channels]``."""
        real = jnp.where(mask, cells, -jnp.inf)
        top, _ = lax.top_k(real.T, min(self.k, len(cells)))
        taken = jnp.arange(top.shape[-1]) < mask.sum()
        return jnp.where(taken, top, 0).sum(-1) / taken.sum()


REDUCTIONS: dict[str, Monoid | CellFunction] = {
    "max": Max(),
    "mean": Mean(),
    "deviation": Deviation(),
    "generalized_mean": GeneralizedMean(),
    "top_k_mean": TopKMean(),
}


def reduction_named(reduce: Reduction) -> Monoid | CellFunction:
    """The reduction that ``reduce`` names or is, as a pytree.

    Raises:
        ValueError: no reduction has that name.
        TypeError: ``reduce`` is neither a name, a :class:`Monoid` nor a function.
    """
    if isinstance(reduce, str):
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce={reduce!r} is unknown; known are {', '.join(map(repr, REDUCTIONS))}")
        return REDUCTIONS[reduce]
    if isinstance(reduce, type) or not (isinstance(reduce, Monoid) or callable(reduce)):
        raise TypeError(
            f"reduce must be a name, a Monoid (an instance) or a function of (cells, mask), got {reduce!r}"
        )
    # A bare function is no pytree: it is wrapped in one that has no arrays.
    is_leaf = jax.tree_util.all_leaves([reduce])
    if is_leaf and isinstance(reduce, Monoid):
        raise TypeError(
            f"{type(reduce).__name__} is no pytree: decorate it with spp_jax.pooling.reductions.reduction"
        )
    return jax.tree_util.Partial(reduce) if is_leaf else reduce


def _identity(combine: Callable, dtype: Any):
    if combine is lax.add:
        return jnp.zeros((), dtype)
    if combine not in (lax.max, lax.min):
        raise NotImplementedError(
            "a Monoid with a combine of its own has to give its identity; sums, maxima and minima are "
            "staticmethod(lax.add), staticmethod(lax.max) and staticmethod(lax.min)"
        )
    if dtype == jnp.bool_:
        return jnp.asarray(combine is lax.min)
    sign = -1 if combine is lax.max else 1
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(sign * jnp.inf, dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"max and min need ordered values, got dtype {dtype}")
    return jnp.asarray(jnp.iinfo(dtype).min if sign < 0 else jnp.iinfo(dtype).max, dtype)
