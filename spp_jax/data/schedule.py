"""The deterministic batch schedule: what step ``k`` trains on, as a pure function.

Of the records' buckets, the plan's batch sizes, the seed and ``k`` alone: no state to save, so a run
that resumes at ``k`` goes on with the very batches of one that never stopped.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from spp_jax.buckets import Bucket, BucketPlan

__all__ = ["BatchSpec", "Schedule", "at_scale", "in_order", "pair_sizes"]


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """Which pictures make a batch.

    Attributes:
        bucket: of the plan.
        rows: indices into the records; fewer than the bucket's batch size where the last batch of a
            bucket is not full (the rest are filler rows of weight 0).
        sizes: (height, width) at which each is used.
        mirrored: bool, one per row.
        turned: the pictures lie in the bucket with height and width swapped.
        pairs: where the batch is of pairs, which of them its rows 0 and 1, 2 and 3, ... are; else empty.
    """

    bucket: Bucket
    rows: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    mirrored: tuple[bool, ...]
    turned: bool
    pairs: tuple[int, ...] = ()


class Schedule:
    """Every picture once an epoch, batches of one bucket each, in an order drawn anew each epoch.

    Of records with pairs, every pair once an epoch, both pictures in one batch and at one scale, and every
    picture that is in no pair.

    With several scales a picture has another one each epoch, in turns, so that after as many epochs as
    there are scales it was seen once at each: SPP-net's training on several sizes (section 2.3), with
    aspect ratios kept and, as the op takes any size, without a network for each.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        plan: BucketPlan,
        *,
        seed: int,
        flip: bool,
        scales: Sequence[float] = (1.0,),
        smallest: tuple[int, int] = (1, 1),
        pairs: np.ndarray | None = None,
    ):
        """Lay out the epochs.

        Args:
            sizes: integers ``[n, 2]``, of every record.
            plan: the buckets and their batch sizes.
            seed: of all that is drawn.
            flip: mirror each picture in half of the epochs, at random.
            scales: of both sides.
            smallest: (height, width) below which no picture is scaled.
            pairs: int ``[m, 2]``, indices of records that go together.

        Raises:
            ValueError: a record or a pair, at one of its scales, is larger than every bucket.
        """
        self.plan = plan
        self._seed = seed
        self._flip = flip
        self._pairs = pairs
        scaled = [at_scale(sizes, scale, smallest) for scale in scales]
        turn = np.random.default_rng(seed).integers(0, len(scales), len(sizes))
        if pairs is not None:  # pictures that are compared, also by way of others, are seen at one scale
            from scipy.sparse import coo_array
            from scipy.sparse.csgraph import connected_components

            links = (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1]))
            graph = coo_array(links, shape=(len(sizes), len(sizes)))
            turn = turn[connected_components(graph, directed=False)[1]]
        everyone = np.arange(len(sizes))
        self._sizes = [
            np.stack(scaled)[(turn + epoch) % len(scales), everyone] for epoch in range(len(scales))
        ]
        epochs = [in_order(sizes, plan, pairs=pairs) for sizes in self._sizes]
        self._ends = np.cumsum([len(epoch) for epoch in epochs])
        specs = list(itertools.chain(*epochs))
        self.buckets = tuple(bucket for bucket in plan.buckets if bucket in {spec.bucket for spec in specs})
        """Those in use, each with one program to compile."""
        true = sum(int(np.prod(spec.sizes, axis=1).sum()) for spec in specs)
        self.waste = 1 - true / sum(spec.bucket.pixels for spec in specs)
        """Share of the pixels of an epoch's batches that are no picture's, filler rows included."""
        self.mean_batch = sum(len(spec.rows) for spec in specs) / len(specs)
        """Pictures per step, averaged over all epochs. A loss that divides each batch's sum by this
        constant gives every picture the same weight in the gradient, whatever its bucket."""
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def __getitem__(self, step: int) -> BatchSpec:
        """What step ``step``, counted from 0, trains on."""
        epoch, place = self._locate(step)
        return self._epoch(epoch)[place]

    def first_step(self, epoch: int) -> int:
        """The first step of an epoch, both counted from 0: how many steps the epochs before it have."""
        cycles, rest = divmod(epoch, len(self._ends))
        return int(cycles * self._ends[-1] + (self._ends[rest - 1] if rest else 0))

    def epochs_done(self, steps: int) -> float:
        """How many epochs so many steps are; a whole number where one just ended."""
        epoch, place = self._locate(steps)
        return epoch + place / (self.first_step(epoch + 1) - self.first_step(epoch))

    def steps(self, start: int, stop: int) -> Iterator[BatchSpec]:
        """The batches of steps ``start`` to ``stop - 1``."""
        return (self[step] for step in range(start, stop))

    def _locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and its place there."""
        cycles, rest = divmod(step, int(self._ends[-1]))
        epoch = cycles * len(self._ends) + int(np.searchsorted(self._ends, rest, side="right"))
        return epoch, step - self.first_step(epoch)

    def _draw_epoch(self, epoch: int) -> list[BatchSpec]:
        sizes = self._sizes[epoch % len(self._sizes)]
        rng = np.random.default_rng((self._seed, epoch))
        mirrored = (rng.random(len(sizes)) < 0.5) & self._flip
        order = rng.permutation(len(sizes))
        batches = in_order(sizes, self.plan, order, mirrored, pairs=self._pairs)
        return [batches[i] for i in rng.permutation(len(batches))]


def at_scale(sizes: np.ndarray, scale: float, smallest: tuple[int, int]) -> np.ndarray:
    """The sizes times ``scale``; its own where a side would be below ``smallest``: int64 ``[n, 2]``."""
    scaled = np.round(np.asarray(sizes) * scale).astype(np.int64)
    return np.where((scaled >= smallest).all(axis=1, keepdims=True), scaled, sizes)


def in_order(
    sizes: np.ndarray,
    plan: BucketPlan,
    order: np.ndarray | None = None,
    mirrored: np.ndarray | None = None,
    *,
    pairs: np.ndarray | None = None,
) -> list[BatchSpec]:
    """Every picture exactly once, bucket by bucket: the batches of an evaluation.

    With pairs, every pair exactly once and every picture that is in none. Both of a pair lie in the bucket
    of the smallest shape that holds both, in one orientation: what a picture gives does not depend on its
    bucket, so that this changes nothing but padding.

    Args:
        sizes: integers ``[n, 2]``, at which each picture is used.
        plan: the buckets. In one for both orientations, pictures that lie turned have batches of their own.
        order: a permutation of the pictures, ``[n]``; None: as they come.
        mirrored: bool ``[n]``; None: none is.
        pairs: int ``[m, 2]``, pictures that go together.

    Raises:
        ValueError: a picture, or two side by side in a batch, are larger than every bucket, or a batch of
            pairs would be one of a single row.
    """
    sizes = np.asarray(sizes, np.int64)
    order = np.arange(len(sizes)) if order is None else order
    mirrored = np.zeros(len(sizes), bool) if mirrored is None else mirrored
    if pairs is None or not len(pairs):
        return _of_units(order[:, None], sizes, plan, mirrored)
    alone = order[~np.isin(order, pairs)]
    rank = np.argsort(order)
    # As well drawn as the order is, and those of one picture do not follow each other.
    drawn = np.argsort(rank[pairs].sum(axis=1) % len(order), kind="stable")
    return [
        *_of_units(alone[:, None], sizes, plan, mirrored),
        *_of_units(pairs[drawn], sizes, plan, mirrored, drawn),
    ]


def pair_sizes(sizes: np.ndarray, pairs: np.ndarray | None) -> np.ndarray:
    """The sizes to plan for: of each picture, and of the smallest shape that holds both of each pair."""
    return sizes if pairs is None else np.concatenate([sizes, sizes[pairs].max(axis=1)])


def _of_units(
    units: np.ndarray,
    sizes: np.ndarray,
    plan: BucketPlan,
    mirrored: np.ndarray,
    names: np.ndarray | None = None,
) -> list[BatchSpec]:
    """Batches of what goes together, int ``[units, pictures of one]``, in this order; names: of the units."""
    if not len(units):
        return []
    wide = units.shape[1]
    bounds = sizes[units].max(axis=1)
    homes = plan.assign(bounds)
    turned = plan.turned(bounds, homes)
    batches = []
    for (number, bucket), turn in itertools.product(enumerate(plan.buckets), (False, True)):
        members = np.flatnonzero((homes == number) & (turned == turn))
        if len(members) and bucket.batch_size < wide:
            raise ValueError(f"batches of {bucket} cannot hold pairs: plan with batch_multiple=2")
        size = max(1, bucket.batch_size // wide)
        for chosen in np.split(members, range(size, len(members), size)):
            if len(chosen):
                rows = units[chosen].ravel()
                batches.append(
                    BatchSpec(
                        bucket,
                        rows=tuple(rows.tolist()),
                        sizes=tuple(map(tuple, sizes[rows].tolist())),
                        mirrored=tuple(mirrored[rows].tolist()),
                        turned=turn,
                        pairs=() if names is None else tuple(names[chosen].tolist()),
                    )
                )
    return batches
