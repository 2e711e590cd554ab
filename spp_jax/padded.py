"""`Padded`: values and true sizes travel together as one pytree.

Arrays are channels-last, ``[batch, *spatial, channels]``; sizes are int32 ``[batch, spatial_rank]`` in
cells, height before width. The true cells of an image lie at the low end of every axis; what stands
beyond them is unspecified, and nothing in this package reads it. A row of size 0 is a filler: it takes
part in nothing.

A batch may lie turned (its two spatial axes swapped), so that portraits go through the program that was
compiled for landscapes. Whether it does is data, one boolean of the batch; a layer that tells rows from
columns gives what it would have given, turned.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Padded", "pad_batch"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Padded:
    """A batch of arrays of different sizes in one array.

    The constructor checks nothing: ``vmap`` and ``jax.tree.map`` rebuild it with placeholders.

    Attributes:
        values: ``[batch, *spatial, channels]``.
        sizes: int32 ``[batch, spatial_rank]``, true cells per axis of ``values``.
        turned: bool scalar: whether the images lie in ``values`` with their two spatial axes swapped;
            None: they never do. Make a batch from another with `dataclasses.replace`, which keeps it.
    """

    values: jax.Array
    sizes: jax.Array
    turned: jax.Array | None = None

    def mask(self) -> jax.Array:
        """True where a cell is real: bool ``[batch, *spatial, 1]``."""
        rank = self.values.ndim - 2
        inside = jnp.ones((), bool)
        for axis in range(rank):
            line = jnp.arange(self.values.shape[axis + 1], dtype=jnp.int32)
            line = line.reshape([-1 if a == axis else 1 for a in range(rank)])
            inside = inside & (line < self.sizes[:, axis].reshape((-1,) + (1,) * rank))
        return inside[..., None]

    def filled(self, value: float = 0) -> jax.Array:
        """The values, with ``value`` in every cell that is not real.

        The gradient with respect to the cells replaced is exactly 0, also where they hold NaN.
        """
        return jnp.where(self.mask(), self.values, jnp.asarray(value, self.values.dtype))

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "Padded":
        """Apply an elementwise function (an activation, a cast) to the values; the sizes stay."""
        return dataclasses.replace(self, values=function(self.values))

    @classmethod
    def whole(cls, values: jax.Array) -> "Padded":
        """A batch ``[batch, *spatial, channels]`` of which every cell is real."""
        extent = np.broadcast_to(np.asarray(values.shape[1:-1], np.int32), (values.shape[0], values.ndim - 2))
        return cls(values, jnp.asarray(extent))


def pad_batch(arrays: Sequence[np.ndarray], shape: Sequence[int]) -> Padded:
    """Pad arrays with zeros at the high end of every axis, into one batch, on the host.

    Args:
        arrays: at least one array ``[*spatial, channels]``; all of one dtype and number of channels.
            An array without cells, such as ``(0, 0, channels)``, becomes a filler row.
        shape: the spatial shape of the batch, in cells.

    Returns:
        A :class:`Padded` of NumPy arrays: values ``[len(arrays), *shape, channels]``, sizes int32.

    Raises:
        ValueError: there are no arrays, they differ in dtype, channels or rank, or one is larger
            than ``shape``.
    """
    shape = tuple(shape)
    if not arrays:
        raise ValueError("pad_batch: there are no arrays to pad")
    channels, dtype = arrays[0].shape[-1], arrays[0].dtype
    values = np.zeros((len(arrays), *shape, channels), dtype)
    sizes = np.zeros((len(arrays), len(shape)), np.int32)
    for row, array in enumerate(arrays):
        if array.ndim != len(shape) + 1 or array.shape[-1] != channels or array.dtype != dtype:
            raise ValueError(
                f"pad_batch: array {row} is {array.dtype}{list(array.shape)}, expected {dtype} with "
                f"{len(shape)} spatial axes and {channels} channels"
            )
        if any(have > room for have, room in zip(array.shape, shape, strict=False)):
            raise ValueError(f"pad_batch: array {row} of shape {array.shape} is larger than {shape}")
        values[(row, *map(slice, array.shape[:-1]))] = array
        sizes[row] = array.shape[:-1]
    return Padded(values, sizes)  # pyright: ignore[reportArgumentType]  # NumPy until it is on a device
