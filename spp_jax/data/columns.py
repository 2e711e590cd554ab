"""Columns of facts about a collection in one file, which may be lost or damaged at no harm."""

from pathlib import Path

import numpy as np

from spp_jax.whole_files import written_whole

__all__ = ["read_columns", "write_columns"]

_FORMAT = "format"


def read_columns(path: Path, form: int) -> dict[str, np.ndarray] | None:
    """The columns by name; None where there is no such file, it is damaged, or of another form."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            columns = {name: kept[name] for name in kept.files}
    except Exception:  # damage raises anything, and what is lost is made again
        return None
    return columns if columns.pop(_FORMAT, None) == form else None


def write_columns(path: Path, form: int, columns: dict[str, np.ndarray]) -> None:
    """Write the file as a whole or not at all.

    Args:
        path: replaced.
        form: of the columns; another number whenever their meaning changes.
        columns: by name; text and numbers, no objects.

    Raises:
        OSError: it cannot be written.
    """
    everything: dict = {**columns, _FORMAT: np.array(form)}
    with written_whole(path) as part, part.open("wb") as file:
        np.savez(file, **everything)
