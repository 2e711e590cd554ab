"""The deterministic batch schedule: what step ``k`` trains on, as a pure function.

Of the records' buckets, the plan's batch sizes, the seed and ``k`` alone: no state to save, so a run
that resumes at ``k`` goes on with the very batches of one that never stopped.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from spp_jax.buckets import Bucket, BucketPlan

__all__ = ["BatchSpec", "Schedule", "in_order"]


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """Which pictures make a batch.

    Attributes:
        bucket: of the plan.
        rows: indices into the records; fewer than the bucket's batch size where the last batch of a
            bucket is not full (the rest are filler rows of weight 0).
        mirrored: bool, one per row.
        turned: the pictures lie in the bucket with height and width swapped.
    """

    bucket: Bucket
    rows: tuple[int, ...]
    mirrored: tuple[bool, ...]
    turned: bool


class Schedule:
    """Every picture once an epoch, batches of one bucket each, in an order drawn anew each epoch."""

    def __init__(self, sizes: np.ndarray, plan: BucketPlan, *, seed: int, flip: bool):
        """Lay out the epochs.

        Args:
            sizes: integers ``[n, 2]``, of every record.
            plan: the buckets and their batch sizes.
            seed: of all that is drawn.
            flip: mirror each picture in half of the epochs, at random.

        Raises:
            ValueError: a record is larger than every bucket.
        """
        self._sizes = sizes
        self.plan = plan
        self._seed = seed
        self._flip = flip
        epoch = in_order(sizes, plan)
        self.steps_per_epoch = len(epoch)
        self.buckets = tuple(dict.fromkeys(spec.bucket for spec in epoch))
        """Those in use, each with one program to compile."""
        self.waste = float(1 - np.prod(sizes, axis=1).sum() / sum(spec.bucket.pixels for spec in epoch))
        """Share of the pixels of an epoch's batches that are no picture's, filler rows included."""
        self.mean_batch = len(sizes) / self.steps_per_epoch
        """Pictures per step, averaged over an epoch. A loss that divides each batch's sum by this
        constant gives every picture the same weight in an epoch's gradient, whatever its bucket."""
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def __getitem__(self, step: int) -> BatchSpec:
        """What step ``step``, counted from 0, trains on."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[place]

    def steps(self, start: int, stop: int) -> Iterator[BatchSpec]:
        """The batches of steps ``start`` to ``stop - 1``."""
        return (self[step] for step in range(start, stop))

    def _draw_epoch(self, epoch: int) -> list[BatchSpec]:
        rng = np.random.default_rng((self._seed, epoch))
        mirrored = (rng.random(len(self._sizes)) < 0.5) & self._flip
        batches = in_order(self._sizes, self.plan, rng.permutation(len(self._sizes)), mirrored)
        return [batches[i] for i in rng.permutation(len(batches))]


def in_order(
    sizes: np.ndarray,
    plan: BucketPlan,
    order: np.ndarray | None = None,
    mirrored: np.ndarray | None = None,
) -> list[BatchSpec]:
    """Every picture exactly once, bucket by bucket: the batches of an evaluation.

    Args:
        sizes: integers ``[n, 2]``, of each picture.
        plan: the buckets. In one for both orientations, pictures that lie turned have batches of their own.
        order: a permutation of the pictures, ``[n]``; None: as they come.
        mirrored: bool ``[n]``; None: none is.

    Raises:
        ValueError: a picture is larger than every bucket.
    """
    homes, turned = plan.assign(sizes), plan.turned(sizes)
    order = np.arange(len(homes)) if order is None else order
    mirrored = np.zeros(len(homes), bool) if mirrored is None else mirrored
    batches = []
    for (number, bucket), turn in itertools.product(enumerate(plan.buckets), (False, True)):
        members = order[(homes[order] == number) & (turned[order] == turn)]
        batches += (
            BatchSpec(bucket, tuple(rows.tolist()), tuple(mirrored[rows].tolist()), turn)
            for rows in np.split(members, range(bucket.batch_size, len(members), bucket.batch_size))
            if len(rows)
        )
    return batches
