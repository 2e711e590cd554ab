"""Scores as they come and what headers tell, gathered into the entries of an album."""

import collections
import dataclasses
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from spp_jax.addresses import stamp
from spp_jax.cli.score_file import ScoreFile
from spp_jax.cli.scored import bar_hidden
from spp_jax.config import Decoding
from spp_jax.data.decoding import photo_facts
from spp_jax.data.duplicates import look_of
from spp_jax.scoring import Entry, Scored, in_series, ranked

__all__ = ["Gathering", "name_below"]


class Gathering:
    """Entries of photographs: those that a file kept, and the others as their scores come.

    Headers are read, and lines written, by a thread behind the scores, which do not wait for it. What was
    skipped is not read again: a file that takes all that its limits allow takes it once. Use as a context.

    Attributes:
        kept: entries that the file has.
    """

    def __init__(
        self, photos: Sequence[Path], names: Sequence[str], decoding: Decoding, file: ScoreFile | None
    ):
        """Begin.

        Args:
            photos: files.
            names: what each is called.
            decoding: its limits hold for headers, too.
            file: keeps results, and has kept some; None: there is none.
        """
        self._names, self._decoding, self._file = names, decoding, file
        found = file.kept(photos) if file else []
        self.kept = [dataclasses.replace(entry, name=names[entry.place]) for entry in found]
        self._pool = ThreadPoolExecutor(1, "facts")
        self._coming: collections.deque[Future[Entry]] = collections.deque()
        self._entries: dict[int, Entry] = {}

    def __enter__(self) -> "Gathering":
        for entry in self.kept:
            if entry.height is None and not entry.reason:  # an older version's
                self._coming.append(self._pool.submit(self._complete, entry))
            self._entries[entry.place] = entry
        return self

    def __exit__(self, kind: type | None, *exception) -> None:
        self._pool.shutdown()  # also where this is interrupted: what was scored is written
        if kind is None:
            self._take(all_of_it=True)

    def keep(self, photo: Path, scored: Scored) -> None:
        """Take a result, and have it written.

        Raises:
            OSError: an earlier one could not be.
        """
        scores = np.atleast_1d(np.asarray(scored.score, np.float32))
        name = self._names[scored.place]
        entry = Entry(scored.place, photo, name, scores, scored.reason, bytes=_length(photo))
        self._coming.append(self._pool.submit(self._complete, entry))
        self._take()

    def entries(self, by: int) -> list[Entry]:
        """All, in the order of the photographs, with their ranks by this output of the judge."""
        self._take(all_of_it=True)
        return ranked([self._entries[place] for place in range(len(self._names))], by)

    def _complete(self, entry: Entry) -> Entry:
        if not entry.reason:
            facts = photo_facts(entry.path, self._decoding)
            entry = dataclasses.replace(entry, **facts._asdict())
        if self._file:
            self._file.keep(entry)
        return entry

    def _take(self, *, all_of_it: bool = False) -> None:
        while self._coming and (all_of_it or self._coming[0].done()):
            entry = self._coming.popleft().result()
            self._entries[entry.place] = entry

    def in_series(
        self, entries: Sequence[Entry], seconds: float, by: int, *, look_alikes: bool
    ) -> list[Entry]:
        """The same with their series, for which pictures are looked at, small, where no look is known yet."""
        entries = list(entries)
        if look_alikes:
            new = [e.place for e in entries if not e.reason and not e.look]
            hidden = bar_hidden(len(new))
            with ThreadPoolExecutor(thread_name_prefix="look") as pool:
                looks = pool.map(lambda place: look_of(entries[place].path, self._decoding), new)
                for place, look in zip(
                    new,
                    tqdm(looks, total=len(new), desc="compare", unit="photo", disable=hidden),
                    strict=True,
                ):
                    entries[place] = dataclasses.replace(entries[place], look=look)
        return in_series(entries, seconds, by, look_alikes=look_alikes)


def name_below(photo: Path, given: Iterable[Path]) -> str:
    """A photograph's name relative to the folder that it was found in; of one that was given, its own."""
    for folder in given:
        if photo != folder and photo.is_relative_to(folder):
            return posixpath.join(*photo.relative_to(folder).parts)
    return photo.name


def _length(photo: Path) -> int:
    try:
        return stamp(photo)[0]
    except Exception:  # each file system has errors of its own; reading it says what is wrong
        return 0
