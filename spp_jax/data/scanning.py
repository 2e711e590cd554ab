"""Sizes of a collection from the headers of its files alone, remembered beside the data."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from spp_jax.config import ANY_SIZE, Decoding
from spp_jax.data.decoding import UnreadableError, photo_size
from spp_jax.data.remembered import Key, key_of, read_facts, write_facts

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
    known = {key: (height, width) for key, (height, width) in read_facts(cache, _FORM, "size").items()}

    def scan(path: Path) -> tuple[Key, tuple[int, int] | str]:
        try:
            key = key_of(path, cache)
        except (FileNotFoundError, ValueError):  # or a name that no file can have
            return ("", 0, 0), "there is no such file"
        except Exception as error:  # each file system has errors of its own
            return ("", 0, 0), f"cannot be reached: {' '.join(str(error).split())}"
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
                kept = np.array(list(all_known.values()), np.int64).reshape(-1, 2)
                write_facts(cache, _FORM, "size", all_known, kept)
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
