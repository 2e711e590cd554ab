"""Photographs in, rows for a batch out: read by threads, a few ahead, in about the order given."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from spp_jax.addresses import is_address, path_at
from spp_jax.config import Decoding
from spp_jax.data.decoding import Photo, UnreadableError, decode, photo_size

__all__ = ["Home", "Ready", "Scored", "Watch", "batches_of", "read_photo", "read_photos"]

Shape: TypeAlias = tuple[int, int]
Home: TypeAlias = Callable[[Shape], tuple[Shape, bool]]
"""From a photograph's size to the shape of its rung, and whether it lies turned there."""
Watch: TypeAlias = Callable[[int, np.ndarray, bool], Any]
"""Shown a place, the pixels there, uint8 ``[height, width, 3]``, and whether their axes are swapped."""
_WAITING = 64_000_000  # pixels read that wait for their batch to be full, at most
_PATIENCE = 64  # photographs read after one that waits, at most


class Scored(NamedTuple):
    """A photograph's result.

    Attributes:
        place: in what was given, from 0.
        score: in [0, 1]; NaN where there is none.
        reason: why there is none; empty where there is one.
    """

    place: int
    score: Any
    reason: str


class Ready(NamedTuple):
    """A photograph that was read, padded to its rung.

    Attributes:
        values: uint8 ``[height, width, 3]`` of the rung.
        size: of the photograph as it lies there.
        turned: it lies there with its axes swapped.
    """

    values: np.ndarray
    size: Shape
    turned: bool

    @property
    def shape(self) -> Shape:
        """Of the rung."""
        return self.values.shape[0], self.values.shape[1]


def read_photo(
    photo: Photo,
    decoding: Decoding,
    smallest: Shape,
    home: Home,
    watch: Callable[[np.ndarray, bool], Any] | None = None,
) -> Ready | str:
    """Decode one photograph into its rung; or say why not.

    Args:
        photo: what to read.
        decoding: how.
        smallest: (height, width) below which it is refused.
        home: finds its rung.
        watch: shown the pixels, and whether their axes are swapped; its errors are raised.
    """
    try:
        if isinstance(photo, str | os.PathLike) and is_address(photo):
            photo = path_at(photo).read_bytes()  # one journey
        size = photo_size(photo, decoding)
        if size[0] < smallest[0] or size[1] < smallest[1]:
            return (
                f"is {size[0]} pixels high and {size[1]} wide, smaller than the model takes: at "
                f"least {smallest[0]} high and {smallest[1]} wide"
            )
        shape, turned = home(size)
        pixels = decode(photo, decoding, recorded=size, turned=turned)
    except UnreadableError as error:
        return str(error)
    except OSError as error:  # of an address: each file system has errors of its own
        return " ".join(f"{type(error).__name__}: {error}".split())
    if watch is not None:
        watch(pixels, turned)
    values = np.zeros((*shape, 3), np.uint8)
    values[: pixels.shape[0], : pixels.shape[1]] = pixels
    return Ready(values, (pixels.shape[0], pixels.shape[1]), turned)


def read_photos(
    photos: Iterable[Photo], decoding: Decoding, smallest: Shape, home: Home, watch: Watch | None = None
) -> Iterator[tuple[int, Ready | str]]:
    """As :func:`read_photo` each, with its place; whichever is ready, a few ahead."""
    workers = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(workers, "decode")
    places: dict[Future[Any], int] = {}
    source = enumerate(photos)
    ended = False
    try:
        while places or not ended:
            while not ended and len(places) < 2 * workers:
                item = next(source, None)
                if item is None:
                    ended = True
                    break
                place, photo = item
                seen = None if watch is None else functools.partial(watch, place)
                places[pool.submit(read_photo, photo, decoding, smallest, home, seen)] = place
            if places:
                first = next(iter(places))
                done = [first] if first.done() else wait(places, return_when=FIRST_COMPLETED).done
                yield from ((places.pop(future), future.result()) for future in done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batches_of(
    ready: Iterable[tuple[int, Ready | str]], full: Callable[[Shape], int]
) -> Iterator[list[tuple[int, Ready | str]]]:
    """Photographs of one rung that lie alike, together; what could not be read, at once.

    A group is given when it is full, when many photographs came after its first, or when much waits.

    Args:
        ready: as :func:`read_photos` gives them.
        full: how many make a full batch of this shape.
    """
    groups: dict[tuple[Shape, bool], list[tuple[int, Ready | str]]] = {}
    since: dict[tuple[Shape, bool], int] = {}
    pixels = 0
    for number, (place, found) in enumerate(ready):
        if isinstance(found, str):
            yield [(place, found)]
            continue
        key = (found.shape, found.turned)
        groups.setdefault(key, []).append((place, found))
        since.setdefault(key, number)
        pixels += found.shape[0] * found.shape[1]
        due = [key] if len(groups[key]) >= full(found.shape) else []
        oldest = min(since, key=lambda key: since[key])
        if not due and (pixels > _WAITING or number - since[oldest] >= _PATIENCE):
            due = [oldest]
        for key in due:
            del since[key]
            pixels -= len(groups[key]) * key[0][0] * key[0][1]
            yield groups.pop(key)
    yield from groups.values()
