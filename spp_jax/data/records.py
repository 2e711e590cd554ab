"""Records: what is known of each picture of a collection before it is decoded."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from spp_jax.config import ANY_SIZE, Decoding
from spp_jax.data.decoding import Photo, UnreadableError, decode, photo_name, photo_size

__all__ = ["PROTOCOLS", "SPLITS", "Records", "photo_records", "split_records"]

PROTOCOLS = {"folds": 5, "random": 10, "official": 1}
"""Ways to split a collection, and how many numbered splits each has."""
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Records:
    """A collection of pictures, in a fixed order.

    Attributes:
        ids: a unique name of each.
        sizes: int64 ``[n, 2]``, height and width in pixels as ``decoding`` will give them; 0 where it is
            known that it will not.
        photo: gives picture ``i`` in a form that :func:`spp_jax.data.decoding.decode` takes.
        scores: float32 ``[n]`` in [0, 1], NaN where there is no label.
        good: bool ``[n]``: what the source calls a good picture; most often a score of at least 0.5.
        groups: pictures of one group (one source, one scene) are never on both sides of a split.
        splits: the part of the official split that each picture belongs to, one of :data:`SPLITS`; empty
            where there is none.
        histograms: float32 ``[n, k]``, the share of votes for each of k marks, worst first; None where
            the source has no votes.
        marks: the score that each of the k marks stands for; empty where there are no votes.
        decoding: how pictures become pixels.
    """

    ids: tuple[str, ...]
    sizes: np.ndarray
    photo: Callable[[int], Photo]
    scores: np.ndarray
    good: np.ndarray
    groups: tuple[str, ...]
    splits: tuple[str, ...] = ()
    histograms: np.ndarray | None = None
    marks: tuple[float, ...] = ()
    decoding: Decoding = Decoding()  # noqa: RUF009  # frozen

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
            good=self.good[places],
            groups=tuple(self.groups[i] for i in places),
            splits=tuple(self.splits[i] for i in places) if self.splits else (),
            histograms=None if self.histograms is None else self.histograms[places],
            marks=self.marks,
            decoding=self.decoding,
        )

    def usable(self, smallest: tuple[int, int], unread: dict[str, str]) -> tuple["Records", dict[str, str]]:
        """The records of at least this (height, width), and by id why each of the others is left out.

        Args:
            smallest: in pixels.
            unread: the reason for each that cannot be read, by id.
        """
        large = (self.sizes >= np.asarray(smallest)).all(axis=1)
        too_small = f"is smaller than {smallest[0]}x{smallest[1]} pixels (height x width)"
        dropped = {self.ids[i]: unread.get(self.ids[i], too_small) for i in np.flatnonzero(~large)}
        return self.take(np.flatnonzero(large)), dropped

    @property
    def nbytes(self) -> int:
        """What all pictures take, decoded."""
        return 3 * int(self.sizes.prod(axis=1).sum())

    def decoded_once(self) -> "Records":
        """The same records, each picture kept as pixels from when it is first asked for.

        One that cannot be read raises :exc:`~spp_jax.data.decoding.UnreadableError` each time.
        """
        pixels: dict[int, np.ndarray] = {}

        def photo(i: int) -> np.ndarray:
            if i not in pixels:  # two threads that ask at once both decode it
                recorded = tuple(self.sizes[i].tolist())
                pixels[i] = decode(self.photo(i), self.decoding, recorded=recorded)
            return pixels[i]

        # Any size: what a picture became may have more pixels than the picture itself was allowed.
        return dataclasses.replace(self, photo=photo, decoding=ANY_SIZE)

    def digest(self) -> str:
        """A name for this very collection: it differs when an id, a size or a label does."""
        digest = hashlib.sha256("\0".join(self.ids).encode())
        digest.update(self.sizes.astype("<i8").tobytes() + self.scores.astype("<f4").tobytes())
        digest.update(self.good.tobytes())
        return digest.hexdigest()[:16]


def split_records(records: Records, split: str, protocol: str, number: int) -> Records:
    """One part of the collection, cut by group where the protocol cuts.

    Protocols:
        folds: five test parts, each group in exactly one; of the other groups, those at every eighth place
            are for validation.
        random: ten splits of the groups, 80 % for training, 10 % each for validation and test, drawn anew
            for each number: the habit of the field, whose papers report the median of ten.
        official: as the source cuts it. Where it names no validation part, every tenth group of its
            training part is that.

    Args:
        records: the whole collection.
        split: one of :data:`SPLITS`.
        protocol: one of :data:`PROTOCOLS`.
        number: from 0, below the protocol's number of splits.

    Raises:
        ValueError: there is no such split, protocol or number, or too few groups to have it.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; known are {', '.join(SPLITS)}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; known are {', '.join(PROTOCOLS)}")
    if not 0 <= number < PROTOCOLS[protocol]:
        raise ValueError(f"fold {number} is unknown: {protocol} numbers them 0 to {PROTOCOLS[protocol] - 1}")
    if protocol == "official" and not records.splits:
        raise ValueError(
            "there is no official split of this data set, or its file is missing: --protocol folds or random"
        )
    parts = _official(records) if protocol == "official" else _by_group(records, protocol, number)
    places = [i for i, part in enumerate(parts) if part == split]
    if not places:
        raise ValueError(
            f"{protocol}, fold {number}, leaves no picture for {split}: {len(set(records.groups))} groups "
            "are too few to split"
        )
    return records.take(places)


def _by_group(records: Records, protocol: str, number: int) -> list[str]:
    # The order in which groups are dealt out is a fixed shuffle of their names.
    names = sorted(set(records.groups), key=lambda name: hashlib.sha256(name.encode()).digest())
    if protocol == "folds":
        test = names[number :: PROTOCOLS["folds"]]
        dealt = set(test)
        others = [name for name in names if name not in dealt]
        validation = others[number % max(1, min(8, len(others))) :: 8]
    else:
        names = [names[i] for i in np.random.default_rng(number).permutation(len(names))]
        tenth = math.ceil(len(names) / 10)
        test, validation = names[:tenth], names[tenth : 2 * tenth]
    part = dict.fromkeys(test, "test") | dict.fromkeys(validation, "validation")
    return [part.get(group, "train") for group in records.groups]


def _official(records: Records) -> list[str]:
    parts = list(records.splits)
    if "validation" not in parts:
        train = {group for group, part in zip(records.groups, parts, strict=True) if part == "train"}
        names = sorted(train, key=lambda name: hashlib.sha256(name.encode()).digest())
        held = set(names[::10])
        parts = [
            "validation" if part == "train" and group in held else part
            for group, part in zip(records.groups, parts, strict=True)
        ]
    return parts


def photo_records(
    photos: Iterable[Photo], smallest: tuple[int, int], decoding: Decoding
) -> tuple[Records, np.ndarray, dict]:
    """Records of loose photographs without labels, their sizes read from their headers.

    Args:
        photos: files, bytes, pictures or pixels.
        smallest: (height, width) below which a photograph is refused.
        decoding: how they become pixels.

    Returns:
        ``(records, places, skipped)``: the readable ones, the place of each among ``photos``, and
        the reason, by place, for each of the others.
    """
    kept: list[Photo] = []
    places, ids, sizes = [], [], []
    skipped: dict[int, str] = {}
    for place, photo in enumerate(photos):
        try:
            size = photo_size(photo, decoding)
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
        good=np.zeros(len(ids), bool),
        groups=tuple(ids),
        decoding=decoding,
    )
    return records, np.asarray(places, np.int64), skipped
