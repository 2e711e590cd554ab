"""Sizes of a collection from the headers of its files alone, remembered beside the data."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from spp_jax.addresses import stamp
from spp_jax.config import ANY_SIZE, Decoding
from spp_jax.data.columns import read_columns, write_columns
from spp_jax.data.decoding import UnreadableError, photo_size

__all__ = ["scan_sizes"]

_log = logging.getLogger(__name__)

_FORM = 1
_MANY = 1000  # pictures from which a progress bar is worth its line


def scan_sizes(paths: Sequence[Path], decoding: Decoding, cache: Path) -> tuple[np.ndarray, dict[int, str]]:
    """(height, width) of each picture, EXIF orientation applied and not yet scaled down.

    What was found is kept in ``cache`` by name, length and date of each file, so that a second scan reads
    only what is new; where the cache cannot be written, that is logged and all is scanned again next time.

    Args:
        paths: of the pictures.
        decoding: says which are refused for their size.
        cache: the file.

    Returns:
        Sizes, int64 ``[n, 2]``, 0 where a picture cannot be read; and the reasons, by index.
    """
    known = _read(cache)

    def scan(path: Path) -> tuple[tuple[str, int, int], tuple[int, int] | str]:
        try:
            about = stamp(path)
        except (FileNotFoundError, ValueError):  # or a name that no file can have
            return ("", 0, 0), "there is no such file"
        except Exception as error:  # each file system has errors of its own
            return ("", 0, 0), f"cannot be reached: {' '.join(str(error).split())}"
        key = (os.path.relpath(path, cache.parent), *about)
        if key in known:
            return key, known[key]
        try:
            return key, photo_size(path, ANY_SIZE)
        except UnreadableError as error:
            return key, str(error)

    sizes, reasons, found = np.zeros((len(paths), 2), np.int64), {}, {}

    def keep(all_known: dict) -> None:
        if all_known != known:
            try:
                _write(cache, all_known)
            except OSError as error:
                _log.warning(f"sizes are not kept for the next start: {error}")

    with ThreadPoolExecutor(thread_name_prefix="scan") as pool:
        scanned = tqdm(
            pool.map(scan, paths), total=len(paths), unit="photo", desc="scan", disable=len(paths) < _MANY
        )
        try:
            for i, (key, size) in enumerate(scanned):
                if isinstance(size, str):
                    reasons[i] = size
                    continue
                found[key] = size
                if size[0] * size[1] > decoding.refuse_pixels:
                    reasons[i] = f"has {size[1]}x{size[0]} pixels, more than {decoding.refuse_pixels:,}"
                else:
                    sizes[i] = size
        except BaseException:  # such as Ctrl-C: a long scan goes on where it was broken off
            keep(known | found)
            raise
    keep(found)
    return sizes, reasons


def _read(cache: Path) -> dict[tuple[str, int, int], tuple[int, int]]:
    kept = read_columns(cache, _FORM) or {"name": [], "about": np.zeros((0, 2)), "size": np.zeros((0, 2))}
    names, files, sizes = (np.asarray(kept[name]).tolist() for name in ("name", "about", "size"))
    rows = zip(names, files, sizes, strict=True)
    return {(name, length, date): (height, width) for name, (length, date), (height, width) in rows}


def _write(cache: Path, found: dict[tuple[str, int, int], tuple[int, int]]) -> None:
    columns = {
        "name": np.array([name for name, _, _ in found], str),
        "about": np.array([key[1:] for key in found], np.int64).reshape(-1, 2),
        "size": np.array(list(found.values()), np.int64).reshape(-1, 2),
    }
    write_columns(cache, _FORM, columns)
