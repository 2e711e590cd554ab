"""Which few shapes serve a whole collection: planning, assignment, waste.

A bucket is a spatial shape to which images are padded, and the number of images in a batch of it. One
bucket is one compilation. Sizes and shapes are in pixels, height before width. Host code, NumPy only
(and matplotlib, to draw).
"""

import dataclasses
import functools
import itertools
import json
import math
import operator
import os
from collections.abc import Sequence
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np

__all__ = ["COMPILATION_PRICE", "STEP_COMPILATION_PRICE", "Bucket", "BucketPlan", "plan_buckets"]

COMPILATION_PRICE = 10_000_000
"""Pixels that pass through a scoring program in the time that it takes to compile, where nobody measured it.

It is seconds times pixels per second. Both grow with the network, on every device, so their product differs
little."""
STEP_COMPILATION_PRICE = 100_000_000
"""The same of a training step, with the program that judges the pictures of its bucket. Without that program
`train.py --dry-run` gave 55,000,000 and 126,000,000 for the default run, in two runs on two cores."""

Sizes: TypeAlias = np.ndarray | Sequence[Sequence[int]]
Counts: TypeAlias = np.ndarray | Sequence[int]

_FORMAT = 1
_MOST_PIXELS = 2**31 - 1  # which index of an array a compiler takes
_CELLS, _PLACES = 96**2, 2**11  # the search's grid has at most this many: its time grows with them
_TABLES = 256  # of a grid's cells that are kept between two searches for a place: 19 MB at most
_MORE = 4  # buckets beyond those allowed, from which the search comes down again
_AUTO = 32  # buckets at most, where the price decides: more save a few hundredths, and are searched for long
_STEP = 16  # a step of a finite collection costs a 16th of pixels_per_step besides its pixels
_TRIED = 40_000  # places that a finite collection's buckets are tried at, times buckets, times sizes


class Bucket(NamedTuple):
    """A padded shape, and how many images a batch of it holds. What a program is compiled for.

    Attributes:
        shape: spatial, in pixels.
        batch_size: rows of a global batch, rows of weight 0 included.
        both_orientations: it holds images of two axes either as they are, or, in batches of their own,
            turned: with their axes swapped (:attr:`spp_jax.Padded.turned`).
    """

    shape: tuple[int, ...]
    batch_size: int
    both_orientations: bool = False

    @property
    def pixels(self) -> int:
        """Of a whole batch, padding included."""
        return math.prod(self.shape) * self.batch_size

    def __str__(self) -> str:
        either = " either way" if self.both_orientations else ""
        return f"{self.batch_size} of {'x'.join(map(str, self.shape))}{either}"


@dataclasses.dataclass(frozen=True)
class BucketPlan:
    """The buckets of a collection, in order of area. Hashable; equal plans are interchangeable.

    Raises:
        ValueError: there are no buckets, or they do not fit together: other numbers of axes, a number
            below 1, a shape twice, or not in order of area; or one is for both orientations of what has
            not two axes.
    """

    buckets: tuple[Bucket, ...]

    def __post_init__(self):
        shapes = self.shapes
        if not shapes or not shapes[0] or len(set(map(len, shapes))) != 1:
            raise ValueError(f"the shapes of a bucket plan have the same one or more axes, not {shapes}")
        if min(min(map(min, shapes)), *self.batch_sizes) < 1:
            raise ValueError(f"a bucket plan has shapes and batch sizes of at least 1, not {self.buckets}")
        if list(shapes) != sorted(set(shapes), key=lambda shape: (math.prod(shape), shape)):
            raise ValueError(f"the shapes of a bucket plan are distinct and in order of area, not {shapes}")
        if len(shapes[0]) != 2 and any(bucket.both_orientations for bucket in self.buckets):
            raise ValueError(f"only images of two axes have two orientations, not {shapes}")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The padded spatial shape of each bucket."""
        return tuple(bucket.shape for bucket in self.buckets)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Images in each bucket's global batches."""
        return tuple(bucket.batch_size for bucket in self.buckets)

    def assign(self, sizes: Sizes) -> np.ndarray:
        """The bucket of least area that holds each image, either way where it may: index, int64 ``[n]``.

        Args:
            sizes: integers ``[n, spatial_rank]``.

        Raises:
            ValueError: an image is larger than every bucket. Nothing is ever cropped.
        """
        sizes = _checked(sizes)
        shapes = np.asarray(self.shapes)
        if sizes.shape[1] != shapes.shape[1]:
            raise ValueError(f"sizes have {sizes.shape[1]} axes, and the buckets {shapes.shape[1]}")
        either = np.array([bucket.both_orientations for bucket in self.buckets])
        fits = np.all(sizes[:, None, :] <= shapes, axis=-1)
        fits |= np.all(sizes[:, None, ::-1] <= shapes, axis=-1) & either
        lost = ~np.any(fits, axis=1)
        if lost.any():
            row = int(lost.argmax())
            raise ValueError(
                f"image {row} of size {sizes[row].tolist()} is larger than every bucket "
                f"{[list(shape) for shape in self.shapes]}: plan with the sizes of this collection, "
                "or scale the image down"
            )
        return fits.argmax(axis=1)

    def turned(self, sizes: Sizes, homes: np.ndarray | None = None) -> np.ndarray:
        """Which images fit their bucket only with their axes swapped: bool ``[n]``.

        Args:
            sizes: integers ``[n, spatial_rank]``.
            homes: their buckets, where :meth:`assign` has given them already.
        """
        homes = self.assign(sizes) if homes is None else homes
        return np.any(_checked(sizes) > np.asarray(self.shapes)[homes], axis=1)

    def waste(self, sizes: Sizes, counts: Counts | None = None) -> float:
        """The padded share of all pixels that the images of these sizes fill, 0 to 1."""
        sizes = _checked(sizes)
        counts = _counts(counts, len(sizes))
        areas = np.prod(np.asarray(self.shapes, np.int64), axis=1)
        padded = (areas[self.assign(sizes)] * counts).sum()
        return float(1 - (sizes.prod(axis=1) * counts).sum() / padded)

    def to_json(self) -> str:
        """The plan as JSON, for :meth:`from_json`."""
        buckets = [bucket._asdict() for bucket in self.buckets]
        return json.dumps({"format": _FORMAT, "buckets": buckets}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "BucketPlan":
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no plan of this format, or its parts do not fit each other.
        """
        try:
            fields = json.loads(text)
            if fields["format"] != _FORMAT:
                raise ValueError(f"format {fields['format']}, expected {_FORMAT}")
            buckets = [Bucket(**{**bucket, "shape": tuple(bucket["shape"])}) for bucket in fields["buckets"]]
            if not all(type(n) is int for bucket in buckets for n in (*bucket.shape, bucket.batch_size)):
                raise ValueError("its shapes and batch sizes are not all integers")
            if not all(type(bucket.both_orientations) is bool for bucket in buckets):
                raise ValueError("both_orientations is not true or false in all its buckets")
            if any(math.prod(bucket.shape) * bucket.batch_size > _MOST_PIXELS for bucket in buckets):
                raise ValueError(f"a batch has more than {_MOST_PIXELS:,} pixels")
            return cls(tuple(buckets))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"this is no bucket plan: {type(error).__name__}: {said}") from None

    def draw(
        self,
        sizes: Sizes,
        path: str | os.PathLike[str] | BinaryIO,
        *,
        counts: Counts | None = None,
        title: str = "",
    ) -> None:
        """Draw a plan of two axes: the sizes as points, larger where there are more; buckets as boxes.

        A bucket for both orientations has a second, dashed box for what is turned.

        Args:
            sizes: integers ``[n, 2]``, of images that the plan holds.
            path: of the picture, whose ending says which format; or a file to write a PNG to.
            counts: how many images have each size.
            title: over the picture, before the share of padding.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: the plan is not one of two axes, or does not hold the sizes.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        sizes = _checked(sizes)
        if len(self.shapes[0]) != 2:
            raise ValueError("only a plan of two axes can be drawn")
        distinct, where = np.unique(sizes, axis=0, return_inverse=True)
        many = np.bincount(where.reshape(-1), _counts(counts, len(sizes)))
        figure = Figure(figsize=(6.5, 6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        colours = [f"C{i % 10}" for i in range(len(self.buckets))]
        corners = []
        for ((height, width), _, either), colour in zip(self.buckets, colours, strict=True):
            for tall, wide, line in [(height, width, "-"), (width, height, "--")][: 1 + either]:
                axes.add_patch(Rectangle((0, 0), wide, tall, fill=False, edgecolor=colour, linestyle=line))
                axes.plot(wide, tall, "s", color=colour, markersize=5, clip_on=False)
                corners.append((tall, wide))
        axes.scatter(
            distinct[:, 1],
            distinct[:, 0],
            s=3 + 60 * np.sqrt(many / many.max()),
            c=[colours[home] for home in self.assign(distinct)],
            alpha=0.5,
            linewidths=0,
        )
        tallest, widest = np.max(corners, axis=0)
        axes.set(xlim=(0, widest * 1.03), ylim=(tallest * 1.03, 0), xlabel="width", ylabel="height")
        axes.set_aspect("equal")
        share = f"{len(self.buckets)} buckets, {self.waste(sizes, counts):.1%} padding"
        axes.set_title(": ".join(filter(None, (title, share))))
        figure.savefig(path, dpi=120)


def plan_buckets(
    sizes: Sizes,
    max_buckets: int | Literal["auto"],
    *,
    counts: Counts | None = None,
    multiple: int = 8,
    compilation_price: float = 0,
    pixels_per_step: int | None = None,
    batch_multiple: int = 1,
    both_orientations: bool = False,
    finite: bool = False,
) -> BucketPlan:
    """Choose at most ``max_buckets`` shapes with which this collection is done soonest.

    The cost of a plan is its padded pixels over the collection, plus the price of its compilations. No
    plan of any boxes is better than the best among those whose every side is the (rounded) side of some
    image, and these are what is searched, up and down the number of buckets: one more where it saves
    most, one less where it costs least; and after each change every bucket in turn goes to the best of
    *all* places for it, the others standing still, until none moves. The best plan of each number is
    kept, and the search ends when going up and down finds nothing better.

    So the result is optimal for one bucket at a time: none can be moved, to anywhere that was searched,
    for less. `tests/test_buckets.py` compares it with brute force on small collections, and
    `benchmarks/planning.py` with a proven lower bound and a long random search on real ones.

    **A finite collection** is gone through in whole batches: the last batch of each bucket, and of each
    orientation in it, is filled up with rows of nothing, and a step costs something whatever is in it (a
    16th of ``pixels_per_step`` is assumed). Both are counted, and the batch size of each bucket is the one
    within ``pixels_per_step`` that costs least, so 10 images where 7 have room go in two batches of 5. The
    claim above stays true: with its images as they are, a box shrunk to them has no larger area and no
    fewer batch sizes to choose from, so it costs no more. Of the plans that the search met, of every number
    of buckets, the cheapest by this cost is taken, and then changed for the better by whichever of these
    saves most, until none does: one bucket dropped, one moved to, or one added at, the corner of any place
    (all of them, or some at even steps where images and buckets are many). So the result is optimal in
    that class: dropping, moving or adding one.

    Where sides are so many that the search would be slow (more than 96 on each of two axes, or some 2,000
    distinct sizes), it sees those at even steps of their distribution; buckets then shrink to the images
    they hold.

    Deterministic, and independent of the order of ``sizes``.

    Args:
        sizes: integers ``[n, spatial_rank]``, at least 1.
        max_buckets: at least 1; ``"auto"``: as many as pay their ``compilation_price``, at
            most 32.
        counts: how many images have each size, ``[n]``; None: one.
        multiple: shapes are rounded up to multiples of this.
        compilation_price: a bucket more must save this many padded pixels over the collection. What a
            compilation costs in pixels is its seconds, times pixels per second, over the times that the
            collection is gone through; :data:`COMPILATION_PRICE` where it is not known. 0: all
            that ``max_buckets`` allows are used, if they save anything.
        pixels_per_step: padded pixels of a batch: each bucket's batch size is the largest that stays
            within it. None: batches of ``batch_multiple``.
        batch_multiple: batch sizes are multiples of this, and at least this, also where that takes more
            than ``pixels_per_step``.
        both_orientations: buckets lie across (no higher than wide) and hold upright images turned. At
            equal padding that takes about a third fewer of them on photographs.
        finite: count filler rows and steps, as said above. They are worth it where batches are few.

    Raises:
        ValueError: no sizes, sizes or counts below 1, an option out of its range, ``"auto"`` without a
            price, or both orientations asked of what has not two axes.

    Example::

        few = plan_buckets(sizes, "auto", compilation_price=COMPILATION_PRICE / epochs, finite=True)
    """
    given = _checked(sizes)
    most = None if max_buckets == "auto" else _at_least_one("max_buckets", max_buckets)
    multiple = _at_least_one("multiple", multiple)
    batch_multiple = _at_least_one("batch_multiple", batch_multiple)
    step = 0 if pixels_per_step is None else _at_least_one("pixels_per_step", pixels_per_step)
    if not 0 <= compilation_price < math.inf:
        raise ValueError(f"compilation_price={compilation_price} must be at least 0 pixels")
    if most is None and not compilation_price:
        raise ValueError("max_buckets='auto' needs a compilation_price above 0, such as COMPILATION_PRICE")
    rounded = -(-given // multiple) * multiple
    distinct, inverse = np.unique(rounded, axis=0, return_inverse=True)
    weights = np.bincount(inverse.reshape(-1), _counts(counts, len(given)))
    work = _Work(distinct, weights, compilation_price, step, batch_multiple, both_orientations)
    if both_orientations:
        distinct, inverse = np.unique(np.sort(distinct, axis=1), axis=0, return_inverse=True)
        weights = np.bincount(inverse.reshape(-1), weights)

    most = _AUTO if most is None else most
    found = _best_shapes(distinct, weights, most, compilation_price)
    if not finite:
        allowed = (number for number in found if number <= most)
        best = min(allowed, key=lambda number: found[number][1] + compilation_price * number)
        return BucketPlan(work.buckets(_tight(found[best][0], distinct)))
    return BucketPlan(work.buckets_filled(_least(work, found, distinct, most)))


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a plan is for: the rounded sizes as they lie, and what its parts cost."""

    sizes: np.ndarray
    weights: np.ndarray
    price: float
    step: int
    multiple: int
    either: bool

    def buckets(self, shapes: Sequence[tuple[int, ...]]) -> tuple[Bucket, ...]:
        """Each with the largest batch that a step has room for."""
        return tuple(Bucket(shape, self._room(shape), self.either) for shape in shapes)

    def _room(self, shape: tuple[int, ...]) -> int:
        return max(self.step // math.prod(shape) // self.multiple, 1) * self.multiple

    def buckets_filled(self, shapes: Sequence[tuple[int, ...]]) -> tuple[Bucket, ...]:
        """Each with the batch size that costs least, filler rows and steps counted."""
        return self._filled(shapes)[0]

    def cost(self, shapes: Sequence[tuple[int, ...]]) -> float:
        """Pixels, filler rows and steps counted, and what the compilations cost."""
        return self._filled(shapes)[1]

    def _filled(self, shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[Bucket, ...], float]:
        plan = BucketPlan(tuple(Bucket(shape, 1, self.either) for shape in shapes))
        homes = plan.assign(self.sizes)
        lying = 2 * homes + plan.turned(self.sizes, homes)
        counts = np.bincount(lying, self.weights, 2 * len(shapes)).reshape(-1, 2)
        buckets, total = [], self.price * np.count_nonzero(counts.sum(axis=1))
        for shape, images in zip(shapes, counts, strict=True):
            batches = np.arange(self._room(shape), 0, -self.multiple)
            steps = -(-images[:, None] // batches)
            costs = (steps * (batches * math.prod(shape) + self.step / _STEP)).sum(axis=0)
            buckets.append(Bucket(shape, int(batches[costs.argmin()]), self.either))
            total += costs.min()
        return tuple(buckets), float(total)


def _least(
    work: _Work, found: dict[int, tuple[np.ndarray, float]], distinct: np.ndarray, most: int
) -> list[tuple[int, ...]]:
    """Of these plans the one of least cost, bettered by one bucket at a time."""
    plans = [_tight(shapes, distinct) for number, (shapes, _) in found.items() if number <= most]
    shapes = min(plans, key=work.cost)
    cost = work.cost(shapes)
    corners = _corners(distinct, _TRIED // (len(shapes) * len(distinct)))
    while True:
        fewer = [[*shapes[:i], *shapes[i + 1 :]] for i in range(len(shapes))]
        tries = [*fewer, *([*kept, corner] for kept in fewer for corner in corners)]
        tries += [[*shapes, corner] for corner in corners] if len(shapes) < most else []
        best, better = cost, None
        for tried in tries:
            ordered = sorted(tried, key=lambda shape: (math.prod(shape), shape))
            inside = (distinct[:, None] <= np.asarray(ordered or [(0,) * distinct.shape[1]])).all(axis=2)
            if len(set(tried)) == len(tried) and inside.any(axis=-1).all():
                costs = work.cost(ordered)
                if costs < best * (1 - 1e-12):
                    best, better = costs, ordered
        if better is None:
            return shapes
        shapes = min((_tight(np.asarray(better), distinct), better), key=work.cost)
        cost = work.cost(shapes)


def _corners(distinct: np.ndarray, most: int) -> list[tuple[int, ...]]:
    """All places for a box, or some, at even steps of each axis; no less than four."""
    sides = [np.unique(axis) for axis in distinct.T]
    each = max(2, math.floor(max(most, 1) ** (1 / len(sides))))
    steps = [axis[np.unique(np.linspace(0, len(axis) - 1, each).astype(int))] for axis in sides]
    return [tuple(map(int, corner)) for corner in itertools.product(*steps)]


def _tight(shapes: np.ndarray, distinct: np.ndarray) -> list[tuple[int, ...]]:
    """Each shape shrunk to the sizes for which it is the least, those for none dropped; by area."""
    while True:
        ordered = sorted(map(tuple, shapes.tolist()), key=lambda shape: (math.prod(shape), shape))
        home = BucketPlan(tuple(Bucket(shape, 1) for shape in dict.fromkeys(ordered))).assign(distinct)
        shapes = np.array([distinct[home == i].max(axis=0) for i in np.unique(home)])
        if shapes.tolist() == [list(shape) for shape in ordered]:
            return ordered


class _Grid:
    """A collection on the grid of its sides. A box is a corner of it: an index per axis."""

    def __init__(self, distinct: np.ndarray, weights: np.ndarray, share: float):
        """All that is worth searching; or a ``share``-th by each axis, where buckets are very many."""
        cells, places = max(_CELLS / share**2, 32**2), max(_PLACES / share**2, 200)
        most = _CELLS
        while True:
            self.sides = [_some_sides(lengths, weights, most) for lengths in distinct.T]
            self.shape = tuple(map(len, self.sides))
            corners = tuple(np.searchsorted(v, n) for v, n in zip(self.sides, distinct.T, strict=True))
            self._flat, where = np.unique(np.ravel_multi_index(corners, self.shape), return_inverse=True)
            if len(self._flat) <= places and math.prod(self.shape) <= cells:
                break
            most = max(self.shape) * 4 // 5
        self.places = np.stack(np.unravel_index(self._flat, self.shape), axis=1)
        self.weights = np.bincount(where, weights)  # by place
        self.area = functools.reduce(np.multiply.outer, self.sides).astype(np.float64)
        self._held = functools.lru_cache(_TABLES)(self._count)

    def areas(self, box: tuple[int, ...]) -> np.ndarray:
        """What each place pays in a box: its area, or infinity where it does not fit."""
        return np.where((self.places <= box).all(axis=1), self.area[box], np.inf)

    def best(self, areas: np.ndarray) -> tuple[int, ...]:
        """Where one more box saves most, given what each place pays in those there are: ``[k, places]``.

        For all boxes at once: what is saved by the places that pay a certain area so far is their
        number inside the box, a cumulative sum, times the difference of the areas. From one search to
        the next few boxes have other places, so most of these sums are there.
        """
        home, paid = areas.argmin(axis=0), areas.min(axis=0)
        lost = np.isinf(paid)
        least = self.places[lost].max(axis=0, initial=0)  # it must hold what no other holds
        inside = tuple(slice(n, None) for n in least)
        area = self.area[inside]
        saved = -self.weights[lost].sum() * area
        gain = np.empty_like(saved)
        for number in np.unique(home[~lost]):
            held = self._held(((home == number) & ~lost).tobytes())
            np.subtract(areas[number].min(), area, out=gain)
            np.maximum(gain, 0, out=gain)
            gain *= held[inside]
            saved += gain
        corner = np.unravel_index(saved.argmax(), saved.shape)
        return tuple(int(n + c) for n, c in zip(least, corner, strict=True))

    def _count(self, places: bytes) -> np.ndarray:
        """For each box, how many images of these places (a mask's bytes) it holds."""
        chosen = np.frombuffer(places, bool)
        held = np.bincount(self._flat[chosen], self.weights[chosen], self.area.size).reshape(self.shape)
        for axis in range(held.ndim):
            held.cumsum(axis, out=held)
        return held


def _some_sides(lengths: np.ndarray, weights: np.ndarray, most: int) -> np.ndarray:
    """The distinct lengths; where they are more than ``most``, some at even steps, and the largest."""
    values, ranks = np.unique(lengths, return_inverse=True)
    if len(values) <= most:
        return values
    passed = np.cumsum(np.bincount(ranks, weights)) / weights.sum()
    steps = np.searchsorted(passed, np.linspace(0, 1, most)[:-1])
    return values[np.unique([*steps, len(values) - 1])]


class _Boxes(NamedTuple):
    """A plan on the grid, and the padded pixels it costs."""

    boxes: tuple[tuple[int, ...], ...]
    cost: float


def _best_shapes(
    distinct: np.ndarray, weights: np.ndarray, most: int, price: float
) -> dict[int, tuple[np.ndarray, float]]:
    """By the number of buckets, the best shapes that were met, and their padded pixels."""
    if most >= len(distinct) and not price:
        return {len(distinct): (distinct, float(distinct.prod(axis=1) @ weights))}
    grid = _Grid(distinct, weights, share=max(1, most / 24 if not price else 1))
    highest = min(most + _MORE, len(grid.places))
    everything = _settle(grid, [tuple(n - 1 for n in grid.shape)])
    best = {1: everything}

    def keep(number: int, found: _Boxes) -> bool:
        better = number not in best or found.cost < best[number].cost
        if better:
            best[number] = found
        return better

    @functools.cache  # from a plan that is as it was, the search leads where it led
    def one_more(boxes: tuple[tuple[int, ...], ...]) -> _Boxes:
        areas = np.stack([grid.areas(box) for box in boxes])
        return _settle(grid, [*boxes, grid.best(areas)])

    @functools.cache
    def one_less(boxes: tuple[tuple[int, ...], ...]) -> _Boxes:
        return _settle(grid, _without_one(grid, boxes))

    improved = True
    while improved:
        improved = False
        for number in range(2, highest + 1):
            if price and number not in best and number > _MORE + 1:
                fewer = best[number - _MORE - 1].cost
                if fewer - best[number - 1].cost < price * _MORE:  # the last few did not pay
                    highest = number - 1
                    break
            improved |= keep(number, one_more(best[number - 1].boxes))
        for number in range(highest - 1, 0, -1):
            improved |= keep(number, one_less(best[number + 1].boxes))
    return {
        number: (
            np.array([[s[n] for s, n in zip(grid.sides, box, strict=True)] for box in boxes.boxes]),
            boxes.cost,
        )
        for number, boxes in best.items()
    }


def _settle(grid: _Grid, boxes: list[tuple[int, ...]]) -> _Boxes:
    """Each box in turn to the best place for it, until none moves."""
    boxes = list(boxes)
    areas = np.stack([grid.areas(box) for box in boxes])
    cost = areas.min(axis=0) @ grid.weights
    turn = still = 0
    while still < len(boxes):
        before = areas[turn].copy()
        areas[turn] = np.inf
        box = grid.best(areas)
        areas[turn] = grid.areas(box)
        now = areas.min(axis=0) @ grid.weights
        if now < cost:
            boxes[turn], cost, still = box, now, 0
        else:
            areas[turn] = before
            still += 1
        turn = (turn + 1) % len(boxes)
    return _Boxes(tuple(boxes), float(cost))


def _without_one(grid: _Grid, boxes: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Without the box whose places lose least by going to the next larger."""
    areas = np.stack([grid.areas(box) for box in boxes])
    least, second = np.sort(areas, axis=0)[:2]
    lost = np.bincount(areas.argmin(axis=0), (second - least) * grid.weights, len(boxes))
    return [box for i, box in enumerate(boxes) if i != lost.argmin()]


def _checked(sizes: Any) -> np.ndarray:
    sizes = np.asarray(sizes)
    if sizes.ndim != 2 or not sizes.size:
        raise ValueError(f"sizes must be [n, spatial_rank] with n >= 1, got shape {sizes.shape}")
    if not np.issubdtype(sizes.dtype, np.integer):
        raise ValueError(f"sizes must be integers (pixels), got dtype {sizes.dtype}")
    if (sizes < 1).any():
        row = int((sizes < 1).any(axis=1).argmax())
        raise ValueError(f"sizes must be at least 1 pixel: image {row} is {sizes[row].tolist()}")
    return sizes.astype(np.int64)


def _at_least_one(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value} must be an integer") from None
    if number < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    return number


def _counts(counts: Counts | None, n: int) -> np.ndarray:
    if counts is None:
        return np.ones(n, np.int64)
    counts = np.asarray(counts)
    if counts.shape != (n,) or not np.issubdtype(counts.dtype, np.integer) or (counts < 1).any():
        raise ValueError(f"counts must be {n} integers >= 1, one per size, got {counts!r}")
    return counts
