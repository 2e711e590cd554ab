"""CSV files as people and other programs write them, and the files that they name."""

import codecs
import csv
import io
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

from spp_jax.addresses import is_address
from spp_jax.errors import UsageError
from spp_jax.names import printable

__all__ = ["file_name", "split_table", "text_of"]

_SEPARATORS = (",", ";", "\t")
_SAID = re.compile(r"sep=.\r?\n?", re.IGNORECASE)  # which spreadsheets write, and read, above the heading


def text_of(path: Path) -> str:
    """The text of a table: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Raises:
        UsageError: it cannot be read, or is in another encoding.
    """
    try:
        content = path.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} cannot be read as a CSV file in UTF-8: {error}; save it as CSV in UTF-8"
        ) from None


def split_table(text: str, *forms: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The heading in small letters, the numbered lines below it, and what separates their cells.

    Args:
        text: of the table.
        forms: columns that are needed, in one way or another: the first separator that makes a heading with
            all of one form is it. Of none there are no lines.
    """
    said = _SAID.match(text)
    above, text = (1, text[said.end() :]) if said else (0, text)
    for separator in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        heading = [name.strip().casefold() for name in next((cells for cells in reader if cells), [])]
        if any(set(needed) <= set(heading) for needed in forms):
            return heading, [(above + reader.line_num, cells) for cells in reader if cells], separator
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
