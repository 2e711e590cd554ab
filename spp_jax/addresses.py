"""Where files are: on a disk, or at an address such as ``gs://bucket/folder``.

A path on a disk is a `pathlib.Path`, which is exact about times and quick; an address is an
`etils.epath.Path`, with the same methods as far as they are used here. Addresses need the package of their
file system: gcsfs for ``gs://``, s3fs for ``s3://``.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from spp_jax.errors import UsageError

__all__ = ["Below", "files_below", "is_address", "path_at", "stamp", "writing"]


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


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within it a file is written; the error of a disk that is full says of which.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.strerror is None:  # says so itself
            raise
        raise OSError(f"{path} cannot be written: {error.strerror}") from None


class Below(NamedTuple):
    """What a folder holds.

    Attributes:
        files: sorted.
        unreadable: the reason for each folder in it that cannot be read.
        passed: entries that are hidden, or that systems and network drives keep for themselves.
    """

    files: list[Path]
    unreadable: dict[Path, str]
    passed: list[Path]


_SYSTEMS = (
    *("$recycle.bin", "#recycle", "#snapshot", "@eadir", "@recently-snapshot", "@recycle", "__macosx"),
    *("desktop.ini", "lost+found", "network trash folder", "recycler", "system volume information"),
    *("temporary items", "thumbs.db"),
)


def files_below(folder: Path) -> Below:
    """All files of a folder and of those in it, each folder once: links are followed, and loops end.

    Passed over are names that begin with a dot, and the folders that systems and network drives make for
    thumbnails, trash and snapshots; not the folder itself, whatever it is called.
    """
    found = Below([], {}, [])
    waiting, linked, seen = [folder], [], set()
    while waiting or linked:
        inner = waiting.pop() if waiting else linked.pop(0)  # what is linked is most often met there itself
        try:
            key = os.fspath(inner) if is_address(inner) else (inner.stat().st_dev, inner.stat().st_ino)
            if key in seen:
                continue
            seen.add(key)
            entries = list(inner.iterdir())
        except OSError as error:
            found.unreadable[inner] = f"cannot be read: {error.strerror or error}"
            continue
        for path in entries:
            if path.name.startswith(".") or path.name.lower() in _SYSTEMS:
                found.passed.append(path)
            elif not _is_folder(path):
                found.files.append(path)
            elif not is_address(path) and path.is_symlink():
                linked.append(path)
            else:
                waiting.append(path)
    found.files.sort()
    found.passed.sort()
    return found


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a link to itself: reading it will say so
        return False
