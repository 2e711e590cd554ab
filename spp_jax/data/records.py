"""Records: what is known of each picture of a collection before it is decoded."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from spp_jax.config import ANY_SIZE, Decoding
from spp_jax.data.decoding import Photo, UnreadableError, decode, photo_name, photo_size
from spp_jax.metrics import Agreement, agreement

__all__ = ["PROTOCOLS", "SPLITS", "Pairs", "Records", "join_records", "photo_records", "split_records"]

PROTOCOLS = {"folds": 5, "random": 10, "official": 1}
"""Ways to split a collection, and how many numbered splits each has."""
SPLITS = ("train", "validation", "test")


class Pairs(NamedTuple):
    """Which of two pictures people preferred.

    Attributes:
        rows: int64 ``[m, 2]``, indices of two different records.
        shares: float32 ``[m]``, of the votes for the first of them.
    """

    rows: np.ndarray
    shares: np.ndarray


@dataclasses.dataclass(frozen=True)
class Records:
    """A collection of pictures, in a fixed order.

    Attributes:
        ids: a unique name of each.
        sizes: int64 ``[n, 2]``, height and width in pixels as ``decoding`` will give them; 0 where it is
            known that it will not.
        photo: gives picture ``i`` in a form that :func:`spp_jax.data.decoding.decode` takes.
        scores: float32 ``[n]`` in [0, 1], or ``[n, k]`` of k attributes; NaN where people did not say.
        good: bool, shaped like the scores: what the source calls a good picture; most often a score of at
            least 0.5; False where there is no score.
        groups: pictures of one group (one source, one scene) are never on both sides of a split.
        splits: the part of the official split that each picture belongs to, one of :data:`SPLITS`; empty
            where there is none.
        labels: by name, whatever else a loss may need of each picture, ``[n, ...]``, of any shape, float
            ones NaN where lacking. ``votes`` is the share of votes for each of k marks, worst first.
        marks: the score that each of the k marks stands for; empty where there are no votes.
        decoding: how pictures become pixels.
        categories: the kind of each picture, by which figures are given too; empty where there are none.
        attributes: what the scores are of, a name a column.
        pairs: which of two pictures people preferred; None where they were not asked.
    """

    ids: tuple[str, ...]
    sizes: np.ndarray
    photo: Callable[[int], Photo]
    scores: np.ndarray
    good: np.ndarray
    groups: tuple[str, ...]
    splits: tuple[str, ...] = ()
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    marks: tuple[float, ...] = ()
    decoding: Decoding = Decoding()  # noqa: RUF009  # frozen
    categories: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ("score",)
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Records":
        """The records at these places, in this order; a pair stays where both of it do."""
        places = np.asarray(indices, np.int64)
        pairs = self.pairs
        if pairs is not None:
            now_at = np.full(len(self), -1)
            now_at[places] = np.arange(len(places))
            rows = now_at[pairs.rows]
            stay = (rows >= 0).all(axis=1)
            pairs = Pairs(rows[stay], pairs.shares[stay])
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[i] for i in places),
            sizes=self.sizes[places],
            photo=lambda i: self.photo(int(places[i])),
            scores=self.scores[places],
            good=self.good[places],
            groups=tuple(self.groups[i] for i in places),
            splits=tuple(self.splits[i] for i in places) if self.splits else (),
            labels={name: values[places] for name, values in self.labels.items()},
            categories=tuple(self.categories[i] for i in places) if self.categories else (),
            pairs=pairs,
        )

    def judged_by(self, names: Sequence[str]) -> "Records":
        """The records whose scores are of these attributes, a column each where there are several.

        Args:
            names: of :attr:`attributes` or of :attr:`labels` with one number a picture; ``score`` is the
                data set's own. Empty: the records as they are.

        Raises:
            ValueError: there is no such label, it is named twice, or a picture's is not in 0 to 1.
        """
        if not names:
            return self
        known = {name: (values, values >= 0.5) for name, values in self.labels.items() if values.ndim == 1}
        shape = (len(self), len(self.attributes))
        own = zip(*(array.reshape(shape).T for array in (self.scores, self.good)), strict=True)
        known |= dict(zip(self.attributes, own, strict=True))
        known.setdefault("score", known[self.attributes[0]])
        for name in names:
            if name not in known or names.count(name) > 1:
                raise ValueError(
                    f"label {name!r} is unknown or named twice; there are {', '.join(known)}, and a column "
                    "that holds anything but numbers is none"
                )
            values, _ = known[name]
            for i in np.flatnonzero((values < 0) | (values > 1))[:1]:
                raise ValueError(
                    f"the {name} of {self.ids[i]} is {values[i]:g}, not in 0 to 1: scale the column to that"
                )
        scores, good = (
            np.stack(columns, axis=1) for columns in zip(*(known[name] for name in names), strict=True)
        )
        if len(names) == 1:
            scores, good = scores[:, 0], good[:, 0]
        return dataclasses.replace(
            self,
            scores=scores.astype(np.float32),
            good=good,
            attributes=tuple(names),
            labels={name: values for name, values in self.labels.items() if name not in names},
        )

    def labelled(self, needs: Sequence[str]) -> "Records":
        """The records that have any of the labels that a loss needs, with those labels alone.

        Args:
            needs: ``score``, ``pairs`` or names of :attr:`labels`.

        Raises:
            ValueError: the records have no such label.
        """
        has = np.zeros(len(self), bool)
        for name in needs:
            if name == "pairs":
                if self.pairs is None:
                    raise ValueError("needs pairs of pictures, which this data set has not")
                has[self.pairs.rows.ravel()] = True
                continue
            if name != "score" and name not in self.labels:
                raise ValueError(
                    f"needs the label {name!r}; this data set has {', '.join(self.labels) or 'none'}"
                )
            values = self.scores if name == "score" else self.labels[name]
            known = (
                ~np.isnan(values) if np.issubdtype(values.dtype, np.floating) else np.ones(values.shape, bool)
            )
            has |= known.any(axis=tuple(range(1, known.ndim)))
        if not has.any():
            raise ValueError(
                f"needs {', '.join(needs)}, which no picture has; there are labels {', '.join(self.labels)}"
            )
        kept = dataclasses.replace(
            self,
            labels={name: values for name, values in self.labels.items() if name in needs},
            marks=self.marks if "votes" in needs else (),
            pairs=self.pairs if "pairs" in needs else None,
        )
        return kept if has.all() else kept.take(np.flatnonzero(has))

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

    def agreement(self, scores: np.ndarray) -> Agreement:
        """How well scores agree with the labels: by attribute and category, and with the pairs.

        Args:
            scores: float, shaped like :attr:`scores`; NaN where a picture could not be read.

        Raises:
            ValueError: they have another shape, or nothing was scored that has a label.
        """
        return agreement(
            scores,
            self.scores,
            self.good,
            attributes=self.attributes,
            categories=self.categories,
            pairs=self.pairs,
        )

    @property
    def pair_rows(self) -> np.ndarray | None:
        """Int ``[m, 2]``, the two records of each pair; None where there are no pairs."""
        return None if self.pairs is None else self.pairs.rows

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
        """A name for this very collection: it differs when an id, a size or any label does.

        Where there is but one score a picture, it is that of earlier versions.
        """
        digest = hashlib.sha256("\0".join(self.ids).encode())
        digest.update(self.sizes.astype("<i8").tobytes() + self.scores.astype("<f4").tobytes())
        digest.update(self.good.tobytes())
        if self.marks:
            digest.update(repr(self.marks).encode())
        if self.scores.ndim > 1:
            digest.update(repr(self.attributes).encode())
        for name in sorted(self.labels):
            values = np.ascontiguousarray(self.labels[name])
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode() + values.tobytes())
        if self.pairs is not None:
            digest.update(self.pairs.rows.astype("<i8").tobytes() + self.pairs.shares.astype("<f4").tobytes())
        return digest.hexdigest()[:16]


def join_records(parts: Mapping[str, Records]) -> Records:
    """Several collections as one, whose pictures lack the labels that only others have.

    Ids, groups and categories begin with the name of their collection. An attribute or label of one name is
    one label, so that collections of quality and of beauty train a network of two outputs.

    Args:
        parts: by name; alike in decoding, and in shape of each label that they share.

    Raises:
        ValueError: they differ where they must not, or there are none.

    Example:
        >>> from spp_jax.data.records import join_records
        >>> both = join_records({"biq2021": quality, "oasis": beauty})  # doctest: +SKIP
        >>> both.attributes  # doctest: +SKIP
        ('quality', 'beauty')
    """
    if len({(part.decoding, part.marks) for part in parts.values()}) != 1:
        raise ValueError("collections to join must have one decoding and the same marks of votes")
    every = list(parts.items())
    starts = np.cumsum([0, *(len(part) for part in parts.values())])
    attributes = tuple(dict.fromkeys(name for part in parts.values() for name in part.attributes))

    def photo(i: int) -> Photo:
        place = int(np.searchsorted(starts, i, side="right")) - 1
        return every[place][1].photo(int(i - starts[place]))

    def named(values: Callable[[Records], tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(f"{name}/{value}" for name, part in every for value in values(part))

    def column(name: str, of: Callable[[Records], Mapping[str, np.ndarray]], empty: Any) -> np.ndarray:
        like = next(of(part)[name] for part in parts.values() if name in of(part))
        columns = [
            of(part).get(name, np.full((len(part), *like.shape[1:]), empty)) for part in parts.values()
        ]
        return np.concatenate(columns).astype(like.dtype)

    def attribute(values: np.ndarray, part: Records) -> dict[str, np.ndarray]:
        return dict(zip(part.attributes, values.reshape(len(part), len(part.attributes)).T, strict=True))

    scores = np.stack([column(n, lambda p: attribute(p.scores, p), np.nan) for n in attributes], axis=1)
    good = np.stack([column(n, lambda p: attribute(p.good, p), False) for n in attributes], axis=1)
    given = [
        (part.pairs, start) for part, start in zip(parts.values(), starts[:-1], strict=True) if part.pairs
    ]
    labels = dict.fromkeys(name for part in parts.values() for name in part.labels)
    return Records(
        ids=named(lambda part: part.ids),
        sizes=np.concatenate([part.sizes for part in parts.values()]),
        photo=photo,
        scores=scores[:, 0] if len(attributes) == 1 else scores,
        good=good[:, 0] if len(attributes) == 1 else good,
        groups=named(lambda part: part.groups),
        splits=sum((part.splits for part in parts.values()), ())
        if all(p.splits for p in parts.values())
        else (),
        labels={name: column(name, lambda part: part.labels, np.nan) for name in labels},
        marks=every[0][1].marks,
        decoding=every[0][1].decoding,
        categories=tuple(
            f"{name}/{kind}".rstrip("/")
            for name, part in every
            for kind in part.categories or [""] * len(part)
        ),
        attributes=attributes,
        pairs=Pairs(
            np.concatenate([pairs.rows + start for pairs, start in given]),
            np.concatenate([pairs.shares for pairs, _ in given]),
        )
        if given
        else None,
    )


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
