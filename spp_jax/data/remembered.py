"""What was found out about files, known again for each while its name, length and date stay as they are."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from spp_jax.addresses import stamp
from spp_jax.data.columns import read_columns, write_columns

__all__ = ["Key", "key_of", "read_facts", "write_facts"]

Key = tuple[str, int, int]
"""Of a file as it is now: its name from the folder where facts are kept, its length and its date."""


def key_of(path: Path, cache: Path) -> Key:
    """The key of a file for facts that are kept in ``cache``.

    Raises:
        Exception: as :func:`spp_jax.addresses.stamp` does.
    """
    return (os.path.relpath(path, cache.parent), *stamp(path))


def read_facts(cache: Path, form: int, name: str) -> dict[Key, Any]:
    """The facts of a column, each as a plain number, text, or list of such; none where none are kept."""
    kept = read_columns(cache, form)
    if kept is None:
        return {}
    rows = zip(*(kept[column].tolist() for column in ("name", "about", name)), strict=True)
    return {(file, length, date): fact for file, (length, date), fact in rows}


def write_facts(cache: Path, form: int, name: str, keys: Iterable[Key], facts: np.ndarray) -> None:
    """Keep facts, in place of those that were kept.

    Args:
        cache: the file.
        form: as :func:`spp_jax.data.columns.write_columns` takes it.
        name: of the column.
        keys: of the files.
        facts: ``[files, ...]``.

    Raises:
        OSError: it cannot be written.
    """
    keys = list(keys)
    files = {
        "name": np.array([file for file, _, _ in keys], str),
        "about": np.array([about for _, *about in keys], np.int64).reshape(-1, 2),
    }
    write_columns(cache, form, {**files, name: facts})
