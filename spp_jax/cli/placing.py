"""Files put beside others: whole or not at all, and never in another's place."""

import filecmp
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from spp_jax.addresses import is_address, stamp
from spp_jax.whole_files import part_beside, written_whole

__all__ = ["copy_into", "link_into", "replace_file", "write_new"]


def write_new(path: Path, content: bytes) -> bool:
    """Write a file that is not there; whether it was not."""
    with part_beside(path) as part:
        part.write_bytes(content)
        return _settle(part, path)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is there, with its permissions; of a link, the file that it leads to."""
    path = Path(os.path.realpath(path))
    with written_whole(path) as part:
        part.write_bytes(content)
        shutil.copymode(path, part)


def copy_into(photo: Path, folder: Path) -> bool:
    """Copy a file, with its times, under its own name or, where another is called so, with a number after it.

    Returns:
        Whether it was copied: not where an equal one is there already.
    """
    with part_beside(folder / photo.name) as part:
        for target in _names(folder, photo.name):
            if os.path.lexists(target):
                if _equal(photo, target):
                    return False
                continue
            if not part.exists():
                _copy(photo, part)
            if _settle(part, target):
                return True
    raise AssertionError("numbers do not end")


def link_into(photo: Path, folder: Path) -> bool:
    """As :func:`copy_into`, but a symbolic link to where the file, on a disk, is now."""
    for target in _names(folder, photo.name):
        try:
            os.symlink(os.path.abspath(photo), target)
        except FileExistsError:
            if _equal(photo, target):
                return False
        else:
            return True
    raise AssertionError("numbers do not end")


def _names(folder: Path, name: str) -> Iterator[Path]:
    stem, ending = os.path.splitext(name)
    return itertools.chain([folder / name], (folder / f"{stem}-{n}{ending}" for n in itertools.count(2)))


def _equal(photo: Path, other: Path) -> bool:
    """Whether the other is the same file, or one with the same bytes."""
    if not other.is_file():
        return False
    if not is_address(photo):
        return os.path.samefile(photo, other) or filecmp.cmp(photo, other, shallow=False)
    return stamp(photo)[0] == other.stat().st_size and photo.read_bytes() == other.read_bytes()


def _copy(photo: Path, target: Path) -> None:
    if not is_address(photo):
        shutil.copy2(photo, target)
        return
    with photo.open("rb") as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _settle(part: Path, path: Path) -> bool:
    """Give a written file its name, where that is free; whether it was."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: the name is taken first, then the file put there
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(part, path)
    return True
