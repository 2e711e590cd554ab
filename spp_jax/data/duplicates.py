"""Pictures that are there more than once, under other names: of one group, so on one side of every split."""

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from spp_jax.addresses import is_address, stamp
from spp_jax.config import Decoding
from spp_jax.data.decoding import UnreadableError, decode
from spp_jax.data.remembered import Key, key_of, read_facts, write_facts
from spp_jax.errors import UsageError

__all__ = ["alike_pairs", "equal_files", "joined", "look_alikes", "look_of", "needs_imagehash"]

_log = logging.getLogger(__name__)

_FORM = 1
_ALIKE = 6  # of 64 bits of a perceptual hash that may differ
_SMALL = Decoding(max_pixels=128 * 128)


def equal_files(paths: Sequence[Path], cache: Path) -> list[list[int]]:
    """Sets of files, on a disk, that hold the same bytes; each by the places of its members, in order.

    Only files of equal length are read; what was found is kept in ``cache`` by name, length and date.
    """
    sizes: dict[int, list[int]] = collections.defaultdict(list)
    for place, path in enumerate(paths):
        try:
            if not is_address(path):
                sizes[stamp(path)[0]].append(place)
        except (OSError, ValueError):  # scanning says so
            continue
    places = [place for alike in sizes.values() if len(alike) > 1 for place in alike]
    digests = _remembered([paths[place] for place in places], cache, _digest)
    return _sets(zip(places, digests, strict=True))


def look_alikes(paths: Sequence[Path], cache: Path) -> list[list[int]]:
    """Sets of pictures that look alike: at most 6 of the 64 bits of their perceptual hashes differ.

    The hash is imagehash's ``phash``: the signs of the picture's lowest frequencies. It bears another size,
    another compression and small changes of colour; no cuts and no turns.

    Raises:
        UsageError: imagehash is not installed.
    """
    needs_imagehash("--near-duplicates")
    pairs = alike_pairs(_remembered(paths, cache, look_of))
    roots = joined(range(len(paths)), pairs)
    return [alike for alike in _sets(enumerate(map(str, roots))) if len(alike) > 1]


def needs_imagehash(flag: str) -> None:
    """Refuse an option that needs imagehash where it is not installed.

    Raises:
        UsageError: names the extra that has it.
    """
    try:
        import imagehash  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(f"{flag} needs imagehash: pip install 'spp_jax[duplicates]'") from None


def alike_pairs(looks: Sequence[str]) -> list[tuple[int, int]]:
    """Places of two of which at most 6 of the 64 bits differ.

    Args:
        looks: hashes of 16 hexadecimal digits; an empty one is like none.
    """
    places = [place for place, look in enumerate(looks) if look]
    bits = np.array([int(looks[place], 16) for place in places], np.uint64)
    pairs: list[tuple[int, int]] = []
    for i in range(len(bits) - 1):
        near = np.flatnonzero(np.bitwise_count(bits[i + 1 :] ^ bits[i]) <= _ALIKE)
        pairs += [(places[i], places[i + 1 + int(j)]) for j in near]
    return pairs


def joined(names: Iterable[int], pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each of 0 to n - 1 the smallest that it is joined to, by any chain of the pairs."""
    root = list(names)

    def top(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for a, b in pairs:
        a, b = sorted((top(a), top(b)))
        root[b] = a
    return [top(i) for i in range(len(root))]


def _sets(named: Iterable[tuple[int, str]]) -> list[list[int]]:
    sets: dict[str, list[int]] = collections.defaultdict(list)
    for place, name in named:
        if name:
            sets[name].append(place)
    return [places for places in sets.values() if len(places) > 1]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""


def look_of(path: Path, limits: Decoding = _SMALL) -> str:
    """A picture's ``phash``, by imagehash: 16 hexadecimal digits; empty where it is unreadable.

    Args:
        path: of the picture, which is decoded small.
        limits: its ``refuse_pixels`` and ``refuse_seconds`` hold.
    """
    import imagehash
    from PIL import Image

    small = dataclasses.replace(
        _SMALL, refuse_pixels=limits.refuse_pixels, refuse_seconds=limits.refuse_seconds
    )
    try:
        return str(imagehash.phash(Image.fromarray(decode(path, small))))
    except UnreadableError:
        return ""


def _remembered(paths: Sequence[Path], cache: Path, find: Callable[[Path], str]) -> list[str]:
    """What ``find`` gives for each file, which need not be read again while it stays as it is."""
    known = read_facts(cache, _FORM, "found")

    def one(path: Path) -> tuple[Key, str]:
        try:
            key = key_of(path, cache)
        except Exception:  # each file system has errors of its own; scanning says so
            return ("", 0, 0), ""
        return key, known[key] if key in known else find(path)

    with ThreadPoolExecutor(thread_name_prefix="compare") as pool:
        pairs = list(pool.map(one, paths))
    found = dict(pairs)
    if found != known and found:
        try:
            write_facts(cache, _FORM, "found", found, np.array(list(found.values()), str))
        except OSError as error:
            _log.warning(f"which files are equal is not kept for the next start: {error}")
    return [text for _, text in pairs]
