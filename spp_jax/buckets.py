"""Which few shapes serve a whole collection: planning, assignment, waste.

A bucket is a spatial shape to which images are padded, and the number of images in a batch of it. One
bucket is one compilation. Sizes and shapes are in pixels, height before width. Host code, NumPy only.
"""

import dataclasses
import json
import math
from collections.abc import Sequence

import numpy as np

__all__ = ["BucketPlan", "plan_buckets"]

_MOST_CLUSTERS = 2048  # merging starts from at most this many: memory and time grow with its square


@dataclasses.dataclass(frozen=True)
class BucketPlan:
    """The buckets of a collection, in order of area. Hashable; equal plans are interchangeable.

    Attributes:
        shapes: the padded spatial shape of each bucket.
        batch_sizes: images in each global batch of it, rows of weight 0 included.
    """

    shapes: tuple[tuple[int, ...], ...]
    batch_sizes: tuple[int, ...]

    def assign(self, sizes: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
        """The bucket of least area that holds each image: index, int64 ``[n]``.

        Args:
            sizes: integers ``[n, spatial_rank]``.

        Raises:
            ValueError: an image is larger than every bucket. Nothing is ever cropped.
        """
        sizes = _checked(sizes)
        fits = (sizes[:, None, :] <= np.asarray(self.shapes)[None]).all(axis=-1)
        lost = ~np.any(fits, axis=1)
        if lost.any():
            row = int(lost.argmax())
            raise ValueError(
                f"image {row} of size {sizes[row].tolist()} is larger than every bucket "
                f"{[list(shape) for shape in self.shapes]}: plan with the sizes of this collection, "
                "or scale the image down"
            )
        return fits.argmax(axis=1)

    def waste(self, sizes: np.ndarray | Sequence[Sequence[int]], counts: np.ndarray | None = None) -> float:
        """The padded share of all pixels that the images of these sizes fill, 0 to 1."""
        sizes = _checked(sizes)
        counts = _counts(counts, len(sizes))
        areas = np.prod(np.asarray(self.shapes, np.int64), axis=1)
        padded = (areas[self.assign(sizes)] * counts).sum()
        return float(1 - (sizes.prod(axis=1) * counts).sum() / padded)

    def to_json(self) -> str:
        """The plan as JSON, for :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BucketPlan":
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no plan, or its parts do not fit each other.
        """
        try:
            fields = json.loads(text)
            shapes = tuple(tuple(int(n) for n in shape) for shape in fields["shapes"])
            plan = cls(shapes, tuple(int(n) for n in fields["batch_sizes"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"this is no bucket plan: {error!r}") from None
        if not shapes or len(shapes) != len(plan.batch_sizes) or len(set(map(len, shapes))) != 1:
            raise ValueError(f"this bucket plan does not fit together: {plan}")
        if min(min(map(min, shapes)), *plan.batch_sizes) < 1:
            raise ValueError(f"a bucket plan has shapes and batch sizes of at least 1: {plan}")
        return plan


def plan_buckets(
    sizes: np.ndarray | Sequence[Sequence[int]],
    max_buckets: int,
    *,
    counts: np.ndarray | Sequence[int] | None = None,
    multiple: int = 8,
    pixels_per_step: int | None = None,
) -> BucketPlan:
    """Choose at most ``max_buckets`` shapes that pad this collection little.

    Agglomerative: every distinct size, rounded up, starts as its own bucket; the two whose union adds
    the fewest padded pixels are merged until few enough are left; then images move to the smallest
    bucket that holds them and buckets shrink to what they hold, until nothing changes. Deterministic,
    and independent of the order of ``sizes``.

    Args:
        sizes: integers ``[n, spatial_rank]``, at least 1.
        max_buckets: at least 1.
        counts: how many images have each size, ``[n]``; None: one.
        multiple: shapes are rounded up to multiples of this.
        pixels_per_step: padded pixels of a batch: each bucket's batch size is the largest that stays
            within it, and at least 1. None: batches of one.

    Raises:
        ValueError: no sizes, sizes or counts below 1, or ``max_buckets`` or ``multiple`` below 1.
    """
    sizes = _checked(sizes)
    if max_buckets < 1 or multiple < 1 or (pixels_per_step is not None and pixels_per_step < 1):
        raise ValueError(
            f"max_buckets={max_buckets}, multiple={multiple} and pixels_per_step={pixels_per_step} "
            "must be at least 1"
        )
    rounded = -(-sizes // multiple) * multiple
    distinct, inverse = np.unique(rounded, axis=0, return_inverse=True)
    weights = np.bincount(inverse.reshape(-1), _counts(counts, len(sizes)), len(distinct))

    shapes = _merge(*_clusters(distinct, weights), max_buckets)
    while True:
        order = np.lexsort((*shapes.T[::-1], shapes.prod(axis=1)))
        plan = BucketPlan(tuple(tuple(map(int, shape)) for shape in shapes[order]), ())
        home = plan.assign(distinct)
        held = np.array([distinct[home == i].max(axis=0) for i in np.unique(home)])
        if len(held) == len(shapes) and (held == shapes[order]).all():
            break
        shapes = held
    areas = [math.prod(shape) for shape in plan.shapes]
    batch_sizes = tuple(max(1, (pixels_per_step or 1) // area) for area in areas)
    return dataclasses.replace(plan, batch_sizes=batch_sizes)


def _clusters(distinct: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where to start merging from: the distinct sizes, on a coarser grid where they are many."""
    key, cell = distinct, 1
    while len(groups := np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)) and (
        groups.max() >= _MOST_CLUSTERS
    ):
        cell *= 2
        key = -(-distinct // cell)
    shapes = np.zeros((groups.max() + 1, distinct.shape[1]), np.int64)
    np.maximum.at(shapes, groups, distinct)
    return shapes, np.bincount(groups, weights)


def _merge(shapes: np.ndarray, weights: np.ndarray, most: int) -> np.ndarray:
    """Merge the cheapest pair of boxes until at most ``most`` are left."""
    shapes, weights = shapes.astype(np.float64), weights.astype(np.float64)

    def price(row, others) -> np.ndarray:
        union = np.maximum(shapes[row], shapes[others]).prod(axis=-1)
        apart = shapes[row].prod() * weights[row] + shapes[others].prod(axis=-1) * weights[others]
        return union * (weights[row] + weights[others]) - apart

    everyone = np.arange(len(shapes))
    prices = np.stack([price(row, everyone) for row in everyone])
    np.fill_diagonal(prices, np.inf)
    best = prices.argmin(axis=1)
    alive = np.ones(len(shapes), bool)
    while alive.sum() > most:
        least = prices[everyone, best]
        a = int(least.argmin())
        b = int(best[a])
        shapes[a] = np.maximum(shapes[a], shapes[b])
        weights[a] += weights[b]
        alive[b] = False
        prices[b, :] = prices[:, b] = np.inf
        prices[a, :] = np.where(alive, price(a, everyone), np.inf)
        prices[a, a] = np.inf
        prices[:, a] = prices[a, :]
        stale = np.flatnonzero(alive & ((best == a) | (best == b) | (prices[:, a] < prices[everyone, best])))
        stale = np.union1d(stale, [a])
        best[stale] = prices[stale].argmin(axis=1)
    return shapes[alive].astype(np.int64)


def _checked(sizes) -> np.ndarray:
    sizes = np.asarray(sizes)
    if sizes.ndim != 2 or not sizes.size:
        raise ValueError(f"sizes must be [n, spatial_rank] with n >= 1, got shape {sizes.shape}")
    if not np.issubdtype(sizes.dtype, np.integer):
        raise ValueError(f"sizes must be integers (pixels), got dtype {sizes.dtype}")
    if (sizes < 1).any():
        row = int((sizes < 1).any(axis=1).argmax())
        raise ValueError(f"sizes must be at least 1 pixel: image {row} is {sizes[row].tolist()}")
    return sizes.astype(np.int64)


def _counts(counts, n: int) -> np.ndarray:
    if counts is None:
        return np.ones(n, np.int64)
    counts = np.asarray(counts)
    if counts.shape != (n,) or not np.issubdtype(counts.dtype, np.integer) or (counts < 1).any():
        raise ValueError(f"counts must be {n} integers >= 1, one per size, got {counts!r}")
    return counts
