"""What is known of each photograph of a collection: its score, its place among the others, its series.

Records in, records out; nothing is read from a disk here.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spp_jax.scoring.series import reason_of, series_of

__all__ = ["Entry", "best_first", "in_series", "ranked"]


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One photograph of a collection.

    Attributes:
        place: in what was given, from 0.
        path: of the file.
        name: relative to the folder that was given, with slashes; of a file that was given, its own.
        scores: float32 ``[outputs]``, in [0, 1]; NaN where it was skipped.
        reason: why it was skipped; empty where it was not.
        rank: 1 is the best; equal scores share one; None where it was skipped, or before :func:`ranked`.
        percentile: how many of a hundred photographs that have a score are not better, itself among them:
            100 is the best; None as for the rank.
        height: pixels, upright, as :func:`spp_jax.data.photo_size` has it (of raw files, half the sensor's);
            None where it could not be read.
        width: as the height.
        taken: when, in ISO 8601, with fractions and offset where the camera wrote them, such as
            ``2024-05-01T12:00:00.25+02:00``; None where the file does not say.
        camera: maker, model and serial number as the file has them; empty where it has none.
        bytes: the file's length.
        look: perceptual hash, 16 hexadecimal digits; empty where it was not asked for, or there is none.
        rating: of 1 to 5, or -1 (rejected), that somebody wrote into the file itself; None: there is none.
        series: number of its series, from 1; None where it is alone, or before :func:`in_series`.
        pick: the best of its series; of one that is alone, true; of one that was skipped, false.
        why: of the pick of a series, why it is, such as ``best of 4 taken within 2 s: 0.71 against 0.66``.
    """

    place: int
    path: Path
    name: str
    scores: np.ndarray
    reason: str = ""
    rank: int | None = None
    percentile: float | None = None
    height: int | None = None
    width: int | None = None
    taken: str | None = None
    camera: str = ""
    bytes: int = 0
    look: str = ""
    rating: int | None = None
    series: int | None = None
    pick: bool = False
    why: str = ""


def ranked(entries: Sequence[Entry], by: int = 0) -> list[Entry]:
    """The same, in their order, with rank and percentile.

    Args:
        entries: of a collection; those without a score get no rank.
        by: the output of the judge that counts.

    Example:
        >>> two = [Entry(i, Path("x"), "x", np.array([s], np.float32)) for i, s in enumerate([0.2, 0.7])]
        >>> [(entry.place, entry.rank, entry.percentile) for entry in ranked(two)]
        [(0, 2, 50.0), (1, 1, 100.0)]
    """
    scores = _column(entries, by)
    order = np.sort(scores[~np.isnan(scores)])
    not_better = np.searchsorted(order, scores, side="right")
    found = []
    for entry, score, count in zip(entries, scores, not_better.tolist(), strict=True):
        if np.isnan(score):
            found.append(dataclasses.replace(entry, rank=None, percentile=None))
        else:
            share = 100 * count / len(order)
            found.append(dataclasses.replace(entry, rank=len(order) - count + 1, percentile=share))
    return found


def in_series(
    entries: Sequence[Entry], seconds: float = 2.0, by: int = 0, *, look_alikes: bool = True
) -> list[Entry]:
    """The same, in their order, each with its series, and one pick a series.

    Of one series are those that one camera took at most so many seconds after one another, and those that
    look alike. The pick has the highest score; of equals it is the one of most pixels, then the first.

    Args:
        entries: of a collection; those without a score are in no series.
        seconds: between two photographs of a burst; negative: there are no bursts.
        by: the output of the judge that counts.
        look_alikes: those whose ``look`` differs in at most 6 of 64 bits are of one series.
    """
    scores = _column(entries, by)
    good = np.flatnonzero(~np.isnan(scores)).tolist()
    found = series_of(
        [entries[i].taken for i in good],
        [entries[i].camera for i in good],
        [entries[i].look if look_alikes else "" for i in good],
        seconds,
    )
    result = [dataclasses.replace(e, series=None, pick=False, why="") for e in entries]
    for i in good:
        result[i] = dataclasses.replace(result[i], pick=True)
    for number, series in enumerate(found, 1):
        members = [good[i] for i in series.members]
        worth = {i: (scores[i], (entries[i].height or 0) * (entries[i].width or 0), -i) for i in members}
        best, second = sorted(members, key=worth.__getitem__, reverse=True)[:2]
        for i in members:
            result[i] = dataclasses.replace(result[i], series=number, pick=i == best)
        why = reason_of(series, float(scores[best]), float(scores[second]))
        result[best] = dataclasses.replace(result[best], why=why)
    return result


def best_first(entries: Sequence[Entry]) -> list[Entry]:
    """Ranked entries by rank, equals in their order; those that were skipped come last."""
    return sorted(entries, key=lambda entry: (entry.rank is None, entry.rank or 0))


def _column(entries: Sequence[Entry], by: int) -> np.ndarray:
    """The scores that count, float32 ``[n]``, NaN where there is none."""
    column = [np.nan if entry.reason else entry.scores[by] for entry in entries]
    return np.array(column, np.float32)
