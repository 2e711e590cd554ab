"""A network without values: for its shapes alone, or where each variable is replaced anyway."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

__all__ = ["without_values"]

Network = TypeVar("Network")


def without_values(build: Callable[[nnx.Rngs], Network]) -> Network:
    """The network that is built, each variable a `jax.ShapeDtypeStruct`; nothing is drawn.

    Args:
        build: takes what initial values are drawn from.

    Example:
        >>> without_values(lambda rngs: nnx.Linear(2, 3, rngs=rngs)).kernel.shape
        (2, 3)
    """

    def with_one_key() -> Network:
        rngs = nnx.Rngs()
        # A key of its own for each of some hundred variables is most of the time that this takes.
        rngs.default = _OneKey(0, tag="default")  # pyright: ignore[reportAttributeAccessIssue]
        return build(rngs)

    return nnx.eval_shape(with_one_key)


class _OneKey(nnx.RngStream):
    """Gives the same key each time: nobody reads what is drawn with it."""

    def __call__(self) -> jax.Array:
        return self.key[...]
