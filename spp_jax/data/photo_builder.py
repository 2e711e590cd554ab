"""What all TFDS builders here share: one schema, sizes from headers, a name that changes with the content.

A picture that cannot be read stays in the data set with size 0, so that every run can name it. Needs no
TensorFlow.
"""

import abc
import csv
import hashlib
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from spp_jax.config import ANY_SIZE
from spp_jax.data.decoding import UnreadableError, photo_size
from spp_jax.errors import UsageError

__all__ = [
    "Example",
    "MissingFilesError",
    "PhotoBuilder",
    "find",
    "part_of_scale",
    "read_mat",
    "read_rows",
    "read_text",
]

_MOST_MISSING = 0.01  # of a download's pictures: more is a partial download and not some lost pictures


class MissingFilesError(UsageError):
    """Files that must be downloaded by hand are not there; the message names them and their place."""


class Example(NamedTuple):
    """One labelled picture.

    Attributes:
        id: its unique name.
        photo: where it is, or its encoded bytes.
        score: 0 to 1.
        good: what the source calls good.
        group: pictures of one group are never on both sides of a split.
        split: train, validation or test, where the source has an official split.
        votes: for each mark, worst first, where the source has them.
        category: what kind of picture it is, where the source says: figures are given for each.
        labels: what else people said of it, in the order of :attr:`PhotoBuilder.LABELS`.
        pairs: crops of it that people compared: x, y, width, height of one and of the other, in pixels, and
            the votes for each.
    """

    id: str
    photo: Path | bytes
    score: float
    good: bool
    group: str
    split: str = ""
    votes: tuple[float, ...] = ()
    category: str = ""
    labels: tuple[float, ...] = ()
    pairs: tuple[tuple[int, ...], ...] = ()


class PhotoBuilder(tfds.core.GeneratorBasedBuilder):
    """A data set of our schema, from what :meth:`examples` finds.

    Attributes:
        NEEDS: what the user must download by hand, and from where; empty where nothing.
        SCORE: what the score is of, a word.
        MARKS: the score that each mark stands for, worst first; empty where the source has no votes.
        LABELS: names of what else people said of each picture, 0 to 1; NaN where they did not.
        CATEGORIES: whether the source has kinds of pictures.
        PAIRS: whether people compared crops of each.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    NEEDS: ClassVar[str] = ""
    SCORE: ClassVar[str] = "quality"
    MARKS: ClassVar[tuple[float, ...]] = ()
    LABELS: ClassVar[tuple[str, ...]] = ()
    CATEGORIES: ClassVar[bool] = False
    PAIRS: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def examples(cls, folder: Path) -> Iterable[Example]:
        """All pictures, in a fixed order.

        Args:
            folder: where the user put the download.

        Raises:
            MissingFilesError: it is not there, or not all of it.
            UsageError: an annotation file is not what it should be.
        """

    @classmethod
    def content_key(cls, folder: Path) -> str:
        """A digest of all that decides the data: labels, and name, length and date of every picture.

        A data set prepared under another key is another one; TFDS itself would go on serving the old.

        Raises:
            MissingFilesError: see :meth:`examples`; or more than a hundredth of the pictures are missing.
        """
        digest, missing, count = hashlib.sha256(), [], 0
        for example in cls.examples(folder):
            count += 1
            digest.update(repr(example._replace(photo=b"")).encode())
            assert isinstance(example.photo, Path)
            try:
                about = example.photo.stat()
                digest.update(f"{about.st_size} {about.st_mtime_ns}".encode())
            except OSError:
                missing.append(str(example.photo.relative_to(folder)))
        if not count:
            raise UsageError(f"the annotation files in {folder} name no picture: they are empty or cut short")
        if len(missing) > _MOST_MISSING * count:
            raise MissingFilesError(
                f"{len(missing)} of {count} pictures are missing in {folder}, such as "
                f"{', '.join(missing[:3])}: complete the download"
            )
        return digest.hexdigest()[:12]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "group": tfds.features.Text(),
            "split": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "height": np.int32,
            "width": np.int32,
            "score": np.float32,
            "good": np.bool_,
        }
        if self.MARKS:
            features["votes"] = tfds.features.Tensor(shape=(len(self.MARKS),), dtype=np.float32)
        if self.LABELS:
            features["labels"] = tfds.features.Tensor(shape=(len(self.LABELS),), dtype=np.float32)
        if self.PAIRS:
            features["pairs"] = tfds.features.Tensor(shape=(None, 10), dtype=np.int32)
        if self.CATEGORIES:
            features["category"] = tfds.features.Text()
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "score"),
        )

    def _log_download_bytes(self) -> None:
        """Nothing: TFDS would print that it downloads, and nothing is downloaded."""

    def _log_download_done(self) -> None:
        """Nothing, see above."""

    def _split_generators(self, dl_manager):
        # The manual folder is asked for only where something is needed: TFDS refuses to name it else.
        folder = dl_manager.manual_dir if self.NEEDS else Path()
        return {"pictures": self._generate_examples(Path(folder))}

    def _generate_examples(self, folder: Path) -> Iterator[tuple[str, dict]]:
        for example in self.examples(folder):
            photo = example.photo
            try:
                height, width = photo_size(photo, ANY_SIZE)
            except UnreadableError:
                height = width = 0
            if isinstance(photo, Path):
                photo = photo.read_bytes() if photo.is_file() else b""
            fields = example._asdict() | {"height": height, "width": width, "image": photo}
            del fields["photo"]
            for name in ("votes", "labels"):
                fields[name] = np.asarray(fields[name], np.float32)
            fields["pairs"] = np.asarray(example.pairs, np.int32).reshape(-1, 10)
            features: Any = self.info.features
            yield example.id, {name: fields[name] for name in features}


def read_text(path: Path) -> str:
    """An annotation file's text, less a byte-order mark.

    Raises:
        UsageError: it is not UTF-8: damaged.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is damaged: {error}: download it again") from None


def read_rows(path: Path, *columns: str) -> list[tuple[str, dict[str, str]]]:
    """The lines of a CSV file below its heading, each with where it stands, blanks around fields removed.

    Raises:
        UsageError: it lacks one of these columns, or a line does: another file, or cut short.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise UsageError(f"{path} has no column {', '.join(missing)}: it is not the data set's file")
    rows = []
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in [row[name] for name in columns]:
            raise UsageError(f"{where}: cut short: download it again")
        rows.append((where, {name: row[name].strip() for name in columns}))
    return rows


def part_of_scale(where: str, text: str, lowest: float, highest: float) -> float:
    """A mean of marks as a part of their scale, 0 to 1.

    Raises:
        UsageError: it is no number of this scale; the message begins with where it stands.
    """
    try:
        part = (float(text) - lowest) / (highest - lowest)
    except ValueError:
        part = math.nan
    if not 0 <= part <= 1:
        raise UsageError(f"{where}: {text!r} is no mean of marks of {lowest:g} to {highest:g}")
    return part


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of a MATLAB file, by name.

    Raises:
        UsageError: it is damaged, or does not have them.
    """
    try:
        arrays = scipy.io.loadmat(path)
        return [arrays[name] for name in names]
    except Exception as error:  # loadmat raises anything on odd bytes
        raise UsageError(
            f"{path} is damaged or not what it should be: {type(error).__name__}: {error}: download it again"
        ) from None


def find(folder: Path, *names: str, needs: str) -> Path:
    """The first of these files or folders that is there.

    Raises:
        MissingFilesError: none is; says what is needed, and where.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise MissingFilesError(f"{' or '.join(names)} is missing in {folder}. Put there: {needs}")
