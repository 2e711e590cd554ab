"""Stars for photo programs: ratings in XMP sidecars, beside the photographs, which stay as they are.

Two customs name a sidecar. darktable and digiKam append to the whole name, ``photo.jpg.xmp``; Lightroom,
Bridge and Capture One put it in the ending's place, ``photo.xmp``, and mean by that the raw file of a pair.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from spp_jax.addresses import is_address
from spp_jax.cli.placing import replace_file, write_new
from spp_jax.cli.xmp import LARGEST, NotXmpError, new_sidecar, rating_in, with_rating
from spp_jax.data.finding import picture_endings
from spp_jax.data.raw import ENDINGS as RAW
from spp_jax.errors import UsageError
from spp_jax.scoring import Entry

__all__ = ["Written", "check_thresholds", "stars_of", "write_stars"]


class Written(NamedTuple):
    """What became of stars.

    Attributes:
        written: how many sidecars were written.
        kept: how many photographs had a rating already, which stands.
        refused: the reason, by the photograph's path, where neither could be.
    """

    written: int
    kept: int
    refused: dict[str, str]


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Refuse what are no four rising scores.

    Raises:
        UsageError: they are not.
    """
    rising = all(a < b for a, b in itertools.pairwise(thresholds))
    if not rising or not all(0 <= threshold <= 1 for threshold in thresholds):
        shown = " ".join(f"{threshold:g}" for threshold in thresholds)
        raise UsageError(f"stars must be four rising scores in 0 to 1, not {shown}", "stars")


def stars_of(score: float, thresholds: Sequence[float]) -> int:
    """1 star, and one more for each threshold that the score reaches.

    Example:
        >>> [stars_of(score, (0.2, 0.4, 0.6, 0.8)) for score in (0.1, 0.2, 0.95)]
        [1, 2, 5]
    """
    return 1 + bisect.bisect_right(thresholds, score)


def write_stars(
    entries: Iterable[Entry],
    thresholds: Sequence[float],
    *,
    by: int = 0,
    in_place_of_ending: bool = False,
    overwrite: bool = False,
) -> Written:
    """Write each photograph's stars into its sidecar, which is made where there is none.

    A rating of the photograph, in its sidecar under either name or in the file itself, stands. A sidecar that
    has none gets one, and keeps all else.

    Args:
        entries: of photographs on a disk, with scores.
        thresholds: see :func:`stars_of`.
        by: the output of the judge that counts.
        in_place_of_ending: a new sidecar is ``photo.xmp``, else ``photo.jpg.xmp``.
        overwrite: ratings, too.
    """
    written = kept = 0
    refused: dict[str, str] = {}
    names = _Names()
    for entry in entries:
        if is_address(entry.path):
            refused[str(entry.path)] = "is at an address, where no sidecar is written"
            continue
        try:
            long, short = entry.path.with_name(f"{entry.path.name}.xmp"), names.short(entry.path)
            if short is None and in_place_of_ending:
                raise NotXmpError("shares its sidecar's name with another photograph")
            rating = stars_of(float(entry.scores[by]), thresholds)
            sidecars = [path for path in ((short, long) if in_place_of_ending else (long, short)) if path]
            done = (overwrite or entry.rating is None) and _write(sidecars, rating, overwrite)
        except (NotXmpError, OSError) as error:
            what = error.strerror if isinstance(error, OSError) else None
            refused[str(entry.path)] = f"gets no stars: {what or error}"
            continue
        written, kept = written + done, kept + (not done)
    return Written(written, kept, refused)


def _write(sidecars: Sequence[Path], rating: int, overwrite: bool) -> bool:
    """Write into those that are there, or the first; whether it was done."""
    called = [path if path.exists() else path.with_suffix(".XMP") for path in sidecars]
    there = {path: _read(path) for path in called if path.is_file()}
    if not there:
        return write_new(sidecars[0], new_sidecar(rating))
    if any(rating_in(content) for content in there.values()) and not overwrite:
        return False
    for path, content in there.items():
        replace_file(path, with_rating(content, rating))
    return True


def _read(sidecar: Path) -> bytes:
    """Of which no more is read than a sidecar may have.

    Raises:
        NotXmpError: it is not XMP; says which file.
    """
    with sidecar.open("rb") as file:
        content = file.read(LARGEST + 1)
    try:
        rating_in(content)
    except NotXmpError as error:
        raise NotXmpError(f"{sidecar.name} {error}") from None
    return content


class _Names:
    """Which photograph of several that differ by their ending ``photo.xmp`` belongs to."""

    def __init__(self):
        self._endings = picture_endings()
        self._folders: dict[Path, dict[str, list[str]]] = {}

    def short(self, photo: Path) -> Path | None:
        """The name; None where it is another's: of the only raw file among them, or not known whose."""
        pictures = self._listed(photo.parent).get(photo.stem, [photo.name])
        raw = [name for name in pictures if Path(name).suffix.lower() in RAW]
        owner = pictures if len(pictures) == 1 else raw if len(raw) == 1 else []
        return photo.with_suffix(".xmp") if photo.name in owner else None

    def _listed(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._folders:
            names: dict[str, list[str]] = {}
            for path in folder.iterdir():
                if path.suffix.lower() in self._endings:
                    names.setdefault(path.stem, []).append(path.name)
            self._folders[folder] = names
        return self._folders[folder]
