"""Scores as they come and what headers tell, gathered into the entries of an album."""

import dataclasses
import posixpath
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from spp_jax.addresses import stamp
from spp_jax.cli.score_file import ScoreFile
from spp_jax.config import Decoding
from spp_jax.data.decoding import photo_facts
from spp_jax.data.duplicates import look_of
from spp_jax.data.exif import Facts
from spp_jax.scoring import Entry, Scored, in_series, ranked

__all__ = ["Gathering", "name_below"]

_MANY = 100  # photographs from which a progress bar is worth its line


class Gathering:
    """Entries of photographs: those that a file kept, and the others as their scores come.

    Headers are read by a thread of their own, ahead of the scores. Use as a context.

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
        self._photos, self._names, self._decoding, self._file = photos, names, decoding, file
        self.kept = file.kept(photos) if file else []
        self._entries = {entry.place: entry for entry in self.kept}
        self._pool = ThreadPoolExecutor(1, "facts")
        self._facts: dict[int, Future[Facts]] = {}

    def __enter__(self) -> "Gathering":
        for place, photo in enumerate(self._photos):
            entry = self._entries.get(place)
            if entry is None or (entry.height is None and not entry.reason):  # an older version's
                self._facts[place] = self._pool.submit(photo_facts, photo, self._decoding)
        return self

    def __exit__(self, *exception) -> None:
        self._pool.shutdown(cancel_futures=True)

    def keep(self, photo: Path, scored: Scored) -> None:
        """Take a result, and write it to the file."""
        facts = self._facts.pop(scored.place).result()
        entry = Entry(
            scored.place,
            photo,
            self._names[scored.place],
            np.atleast_1d(np.asarray(scored.score, np.float32)),
            scored.reason,
            bytes=_length(photo),
            **facts._asdict(),
        )
        self._entries[scored.place] = entry
        if self._file:
            self._file.keep(entry)

    def entries(self, by: int) -> list[Entry]:
        """All, in the order of the photographs, with their ranks by this output of the judge."""
        for place, facts in self._facts.items():
            self._entries[place] = dataclasses.replace(self._entries[place], **facts.result()._asdict())
        self._facts.clear()
        found = [
            dataclasses.replace(self._entries[place], name=name) for place, name in enumerate(self._names)
        ]
        return ranked(found, by)

    def in_series(
        self, entries: Sequence[Entry], seconds: float, by: int, *, look_alikes: bool
    ) -> list[Entry]:
        """The same with their series, for which pictures are looked at, small, where no look is known yet."""
        entries = list(entries)
        if look_alikes:
            new = [e.place for e in entries if not e.reason and not e.look]
            hidden = len(new) < _MANY or not sys.stderr.isatty()
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
