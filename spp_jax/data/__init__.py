"""Records in, batches out. A data set is a folder here (or a function) and a line in the table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spp_jax.config import UsageError
from spp_jax.data.records import Records

__all__ = ["list_datasets", "load_dataset"]


def list_datasets() -> list[str]:
    """The names that :func:`load_dataset` takes."""
    return sorted(_DATASETS)


def load_dataset(name: str, data_dir: Path, *, say: Callable[[str], None] = lambda text: None) -> Records:
    """All records of a data set, ordered by id; prepared on first use.

    Args:
        name: one of :func:`list_datasets`.
        data_dir: where prepared data sets are kept.
        say: told in a line what takes long.

    Raises:
        UsageError: the name is unknown, or something that the data set needs is not installed.
    """
    if name not in _DATASETS:
        raise UsageError(f"--data {name}: unknown; known are {', '.join(list_datasets())}")
    return _DATASETS[name](data_dir, say)


def _distorted_photos(data_dir: Path, say: Callable[[str], None]) -> Records:
    try:
        from spp_jax.data.distorted_photos import distorted_photos_dataset_builder as module
    except ModuleNotFoundError as error:
        raise UsageError(
            f"distorted_photos needs the package {error.name}: pip install 'spp_jax[demo]'"
        ) from None
    try:
        key = module.content_key()
    except module.sources.MissingSourcesError as error:
        raise UsageError(str(error)) from None
    return _from_builder(lambda: module.Builder(data_dir=data_dir / key, file_format="array_record"), say)


def _from_builder(make_builder: Callable[[], Any], say: Callable[[str], None]) -> Records:
    """Prepare a TFDS builder of our schema, and read all but the pictures."""
    import tensorflow_datasets as tfds

    builder = make_builder()
    if not Path(builder.data_dir).exists():
        say(f"preparing {builder.name}, once, in {builder.data_dir}")
        tfds.disable_progress_bar()
        try:
            builder.download_and_prepare()
        except FileExistsError:  # another process has prepared the same meanwhile
            builder = make_builder()
    (split,) = builder.info.splits
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    rows = [source[i] for i in range(len(source))]
    ids = [row["id"].decode() for row in rows]
    order = sorted(range(len(rows)), key=ids.__getitem__)
    return Records(
        ids=tuple(ids[i] for i in order),
        sizes=np.array([(rows[i]["height"], rows[i]["width"]) for i in order], np.int64),
        photo=lambda i: source[order[i]]["image"],
        scores=np.array([rows[i]["score"] for i in order], np.float32),
        groups=tuple(rows[i]["group"].decode() for i in order),
    )


_DATASETS: dict[str, Callable[[Path, Callable[[str], None]], Records]] = {
    "distorted_photos": _distorted_photos,
}
