"""Batches of arrays in memory, for a training loop that is entirely the user's."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from spp_jax.buckets import BucketPlan
from spp_jax.data.schedule import in_order
from spp_jax.padded import Padded, pad_batch

__all__ = ["ArrayBatch", "batches"]


class ArrayBatch(NamedTuple):
    """Arrays of one bucket and what belongs to them, as a pytree; NumPy's until it is on a device.

    Attributes:
        images: ``[batch, height, width, channels]`` and their true sizes; it may be turned where its bucket
            is for both orientations.
        labels: the labels' pytree, each array ``[batch, ...]``, 0 in filler rows; None where none were given.
        weights: float32 ``[batch]``: 1, or 0 in filler rows.
        places: int32 ``[batch]``, of the arrays that were given; -1 in filler rows.
    """

    images: Padded
    labels: Any
    weights: np.ndarray
    places: np.ndarray


def batches(
    plan: BucketPlan, arrays: Sequence[np.ndarray], *, labels: Any = None, order: np.ndarray | None = None
) -> Iterator[ArrayBatch]:
    """Every array once, bucket by bucket, each batch of a bucket of the same shape: one program a bucket.

    Args:
        plan: buckets that hold all arrays, as :func:`spp_jax.plan_buckets` gives them.
        arrays: ``[height, width, channels]`` each, of one dtype.
        labels: a pytree of arrays ``[len(arrays), ...]``.
        order: a permutation of the arrays, ``[n]``, drawn anew for each epoch; None: as they come.

    Raises:
        ValueError: an array is larger than every bucket, or there is not one label for each.

    Example:
        >>> import numpy as np
        >>> import spp_jax
        >>> images = [np.ones((h, w, 3), np.float32) for h, w in ((9, 12), (14, 10), (8, 8))]
        >>> plan = spp_jax.plan_buckets([x.shape[:2] for x in images], 1, both_orientations=True)
        >>> for batch in batches(plan, images, labels=np.array([0.2, 0.5, 0.9], np.float32)):
        ...     print(batch.images.values.shape, bool(batch.images.turned), batch.places.tolist())
        (1, 16, 16, 3) False [0]
        (1, 16, 16, 3) False [1]
        (1, 16, 16, 3) False [2]
    """
    count = len(arrays)
    wrong = [leaf.shape for leaf in jax.tree.leaves(labels) if len(leaf) != count]
    if wrong:
        raise ValueError(f"labels of shape {wrong[0]} are not one for each of {count} arrays")
    sizes = np.array([array.shape[:2] for array in arrays], np.int64).reshape(-1, 2)
    for spec in in_order(sizes, plan, order):
        rows = np.asarray(spec.rows, np.int32)
        filler = spec.bucket.batch_size - len(rows)
        chosen = [arrays[row].swapaxes(0, 1) if spec.turned else arrays[row] for row in rows]
        empty = np.zeros((0, 0, *arrays[0].shape[2:]), arrays[0].dtype)
        images = pad_batch(chosen + [empty] * filler, spec.bucket.shape)
        if spec.bucket.both_orientations:
            turned: Any = np.asarray(spec.turned)
            images = dataclasses.replace(images, turned=turned)
        yield ArrayBatch(
            images,
            jax.tree.map(functools.partial(_taken, rows=rows, filler=filler), labels),
            _taken(np.ones(count, np.float32), rows=rows, filler=filler),
            np.concatenate([rows, np.full(filler, -1, np.int32)]),
        )


def _taken(array: np.ndarray, *, rows: np.ndarray, filler: int) -> np.ndarray:
    """These rows, and zeros for the filler ones."""
    taken = np.asarray(array)[rows]
    return np.concatenate([taken, np.zeros((filler, *taken.shape[1:]), taken.dtype)])
