"""A collection that was scored, as a folder with a page: `index.html`, thumbnails, and why the best are so.

    DIR/index.html      the page: entries, style and script in one, written at the end, whole or not at all
    DIR/thumbs/*.jpg    a thumbnail of each photograph, by its path, length and time of change
    DIR/views/*         of the best: a larger picture, the map, and what else explains the score

What is there already is kept, so a gallery that was broken off goes on. Nothing is written elsewhere.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spp_jax.addresses import is_address, stamp
from spp_jax.data.decoding import UnreadableError, decode
from spp_jax.errors import UsageError
from spp_jax.names import printable
from spp_jax.scoring.album import Entry
from spp_jax.scoring.drawing import heat_map, strongest
from spp_jax.scoring.gallery_page import gallery_page
from spp_jax.scoring.page import MARK, thumbnail
from spp_jax.scoring.scorer import Scorer
from spp_jax.scoring.stream import Watch
from spp_jax.whole_files import write_whole

__all__ = ["BEST", "SCORES", "Gallery"]

BEST = 12
"""Photographs that are explained, the best of all, where nothing else is asked for."""
SCORES = "scores.jsonl"
"""File of a gallery in which scores may be kept."""

_log = logging.getLogger(__name__)
_THUMB, _VIEW = 320, 1600  # longest sides, in pixels
_VIEW_PIXELS = 1_500_000
_MAP = 256  # longest side of a map's picture
_CROPS = 5
_OURS = re.compile(
    rf"index\.html|thumbs|views|\.?{re.escape(SCORES)}(\..*)?|\..*\.part"
    r"|\.DS_Store|Thumbs\.db|desktop\.ini"  # which systems put wherever somebody looks
)
_MADE = re.compile(r"\.?[0-9a-f]{24}\b.*")


class Gallery:
    """A folder with a page of photographs.

    Example::

        gallery = Gallery(Path("gallery"))
        results = list(scorer.stream(photos, watch=gallery.watch(scorer, photos)))  # makes thumbnails
        entries = ranked([...])
        gallery.explain(scorer, entries)
        gallery.write(entries, scorer.attributes)
    """

    def __init__(self, folder: Path):
        """Take a folder; nothing is made yet.

        Args:
            folder: new, empty, or a gallery.

        Raises:
            UsageError: it is something else, or no folder on a disk.
        """
        if is_address(folder):
            raise UsageError(f"gallery {folder} must be a folder on a disk", "gallery")
        self.folder = Path(os.path.abspath(folder))
        if self.folder.exists():
            _check_ours(self.folder)

    def begin(self) -> Path:
        """Make the folder where it is missing, and give it."""
        for name in ("thumbs", "views"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        return self.folder

    def holds(self, photo: Path) -> bool:
        """Whether a file is one of the gallery's own."""
        return not is_address(photo) and Path(os.path.abspath(photo)).is_relative_to(self.folder)

    def watch(self, scorer: Scorer, photos: Sequence[Path]) -> Watch | None:
        """What :meth:`spp_jax.Scorer.stream` is to show the photographs to: it writes thumbnails.

        Args:
            scorer: who judges; one that sees no whole photographs shows none.
            photos: those that are scored, in their order.
        """
        self.begin()
        if scorer.config.input != "full":
            return None

        def make(place: int, pixels: np.ndarray, turned: bool) -> None:
            file = self._thumb(photos[place])
            if not file.exists():
                write_whole(file, thumbnail(pixels, _THUMB, turned=turned)[0])

        return make

    def complete(self, scorer: Scorer, entries: Iterable[Entry], progress: Callable[[], Any]) -> None:
        """Make the thumbnails that are missing, as of photographs that were scored before.

        Args:
            scorer: how photographs become pixels.
            entries: of the collection.
            progress: called once an entry.
        """
        self.begin()
        whole = dataclasses.replace(scorer.config.decoding, input="full")
        for entry in entries:
            file = self._thumb(entry.path)
            if not entry.reason and not file.exists():
                try:
                    write_whole(file, thumbnail(decode(entry.path, whole), _THUMB)[0])
                except UnreadableError as error:  # it could be read when it was scored
                    _log.warning("%s has no thumbnail: %s", printable(entry.path), printable(error))
            progress()

    def explain(
        self,
        scorer: Scorer,
        entries: Sequence[Entry],
        best: int = BEST,
        *,
        by: int = 0,
        progress: Callable[[], Any] = int,
    ) -> None:
        """Say why the best have their scores: map, winners, parts and crops. Those said before are kept.

        Args:
            scorer: who judged; one that sees no whole photographs, or is no SPPNet, explains none.
            entries: ranked.
            best: how many.
            by: of the judge's attributes, the one that is explained.
            progress: called once a photograph.
        """
        if scorer.config.input != "full":
            return
        for entry in _best(entries, best):
            file = self._why(entry.path, scorer.digest, by)
            if not file.exists():
                try:
                    self._explain(scorer, entry, scorer.attributes[by], file)
                except (UnreadableError, TypeError) as error:
                    _log.warning("%s is not explained: %s", printable(entry.path), printable(error))
            progress()

    def _explain(self, scorer: Scorer, entry: Entry, attribute: str, file: Path) -> None:
        why = scorer.explain(entry.path, attribute=attribute)
        crops = scorer.crops(entry.path, count=_CROPS, attribute=attribute)
        view = dataclasses.replace(scorer.config.decoding, input="full", max_pixels=_VIEW_PIXELS)
        content, width, height = thumbnail(decode(entry.path, view), _VIEW)
        high, wide = why.map.shape
        places, effects = strongest(why.winners)
        full = (entry.width or width, entry.height or height) * 2
        said = {
            "window": why.window,
            "low": _rounded(why.map.min()),
            "high": _rounded(why.map.max()),
            "logit": _rounded(why.logit),
            "parts": [[name, _rounded(amount)] for name, amount in why.parts.items()],
            "winners": [
                [_rounded(x / wide), _rounded(y / high), _rounded(e)]
                for (x, y), e in zip(places, effects, strict=True)
            ],
            "crops": [
                {
                    "box": [_rounded(edge / side) for edge, side in zip(crop.box, full, strict=True)],
                    "score": _rounded(crop.score),
                    "aspect": crop.aspect,
                }
                for crop in crops
            ],
        }
        write_whole(file.with_suffix(".jpg"), content)
        write_whole(file.with_suffix(".png"), _png(heat_map(why.map, _MAP)))
        write_whole(file, json.dumps(said, allow_nan=False).encode())  # last: it says that all is there

    def write(
        self,
        entries: Sequence[Entry],
        attributes: Sequence[str] = ("score",),
        *,
        by: int = 0,
        digest: str = "",
        best: int = BEST,
        title: str = "Photographs by score",
        judge: str = "",
    ) -> Path:
        """Write the page, whole or not at all, and take away pictures that it does not show.

        Args:
            entries: ranked; those without a score are listed apart, with the reason.
            attributes: the names of their scores.
            by: of these, the one they are ranked by.
            digest: of the judge whose explanations are shown.
            best: photographs that are explained, at most.
            title: of the page.
            judge: who judged, as it is shown.

        Returns:
            The page's file.
        """
        scored = sorted((e for e in entries if not e.reason), key=lambda e: (e.rank or 0, e.place))
        shown = {entry.place for entry in _best(entries, best)}
        used: set[str] = set()
        photos = [self._described(e, self._why(e.path, digest, by), e.place in shown, used) for e in scored]
        data = {"attributes": list(attributes), "by": by, "photos": photos}
        skipped = [(entry.name, entry.reason) for entry in entries if entry.reason]
        explained = sum("why_shown" in photo for photo in photos)
        page = gallery_page(title, judge, data, skipped, explained)
        file = self.folder / "index.html"
        write_whole(file, page.encode())
        self._sweep(used)
        return file

    def _described(self, entry: Entry, file: Path, explained: bool, used: set[str]) -> dict[str, Any]:
        """What the page's script is told of a photograph."""
        thumb = self._thumb(entry.path)
        used.add(thumb.stem)
        width, height = entry.width, entry.height
        if not (width and height):
            with contextlib.suppress(OSError), Image.open(thumb) as picture:
                width, height = picture.size
        described: dict[str, Any] = {
            "name": printable(entry.name),
            "url": self._url(entry.path),
            "thumb": f"thumbs/{thumb.name}",
            "width": width or 3,
            "height": height or 2,
            "scores": [_rounded(score) for score in np.atleast_1d(entry.scores).tolist()],
            "percentile": entry.percentile,
        }
        optional = {"taken": entry.taken, "series": entry.series, "why": entry.why}
        described |= {name: value for name, value in optional.items() if value}
        described["pick"] = entry.pick
        if explained and file.exists():
            used.add(file.stem)
            described["why_shown"] = json.loads(file.read_text()) | {
                "view": f"views/{file.stem}.jpg",
                "map": f"views/{file.stem}.png",
            }
        return described

    def _url(self, photo: Path) -> str:
        """From the page to the photograph, each byte that could mean something else escaped."""
        if is_address(photo):
            return ""
        try:
            path = os.path.relpath(photo, self.folder)
            return urllib.parse.quote(os.fsencode(path if os.sep == "/" else path.replace(os.sep, "/")))
        except ValueError:  # another drive
            return Path(os.path.abspath(photo)).as_uri()

    def _thumb(self, photo: Path) -> Path:
        return self.folder / "thumbs" / f"{_key(photo)}.jpg"

    def _why(self, photo: Path, digest: str, by: int) -> Path:
        return self.folder / "views" / f"{_key(photo, f'{digest} {by}')}.json"

    def _sweep(self, used: set[str]) -> None:
        for folder in ("thumbs", "views"):
            for file in (self.folder / folder).iterdir():
                if _MADE.fullmatch(file.name) and file.stem not in used:
                    file.unlink(missing_ok=True)


def _check_ours(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"gallery {folder} is a file, not a folder", "gallery")
    others = sorted(file.name for file in folder.iterdir() if not _OURS.fullmatch(file.name))
    page = folder / "index.html"
    if not others and page.exists():
        with page.open(encoding="utf-8", errors="replace") as file:
            others = [] if MARK in file.read(100_000) else [page.name]
    if others:
        raise UsageError(
            f"gallery {folder} holds what is not of a gallery, such as {printable(others[0])}: name a new or "
            "an empty folder",
            "gallery",
        )


def _best(entries: Iterable[Entry], count: int) -> list[Entry]:
    """Those that are explained, best first."""
    scored = [entry for entry in entries if not entry.reason and entry.rank is not None]
    return sorted(scored, key=lambda entry: (entry.rank or 0, entry.place))[:count]


def _key(photo: Path, digest: str = "") -> str:
    """A name for a photograph as it is now, 24 hexadecimal digits."""
    path = str(photo) if is_address(photo) else os.path.abspath(photo)
    try:
        known = stamp(photo)
    except Exception:  # each file system has errors of its own; it was there when it was scored
        known = (0, 0)
    text = json.dumps([path, *known, digest])  # ASCII: names that are not text too
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
