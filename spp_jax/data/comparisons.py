"""What people preferred of two pictures, or of two crops of one: tables of it, and records that hold it.

A crop is a picture of its own. A box is ``(x, y, width, height)`` in pixels of the upright photograph.
"""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from spp_jax.config import Decoding
from spp_jax.data.decoding import Photo, decode
from spp_jax.data.records import Pairs, Records
from spp_jax.data.tables import file_name, split_table, text_of
from spp_jax.errors import UsageError
from spp_jax.names import printable

__all__ = ["Box", "Comparison", "crop", "read_comparisons", "with_pairs"]

Box: TypeAlias = tuple[int, int, int, int]

_FILES = (("better", "worse"), ("file0", "file1"))
_VOTES = ("votes0", "votes1")
_BOXES = tuple(tuple(f"{side}{which}" for side in "xywh") for which in (0, 1))


class Comparison(NamedTuple):
    """Two pictures, and whom people preferred.

    Attributes:
        where: what to call it in messages.
        photos: ids of the photographs.
        boxes: which part of each was shown; None: the whole.
        share: of the votes for the first.
    """

    where: str
    photos: tuple[str, str]
    boxes: tuple[Box | None, Box | None]
    share: float


def read_comparisons(path: Path, *, outside_files: bool = False) -> list[Comparison]:
    """A table of comparisons, of one of these columns, written as that of a folder's scores may be.

    ``better,worse``: two files a line. ``file0,file1,votes0,votes1``: with the number of votes for each.
    ``file,x0,y0,w0,h0,x1,y1,w1,h1,votes0,votes1``: two crops of one file. Further columns are left alone,
    and lines of no votes left out.

    Args:
        path: a CSV file, UTF-8.
        outside_files: whether files may have absolute names, or such with ``..``.

    Raises:
        UsageError: names the line and what is wrong with it.
    """
    crops = ("file", *_BOXES[0], *_BOXES[1], *_VOTES)
    forms = (_FILES[0], (*_FILES[1], *_VOTES), crops)
    text = text_of(path)
    try:
        heading, lines, _ = split_table(text, *forms)
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read as a CSV file: {error}") from None
    form = next((form for form in forms if all(heading.count(name) == 1 for name in form)), None)
    if form is None:
        raise UsageError(
            f"{path}, line 1: its columns are none of {'; '.join(','.join(form) for form in forms)}"
        )
    found = []
    for number, cells in lines:
        where = f"{path}, line {number}"
        if len(cells) != len(heading):
            raise UsageError(f"{where}: other fields than the heading's {len(heading)}")
        row = {name: cell for name, cell in zip(heading, cells, strict=True) if name in form}
        comparison = _comparison(where, row, outside_files)
        if not np.isnan(comparison.share):
            found.append(comparison)
    if not found:
        raise UsageError(f"{path} compares nothing")
    return found


def _comparison(where: str, row: dict[str, str], outside_files: bool) -> Comparison:
    def number(name: str) -> int:
        if not row[name].strip().isdecimal():
            raise UsageError(f"{where}: {name} is {printable(row[name])!r}, no whole number of at least 0")
        return int(row[name])

    columns = next((pair for pair in _FILES if pair[0] in row), ("file", "file"))
    first, second = (file_name(where, row[name], outside_files) for name in columns)
    first_box, second_box = (
        (number(x), number(y), number(w), number(h)) if x in row else None for x, y, w, h in _BOXES
    )
    votes = [number(name) for name in _VOTES] if _VOTES[0] in row else [1, 0]
    share = votes[0] / sum(votes) if sum(votes) else np.nan
    if (first, first_box) == (second, second_box):
        raise UsageError(f"{where}: a picture is compared with itself")
    return Comparison(where, (first, second), (first_box, second_box), share)


def with_pairs(
    records: Records, raw: np.ndarray, comparisons: Iterable[Comparison], unread: dict[str, str]
) -> tuple[Records, dict[str, str]]:
    """The records of all pictures that are compared, crops being pictures, and of all that have a label.

    A crop has its photograph's group, split and category, and no other label than what it is preferred to.

    Args:
        records: photographs.
        raw: int ``[n, 2]``, their sizes before any scaling; 0 where one cannot be read.
        comparisons: of these, by their ids.
        unread: the reason, by id, for each that cannot be read.

    Returns:
        The records, ordered by photograph and box, and the reasons by their ids.

    Raises:
        UsageError: a photograph is not among them, or a box is not inside its own.
    """
    at = {name: i for i, name in enumerate(records.ids)}
    compared = [_parts(comparison, at, raw) for comparison in comparisons]
    labels = [records.scores, *records.labels.values()]
    has = [~np.isnan(values).all(axis=tuple(range(1, values.ndim))) for values in labels]
    whole = [(int(i), None) for i in np.flatnonzero(np.any(has, axis=0))]
    compared_parts = (part for parts in compared for part in parts[:2])
    order = sorted({*whole, *compared_parts}, key=lambda part: (part[0], part[1] or ()))
    row = {part: i for i, part in enumerate(order)}
    places, boxes = [place for place, _ in order], [box for _, box in order]
    cut = np.array([box is not None for box in boxes], bool)
    taken = records.take(places)
    sizes = taken.sizes.copy()
    for i, box in enumerate(boxes):
        if box is not None and raw[places[i]].all():
            sizes[i] = records.decoding.scaled(box[3:1:-1])

    def photo(i: int) -> Photo:
        box, whole = boxes[i], taken.photo(i)
        return whole if box is None else crop(whole, box, records.decoding)

    def lacking(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[cut] = np.nan if np.issubdtype(values.dtype, np.floating) else 0
        return values

    ids = tuple(
        name if box is None else f"{name}@{','.join(map(str, box))}"
        for name, box in zip(taken.ids, boxes, strict=True)
    )
    reasons = {name: unread[of] for name, of in zip(ids, taken.ids, strict=True) if of in unread}
    kept = dataclasses.replace(
        taken,
        ids=ids,
        sizes=sizes,
        photo=photo,
        scores=lacking(taken.scores),
        good=lacking(taken.good),
        labels={name: lacking(values) for name, values in taken.labels.items()},
        pairs=Pairs(
            np.array([(row[one], row[other]) for one, other, _ in compared], np.int64).reshape(-1, 2),
            np.array([share for *_, share in compared], np.float32),
        ),
    )
    return kept, reasons


def _parts(
    comparison: Comparison, at: dict[str, int], raw: np.ndarray
) -> tuple[tuple[int, Box | None], tuple[int, Box | None], float]:
    parts = []
    for name, box in zip(comparison.photos, comparison.boxes, strict=True):
        if name not in at:
            raise UsageError(f"{comparison.where}: {printable(name)} is no photograph of this data set")
        height, width = raw[at[name]].tolist()
        if box is not None and height:
            x, y, w, h = box
            if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
                raise UsageError(
                    f"{comparison.where}: the crop {x},{y},{w},{h} (x, y, width, height) is not inside "
                    f"{printable(name)}, which is {width} wide and {height} high"
                )
        parts.append((at[name], box))
    return parts[0], parts[1], comparison.share


def crop(photo: Photo, box: Sequence[int], decoding: Decoding) -> np.ndarray:
    """The pixels of a part of a photograph, uint8 ``[height, width, 3]``, not scaled.

    Args:
        photo: the whole.
        box: which part.
        decoding: how the whole becomes pixels, but for their number.

    Raises:
        UnreadableError: the photograph gives no pixels.
    """
    x, y, w, h = box
    whole = dataclasses.replace(decoding, max_pixels=None, input="full")
    return np.ascontiguousarray(decode(photo, whole)[y : y + h, x : x + w])
