"""Records: what is known of each picture of a collection before it is decoded."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from spp_jax.data.decoding import Photo, UnreadableError, photo_name, photo_size

__all__ = ["FOLDS", "SPLITS", "Records", "photo_records", "split_records"]

FOLDS = 5
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Records:
    """A collection of pictures, in a fixed order.

    Attributes:
        ids: a unique name of each.
        sizes: int64 ``[n, 2]``, height and width in pixels, EXIF orientation applied.
        photo: gives picture ``i`` in a form that :func:`spp_jax.data.decoding.decode` takes.
        scores: float32 ``[n]`` in [0, 1], NaN where there is no label.
        groups: pictures of one group (one source, one scene) are never on both sides of a split.
    """

    ids: tuple[str, ...]
    sizes: np.ndarray
    photo: Callable[[int], Photo]
    scores: np.ndarray
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Records":
        """The records at these places, in this order."""
        places = np.asarray(indices, np.int64)
        return Records(
            ids=tuple(self.ids[i] for i in places),
            sizes=self.sizes[places],
            photo=lambda i: self.photo(int(places[i])),
            scores=self.scores[places],
            groups=tuple(self.groups[i] for i in places),
        )

    def at_least(self, smallest: tuple[int, int]) -> tuple["Records", list[str]]:
        """The records of at least this (height, width), and the ids of the others."""
        large = (self.sizes >= np.asarray(smallest)).all(axis=1)
        return self.take(np.flatnonzero(large)), [self.ids[i] for i in np.flatnonzero(~large)]

    def digest(self) -> str:
        """A name for this very collection: it differs when an id, a size or a label does."""
        digest = hashlib.sha256("\0".join(self.ids).encode())
        digest.update(self.sizes.astype("<i8").tobytes() + self.scores.astype("<f4").tobytes())
        return digest.hexdigest()[:16]


def split_records(records: Records, split: str, fold: int) -> Records:
    """One part of the collection, cut by group: :data:`FOLDS` test parts, each group in exactly one.

    Of the groups that a fold does not test, those at every eighth place are for validation and the
    others for training. The order in which groups are dealt out is a fixed shuffle of their names.

    Args:
        records: the whole collection.
        split: one of :data:`SPLITS`.
        fold: 0 to ``FOLDS - 1``.

    Raises:
        ValueError: there is no such split or fold, or too few groups to have it.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; known are {', '.join(SPLITS)}")
    if not 0 <= fold < FOLDS:
        raise ValueError(f"fold {fold} is unknown; they are numbered 0 to {FOLDS - 1}")
    names = sorted(set(records.groups), key=lambda name: hashlib.sha256(name.encode()).digest())
    test = names[fold::FOLDS]
    others = [name for name in names if name not in test]
    validation = others[fold % 8 :: 8]
    chosen = {
        "test": set(test),
        "validation": set(validation),
        "train": set(others) - set(validation),
    }[split]
    places = [i for i, group in enumerate(records.groups) if group in chosen]
    if not places:
        raise ValueError(
            f"fold {fold} leaves no picture for {split}: {len(names)} groups are too few to split"
        )
    return records.take(places)


def photo_records(photos: Iterable[Photo], smallest: tuple[int, int]) -> tuple[Records, np.ndarray, dict]:
    """Records of loose photographs without labels, their sizes read from their headers.

    Args:
        photos: files, bytes, pictures or pixels.
        smallest: (height, width) below which a photograph is refused.

    Returns:
        ``(records, places, skipped)``: the readable ones, the place of each among ``photos``, and
        the reason, by place, for each of the others.
    """
    kept: list[Photo] = []
    places, ids, sizes = [], [], []
    skipped: dict[int, str] = {}
    for place, photo in enumerate(photos):
        try:
            size = photo_size(photo)
            if size[0] < smallest[0] or size[1] < smallest[1]:
                raise UnreadableError(
                    f"is {size[0]} pixels high and {size[1]} wide, smaller than the model takes: at "
                    f"least {smallest[0]} high and {smallest[1]} wide"
                )
        except UnreadableError as error:
            skipped[place] = str(error)
            continue
        kept.append(photo)
        places.append(place)
        ids.append(photo_name(photo, place))
        sizes.append(size)
    records = Records(
        ids=tuple(ids),
        sizes=np.asarray(sizes, np.int64).reshape(-1, 2),
        photo=lambda i: kept[i],
        scores=np.full(len(ids), np.nan, np.float32),
        groups=tuple(ids),
    )
    return records, np.asarray(places, np.int64), skipped
