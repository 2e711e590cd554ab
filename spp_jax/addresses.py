"""Where files are: on a disk, or at an address such as ``gs://bucket/folder``.

A path on a disk is a `pathlib.Path`, which is exact about times and quick; an address is an
`etils.epath.Path`, with the same methods as far as they are used here. Addresses need the package of their
file system: gcsfs for ``gs://``, s3fs for ``s3://``.
"""

import os
import re
from pathlib import Path
from typing import Any

from etils import epath

from spp_jax.errors import UsageError

__all__ = ["files_below", "is_address", "path_at", "stamp"]


_COLLAPSED = re.compile("[a-z0-9]+:/[^/]")


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether it is not on a disk."""
    return "://" in os.fspath(path)


def path_at(path: str | os.PathLike[str]) -> Path:
    """The path, with the methods of `pathlib.Path`.

    Raises:
        UsageError: an address for which no file system is known or installed.
    """
    if isinstance(path, Path) and _COLLAPSED.match(str(path)):
        raise UsageError(f"{path}: an address cannot be a pathlib.Path; give it as text, such as gs://bucket")
    if isinstance(path, Path | epath.Path):
        return path  # pyright: ignore[reportReturnType]
    if not is_address(path):
        return Path(path)
    text = os.fspath(path)
    try:
        found: Any = epath.Path(text)
        found.exists()  # else the first use would find that there is no such file system
    except Exception as error:  # each file system has errors of its own
        reason = (
            f"no file system {error} is known"
            if isinstance(error, KeyError)
            else " ".join(str(error).split())
        )
        raise UsageError(f"{text}: {reason}") from None
    return found


def stamp(path: Path) -> tuple[int, int]:
    """Length in bytes, and time of the last change: another pair where the content is another.

    The time is 0 where the file system does not tell it.

    Raises:
        Exception: there is no such file, or it cannot be reached; of what kind, depends on the file system.
    """
    about: Any = path.stat()
    if is_address(path):  # whole seconds
        return about.length, about.mtime * 10**9
    return about.st_size, about.st_mtime_ns


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and of those in it, sorted; links to folders are not followed.

    Raises:
        OSError: one of the folders cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    if not is_address(folder):
        walk = os.walk(folder, onerror=refuse)
        return sorted(Path(inner) / name for inner, _, names in walk for name in names)
    found = []
    for path in folder.iterdir():
        found += files_below(path) if path.is_dir() else [path]
    return sorted(found)
