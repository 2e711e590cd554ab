"""Which photographs lie in folders as people have them: on cameras' cards, network drives, in collections."""

import collections
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from spp_jax.addresses import files_below
from spp_jax.data.pixels import FORMATS
from spp_jax.data.raw import ENDINGS as RAW

__all__ = ["Found", "find_photos", "picture_endings"]

# Taken also where their plugin is missing: each is then named with the extra that reads it.
_WITH_PLUGINS = (*RAW, ".heic", ".heif", ".hif", ".avif")
_OTHERS = (
    *(".ai", ".cin", ".cur", ".dcx", ".dds", ".djvu", ".dpx", ".emf", ".eps", ".exr", ".fits", ".fpx"),
    *(".hdr", ".icns", ".ico", ".jng", ".jxl", ".jxr", ".kra", ".mng", ".pcd", ".pct", ".pict", ".ps"),
    *(".psb", ".psd", ".qoi", ".ras", ".rgb", ".sgi", ".svg", ".svgz", ".wdp", ".wmf", ".xbm", ".xcf"),
    *(".xpm",),
)


class Found(NamedTuple):
    """What there is to score, and what is to be said of the rest.

    Attributes:
        photos: files, as they were given or, of each folder, in order of name.
        skipped: the reason, by name, for each folder that gives none or cannot be read.
        unread: how many files look like pictures of kinds that are not read, by ending.
        passed: how many entries of folders were passed over as hidden or a system's, and an example.
        example: one of these.
    """

    photos: list[Path]
    skipped: dict[str, str]
    unread: dict[str, int]
    passed: int
    example: str


def picture_endings() -> set[str]:
    """How the names of pictures end that are read, some with plugins, in small letters."""
    endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    return endings | set(_WITH_PLUGINS)


def find_photos(paths: Iterable[Path]) -> Found:
    """Files as they are; of folders, searched to the bottom, all whose names end like a picture's."""
    endings = picture_endings()
    photos, skipped, unread = [], {}, collections.Counter()
    passed, example = 0, ""
    for path in paths:
        try:
            is_folder = path.is_dir()
        except (OSError, ValueError):  # a name that no file can have: reading it will say so
            is_folder = False
        if not is_folder:
            photos.append(path)
            continue
        below = files_below(path)
        skipped |= {str(folder): reason for folder, reason in below.unreadable.items()}
        passed, example = passed + len(below.passed), example or str(next(iter(below.passed), ""))
        inside = [file for file in below.files if file.suffix.lower() in endings]
        unread.update(e for file in below.files if (e := file.suffix.lower()) in _OTHERS)
        if not inside and str(path) not in skipped:
            skipped[str(path)] = "is a folder without any picture: nothing to score"
        photos += inside
    return Found(photos, skipped, dict(unread.most_common()), passed, example)
