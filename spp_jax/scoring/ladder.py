"""Which shapes a Scorer compiles for, whatever photographs come: a grid, a choice, a bound.

Every padded shape that a Scorer can have, a *rung*, lies on one grid of sides that follows from the policy
alone, so that programs are found again on the disk by every process with the same checkpoint. Sizes and
shapes are in pixels, height before width. Host code, NumPy only.

Of a collection that is known, :func:`choose` takes the rungs with which it is done soonest, the price of
those that are to be compiled or read counted. Where photographs come one at a time, :class:`Ladder` learns
from the first ones what comes, and settles.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from spp_jax.buckets import COMPILATION_PRICE, plan_buckets
from spp_jax.config import Decoding

__all__ = ["Ladder", "choose", "least_holding", "lies_turned"]

_OFTEN = (3, 2, 12, 10, 1, 3, 1)  # each of them, about
_STEPS = 12  # of the grid to an octave: a side is rounded up by 3 % on average
_LARGEST = 2**26
_RATIOS = (1, 5 / 4, 4 / 3, 3 / 2, 8 / 5, 16 / 9, 2)  # most photographs are of one of these shapes
_SETTLED_AFTER = 32  # photographs that say what comes
_EXPECTED = 10_000  # photographs that a Scorer that is asked again and again is taken to meet
_SPARE = 2  # programs that are not planned: for what the plan does not hold
_LARGER = 4  # a rung of so many times the pixels is taken where its program is on the disk

Shape = tuple[int, int]


def grid_sides(decoding: Decoding, multiple: int) -> np.ndarray:
    """The sides that rungs have: int64, increasing.

    Twelve to an octave, rounded up to multiples; and, where the policy scales down to a number of pixels,
    those of the usual aspect ratios at just that number.
    """
    octaves = math.ceil(math.log2(_LARGEST / multiple))
    sides = multiple * 2 ** (np.arange(octaves * _STEPS + 1) / _STEPS)
    if decoding.input != "full":
        sides = np.array([decoding.input_side, *sides])
    elif decoding.max_pixels is not None:
        ratios = np.sqrt(_RATIOS)
        sides = np.concatenate(
            [sides, np.floor(decoding.max_pixels**0.5 * np.concatenate([ratios, 1 / ratios]))]
        )
    return np.unique(np.ceil(np.round(sides / multiple, 6)).astype(np.int64)) * multiple


def choose(
    sizes: np.ndarray, counts: np.ndarray, prices: Mapping[Shape, float], most: int, either: bool
) -> list[Shape]:
    """Of these shapes, at most ``most`` that hold a collection at the least cost; and all that cost nothing.

    The cost is the padded pixels, each photograph in the least shape that holds it, plus the prices.
    Beginning with all that cost less than the dearest, one of the dearest more, less, or in another's place
    is taken as long as that saves; then of the others one less, or in another's place, likewise. So a
    collection whose rungs were compiled and kept is not compiled for again: what did not pay beside them then
    does not now.

    Args:
        sizes: integers ``[n, 2]``.
        counts: how many photographs have each size.
        prices: pixels, by shape.
        most: shapes that have a price above 0, beside those that have none.
        either: shapes hold photographs turned as well.

    Raises:
        ValueError: the shapes do not hold the sizes.
    """
    shapes = sorted(prices, key=lambda shape: (shape[0] * shape[1], shape))
    lying = np.sort(sizes, axis=1) if either else np.asarray(sizes)
    paid = np.array([prices[shape] for shape in shapes])
    areas = np.prod(np.array(shapes, np.int64), axis=1)
    inside = (lying[:, None] <= np.array(shapes)).all(axis=2)
    if not inside.any(axis=-1).all():
        raise ValueError("the shapes do not hold all sizes")
    each = np.where(inside, areas, 1e15)  # finite, so that holding one photograph more is worth most
    free = paid == 0

    def cost(some: np.ndarray) -> float:
        held = each[:, some].min(axis=1, initial=1e15) @ counts + paid[some].sum()
        return held + 1e15 * max(0, int((some & ~free).sum()) - most)

    dear = paid == paid.max()
    taken = _improved(free | ~dear, dear, dear, ~free, cost)
    taken = _improved(taken, ~dear & ~free, ~free, ~free, cost)
    used = free.copy()
    used[np.unique(np.where(taken, each, np.inf).argmin(axis=1))] = True
    return [shape for shape, use in zip(shapes, used, strict=True) if use]


def least_holding(size: Shape, rungs: Iterable[Shape], *, either: bool) -> Shape | None:
    """The rung of least area that holds a size; None where none does.

    Args:
        size: (height, width).
        rungs: to choose from.
        either: rungs lie across, and hold upright photographs turned.
    """
    height, width = sorted(size) if either else size
    holding = [(h * w, (h, w)) for h, w in rungs if height <= h and width <= w]
    return min(holding)[1] if holding else None


def lies_turned(size: Shape, rung: Shape) -> bool:
    """Whether a photograph of that size lies turned in the rung that was chosen for it."""
    return size[0] > rung[0] or size[1] > rung[1]


def _improved(
    taken: np.ndarray,
    come: np.ndarray,
    go: np.ndarray,
    yields: np.ndarray,
    cost: Callable[[np.ndarray], float],
) -> np.ndarray:
    """With one more, one less, or one in another's place, whichever saves most, until nothing does.

    Masks: those taken first, those that may come, those that may go, and those whose place may be taken.
    """
    least = cost(taken)
    while True:
        outs, ins = np.flatnonzero(taken & go), np.flatnonzero(~taken & come)
        moves = [
            *((i,) for i in ins),
            *((i,) for i in outs),
            *itertools.product(np.flatnonzero(taken & yields), ins),
        ]
        best, better = None, least * (1 - 1e-12)
        for move in moves:
            tried = taken.copy()
            tried[list(move)] ^= True
            if (found := cost(tried)) < better:
                best, better = tried, found
        if best is None:
            return taken
        taken, least = best, better


class Ladder:
    """The rungs that one Scorer uses, and for which photographs. Not thread-safe: its Scorer holds a lock.

    A photograph goes to the least rung in use that holds it. Where none does, a new one is used: at first
    the least of the grid, later one of coarser sides, of which there are four to two octaves, so that few
    new ones ever come. After 32 photographs those met say what else would pay: rungs are then planned as for
    10,000 more like them, and that is all: more are added only where a photograph is held by none, or where
    a collection that is known pays for its own.

    Beyond ``most``, the rung that was used least recently goes. So the number of programs never exceeds it.

    Attributes:
        most: rungs at most.
        used: those in use, the latest last.
    """

    def __init__(self, decoding: Decoding, *, multiple: int = 8, either: bool = True, most: int = 16):
        """Begin without rungs.

        Args:
            decoding: the policy by which photographs become pixels.
            multiple: of all sides.
            either: rungs lie across, and hold upright photographs turned.
            most: as said above; at least 1.

        Raises:
            ValueError: ``most`` is below 1.
        """
        if most < 1:
            raise ValueError(f"most={most} must be at least 1")
        self.most, self.either = most, either
        self.used: dict[Shape, None] = {}
        self._decoding = decoding
        self._sides = grid_sides(decoding, multiple)
        coarse = multiple * 2.0 ** np.arange(0, math.log2(_LARGEST / multiple), 0.5)
        self._coarse = self._sides[np.searchsorted(self._sides, coarse)]
        self._seen: list[Shape] = []
        self._settled = False
        self._asked = 0

    def rung(self, size: Shape, prices: Mapping[Shape, float], price: float = COMPILATION_PRICE) -> Shape:
        """The rung for one photograph more.

        Args:
            size: its (height, width).
            prices: of rungs that are on the disk, in pixels.
            price: of those that are not.
        """
        if not self._settled and len(self._seen) >= _SETTLED_AFTER:
            self._settled = True
            self._add(self._planned(np.array(self._seen), prices, price, expected=_EXPECTED))
        if not self._settled:
            self._seen.append(size)
        home = least_holding(size, self.used, either=self.either)
        if home is None:
            new = self.snapped(size, coarse=len(self.used) > 1)
            kept = least_holding(size, prices, either=self.either)
            home = kept if kept and math.prod(kept) <= _LARGER * math.prod(new) else new
            self._add([home])
        self.used[home] = self.used.pop(home)  # now the latest
        return home

    def held(self, size: Shape, *, expected: bool = False) -> Shape | None:
        """As :meth:`rung` where nothing is left to decide, quickly; else None.

        Args:
            size: of a photograph.
            expected: it is one of a collection that was planned for.
        """
        if not self._settled and not expected:
            return None
        home = least_holding(size, self.used, either=self.either)
        if home is not None:
            self.used[home] = self.used.pop(home)
        return home

    def expect_usual(self, prices: Mapping[Shape, float], price: float = COMPILATION_PRICE) -> list[Shape]:
        """Use what real photographs after this policy are scored with soonest, if many come; its rungs."""
        self._settled = True
        ratios = np.repeat(_RATIOS, _OFTEN)
        pixels = (self._decoding.max_pixels or 1_000_000) / np.array([1, 1, 1, 2, 4, 8])
        heights = np.sqrt(pixels[:, None] / ratios)
        sizes = np.stack([heights, heights * ratios], axis=-1).reshape(-1, 2)
        sizes = np.maximum(self._decoding.scaled(np.floor(sizes).astype(np.int64)), 1)
        planned = self._planned(sizes, prices, price, expected=_EXPECTED)
        self._add(planned)
        return planned

    def expect(
        self,
        sizes: np.ndarray,
        prices: Mapping[Shape, float],
        price: float = COMPILATION_PRICE,
        times: float = 1,
    ) -> list[Shape]:
        """Use what a known collection is done with soonest; its rungs.

        The k-th collection is taken to be the first of k like it.

        Args:
            sizes: integers ``[n, 2]``, n at least 1.
            prices: of rungs on the disk, in pixels.
            price: of those that are not.
            times: for how many photographs each of the sizes stands.
        """
        self._asked += 1
        times *= self._asked
        planned = self._planned(sizes, prices, price, expected=times * len(sizes))
        self._add(planned)
        return planned

    def snapped(self, size: Shape, *, coarse: bool = False) -> Shape:
        """The least rung of the grid, or of its coarser sides, that holds a size."""
        sides = self._coarse if coarse else self._sides
        height, width = sorted(size) if self.either else size
        tall, wide = sides[np.searchsorted(sides, (height, width))].tolist()
        return tall, wide

    def _whole(self, sizes: np.ndarray) -> Shape:
        """One rung that holds them all."""
        lying = np.sort(sizes, axis=1) if self.either else sizes
        height, width = lying.max(axis=0).tolist()
        return self.snapped((height, width))

    def _planned(
        self, sizes: np.ndarray, prices: Mapping[Shape, float], price: float, expected: float
    ) -> list[Shape]:
        """With what the photographs of these sizes are done soonest, if so many come."""
        snapped, inverse = np.unique([self.snapped(size) for size in sizes], axis=0, return_inverse=True)
        alike = np.bincount(inverse.reshape(-1))
        times = max(expected / len(sizes), 1e-9)
        room = max(self.most - _SPARE, 1)
        plan = plan_buckets(
            snapped,
            room,
            counts=alike,
            multiple=1,
            compilation_price=price / times,
            both_orientations=self.either,
        )
        planned = [(shape[0], shape[1]) for shape in plan.shapes]
        known = dict.fromkeys(planned, price) | dict(prices) | dict.fromkeys(self.used, 0)
        distinct, inverse = np.unique(sizes, axis=0, return_inverse=True)
        counts = np.bincount(inverse.reshape(-1)) * times
        known.setdefault(self._whole(sizes), price)
        most = max(room - len(self.used), _SPARE)
        return choose(distinct, counts, known, most, self.either)

    def _add(self, rungs: Iterable[Shape]) -> None:
        for rung in rungs:
            self.used.setdefault(rung)
        while len(self.used) > self.most:
            del self.used[next(iter(self.used))]
