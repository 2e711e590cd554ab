"""CSV files as people and other programs write them, and the files that they name."""

import csv
import io
import posixpath
from collections.abc import Sequence

from spp_jax.addresses import is_address
from spp_jax.errors import UsageError
from spp_jax.names import printable

__all__ = ["file_name", "split_table"]

_SEPARATORS = (",", ";", "\t")


def split_table(text: str, *forms: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The heading in small letters, the numbered lines below it, and what separates their cells.

    Args:
        text: of the table.
        forms: columns that are needed, in one way or another: the first separator that makes a heading with
            all of one form is it. Of none there are no lines.
    """
    for separator in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        heading = [name.strip().casefold() for name in next((cells for cells in reader if cells), [])]
        if any(set(needed) <= set(heading) for needed in forms):
            return heading, [(reader.line_num, cells) for cells in reader if cells], separator
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    return [name.strip().casefold() for name in next(reader, [])], [], ","


def file_name(where: str, name: str, outside_files: bool) -> str:
    """A file's name relative to its folder, in its shortest form.

    Raises:
        UsageError: there is none, it is an address, or it leads out of the folder and may not.
    """
    if not name.strip():
        raise UsageError(f"{where}: no file is named")
    if is_address(name):
        raise UsageError(
            f"{where}: the file {printable(name)} is an address; files are relative to the folder"
        )
    name = posixpath.normpath(name)
    if not outside_files and (posixpath.isabs(name) or name.split("/")[0] == ".."):
        raise UsageError(f"{where}: {printable(name)} lies outside the folder; --outside-files allows that")
    return name
