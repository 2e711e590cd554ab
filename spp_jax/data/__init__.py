"""Records in, batches out. A data set is a folder here, and its name in the list."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spp_jax.addresses import is_address
from spp_jax.config import ANY_SIZE, Decoding
from spp_jax.data.columns import read_columns, write_columns
from spp_jax.data.comparisons import Box, Comparison, with_pairs
from spp_jax.data.decoding import UnreadableError, photo_size
from spp_jax.data.records import Records
from spp_jax.errors import UsageError
from spp_jax.registry import Registry

__all__ = ["DATASETS", "list_datasets", "load_dataset"]

_log = logging.getLogger(__name__)

_INDEX_FORM = 1
_BUILT = (
    *("ava", "biq2021", "distorted_photos", "fcdb", "koniq10k", "live_iqa", "live_wild", "oasis", "savoias"),
    "vessel",
)


DATASETS: Registry[Any] = Registry(
    "data set",
    {name: f"spp_jax.data.{name}.{name}_dataset_builder:Builder" for name in _BUILT}
    | {
        "folder": "spp_jax.data.folder:load_folder",
        "judged_photos": "spp_jax.data.judged_photos:load_judged",
    },
    argument="data",
)
"""Builders of TFDS, which prepare a data set once (:class:`spp_jax.data.photo_builder.PhotoBuilder`), and
functions ``(data_dir, decoding) -> (Records, reasons)``, which read one in place."""


def list_datasets() -> list[str]:
    """The names that :func:`load_dataset` takes."""
    return list(DATASETS)


def load_dataset(
    name: str,
    data_dir: Path,
    decoding: Decoding,
    *,
    outside_files: bool = False,
    near_duplicates: bool = False,
) -> tuple[Records, dict[str, str]]:
    """All records of a data set, ordered by id; prepared on first use.

    What takes long, or should be known of the data, is logged.

    Args:
        name: one of :func:`list_datasets`, or ``file.py:thing`` of one's own: a builder or a function.
        data_dir: where prepared data sets are kept, and where the user puts downloads, in
            ``manual/NAME``; for ``folder``, the user's own folder.
        decoding: how pictures become pixels.
        outside_files: of ``folder``: whether its table may name files outside of it.
        near_duplicates: of ``folder``: whether pictures that look alike are of one group.

    Returns:
        The records, and by id the reason for each picture that cannot be read: its size is 0. It stays
        among the records, so that how these are split does not depend on what can be read today.

    Raises:
        UsageError: the name is unknown, or something that the data set needs is not there.
    """
    try:
        found = DATASETS[name]
    except UsageError as error:
        if name in DATASETS and isinstance(error.__cause__, ModuleNotFoundError):
            package = str(error.__cause__.name)
            extra = "demo" if name == "distorted_photos" else "datasets"
            lacks = f"{name} needs the package {package}: pip install 'spp_jax[{extra}]'"
            raise UsageError(lacks) from None
        raise
    if name == "folder":
        return found(data_dir, decoding, outside_files=outside_files, near_duplicates=near_duplicates)
    if outside_files or near_duplicates:
        argument = "outside_files" if outside_files else "near_duplicates"
        raise UsageError(f"{argument} is for the data set folder, not for {name}")
    return _built(found, name, data_dir, decoding) if isinstance(found, type) else found(data_dir, decoding)


def _built(make: Any, name: str, data_dir: Path, decoding: Decoding) -> tuple[Records, dict[str, str]]:
    """By a TFDS builder: prepared once for each content; read are all but the pictures."""
    source, fields, prepared = _prepared(make, name, data_dir)

    def photo(place: int) -> bytes:
        try:
            return source[place]["image"]
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UnreadableError(
                f"its record is damaged ({said}): remove {prepared} to prepare it anew"
            ) from None

    ids, raw = fields["id"], np.stack([fields["height"], fields["width"]], axis=1)
    order, skipped = np.argsort(ids), {}
    for place in order:
        pixels = int(raw[place].prod())
        if not pixels:
            skipped[str(ids[place])] = _reason(photo, int(place), prepared)
        elif pixels > decoding.refuse_pixels:
            skipped[str(ids[place])] = f"has {pixels:,} pixels, more than {decoding.refuse_pixels:,}"
            raw[place] = 0
    splits = tuple(fields["split"][order].tolist())
    records = Records(
        ids=tuple(ids[order].tolist()),
        sizes=decoding.scaled(raw[order]),
        photo=lambda i: photo(int(order[i])),
        scores=fields["score"][order],
        good=fields["good"][order],
        groups=tuple(fields["group"][order].tolist()),
        splits=splits if all(splits) else (),
        labels=_labels(make, fields, order),
        marks=make.MARKS,
        decoding=decoding,
        categories=tuple(fields["category"][order].tolist()) if make.CATEGORIES else (),
        attributes=(make.SCORE,),
    )
    if make.PAIRS:
        compared = _comparisons(records.ids, raw[order], fields["pairs"][order])
        return with_pairs(records, raw[order], compared, skipped)
    return records, skipped


def _prepared(make: Any, name: str, data_dir: Path) -> tuple[Any, dict[str, np.ndarray], Any]:
    """The records by place, everything but their pictures by column, and the folder in which they are."""
    import tensorflow_datasets as tfds

    if is_address(data_dir):
        raise UsageError(f"data_dir {data_dir}: what the data set {name} prepares needs a folder on a disk")
    downloads = data_dir / "manual" / name
    key = make.content_key(downloads)

    def of_this_content() -> Any:
        return make(data_dir=data_dir / key, file_format="array_record")

    try:
        builder = of_this_content()
    except Exception as error:  # what TFDS finds there is damaged
        raise _damaged(data_dir / key, error) from None
    if not Path(builder.data_dir).exists():
        _log.info(f"preparing {builder.name}, once, in {builder.data_dir}")
        tfds.disable_progress_bar()
        try:
            config = tfds.download.DownloadConfig(manual_dir=downloads if make.NEEDS else None)
            builder.download_and_prepare(download_config=config)
        except FileExistsError:  # another process has prepared the same meanwhile
            builder = of_this_content()
        except UsageError:
            raise
        except Exception as error:  # of a full disk, each library has its own
            if reason := _of_the_disk(error):
                raise OSError(f"{builder.name} cannot be prepared in {builder.data_dir}: {reason}") from None
            raise
    try:
        (split,) = builder.info.splits
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        fields = _index(source, Path(builder.data_dir) / "index.npz")
        if len(source) != len(fields["id"]):
            raise ValueError(f"{len(source)} records, expected {len(fields['id'])}")
    except Exception as error:  # each library on the way has errors of its own
        raise _damaged(builder.data_dir, error) from None

    return source, fields, builder.data_dir


def _comparisons(ids: Sequence[str], raw: np.ndarray, pairs: np.ndarray) -> Iterator[Comparison]:
    """Pairs of crops of each photograph, int ``[n, most, 10]``, those without votes being filler."""
    for name, (height, width), rows in zip(ids, raw.tolist(), pairs.tolist(), strict=True):
        for number, (*boxes, one, other) in enumerate(rows, 1):
            if one + other:
                both = (_inside(boxes[:4], width, height), _inside(boxes[4:], width, height))
                yield Comparison(f"{name}, pair {number}", (name, name), both, one / (one + other))


def _inside(box: Sequence[int], width: int, height: int) -> Box:
    """The part of a box that is in its picture; the box where that has no size."""
    x, y, w, h = box
    left, top = max(x, 0), max(y, 0)
    return (left, top, min(x + w, width) - left, min(y + h, height) - top) if height else (x, y, w, h)


def _labels(make: Any, fields: dict[str, np.ndarray], order: np.ndarray) -> dict[str, np.ndarray]:
    """What is known of each picture besides its score, by name."""
    labels = {name: fields["labels"][order, column] for column, name in enumerate(make.LABELS)}
    return labels | ({"votes": fields["votes"][order]} if make.MARKS else {})


def _damaged(folder: Any, error: Exception) -> UsageError:
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return UsageError(f"the prepared data set in {folder} is damaged: {said}: remove it to prepare it anew")


_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_FAILING = ("Input/output error", "Permission denied", "Read-only file system", "Stale file handle")


def _of_the_disk(error: BaseException | None) -> str | None:
    """What is wrong with the disk, where it is that."""
    while error is not None:
        for reason in (*_FULL, *_FAILING):
            if reason in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


def _index(source: Any, path: Path) -> dict[str, np.ndarray]:
    """Everything but the pictures, by column; kept in a file, as TFDS reads it with the pictures only."""
    if (columns := read_columns(path, _INDEX_FORM)) is not None:
        return columns
    rows: list[dict[str, Any]] = []
    for place in range(len(source)):
        row = dict(source[place])
        del row["image"]
        rows.append({name: v.decode() if isinstance(v, bytes) else v for name, v in row.items()})
    for row in rows if "pairs" in rows[0] else ():  # filled up to as many
        missing = max(len(row["pairs"]) for row in rows) - len(row["pairs"])
        row["pairs"] = np.pad(row["pairs"], ((0, missing), (0, 0)))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    with contextlib.suppress(OSError):  # then they are read anew each time
        write_columns(path, _INDEX_FORM, columns)
    return columns


def _reason(photo: Callable[[int], bytes], place: int, prepared: Any) -> str:
    content = None
    try:
        content = photo(place)
        photo_size(content, ANY_SIZE)
    except UnreadableError as error:
        return str(error) if content != b"" else "there is no such file, or it is empty"
    return f"could not be read when the data set was prepared: remove {prepared} to prepare it anew"
