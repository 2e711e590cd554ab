"""Which photographs lie in folders as people have them: on cameras' cards, network drives, in collections."""

import collections
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from spp_jax.addresses import files_below, is_address
from spp_jax.data.pixels import FORMATS, HEIF_BRANDS
from spp_jax.data.raw import ENDINGS as RAW

__all__ = ["Found", "find_photos", "picture_endings"]

# Taken also where their plugin is missing: each is then named with the extra that reads it.
_WITH_PLUGINS = (*RAW, ".heic", ".heif", ".hif", ".avif")
_UNNAMED = (".mpo", ".jps", ".insp", ".jif")  # are JPEG, with other pictures behind it; Pillow registers none
_OTHERS = (
    *(".afphoto", ".ai", ".bpg", ".bw", ".cin", ".cur", ".dcm", ".dcx", ".dds", ".djvu", ".dpx", ".emf"),
    *(".eps", ".exr", ".fits", ".flif", ".fpx", ".hdp", ".hdr", ".icns", ".ico", ".iff", ".jls", ".jng"),
    *(".jxl", ".jxr", ".kra", ".lbm", ".mng", ".pam", ".pcd", ".pct", ".pdn", ".pict", ".ps", ".psb"),
    *(".psd", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".svg", ".svgz", ".wdp", ".wmf", ".xbm", ".xcf"),
    *(".xpm", ".xwd"),
)
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")


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
    return endings | {*_WITH_PLUGINS, *_UNNAMED}


def find_photos(paths: Iterable[Path]) -> Found:
    """Files as they are; of folders, searched to the bottom, all whose names end like a picture's.

    On a disk also those whose names have no ending, as collections have them, and that begin like a picture.
    """
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
        inside = [f for f in below.files if f.suffix.lower() in endings or (not f.suffix and _begins(f))]
        unread.update(e for file in below.files if (e := file.suffix.lower()) in _OTHERS)
        if not inside and str(path) not in skipped:
            skipped[str(path)] = "is a folder without any picture: nothing to score"
        photos += inside
    return Found(photos, skipped, dict(unread.most_common()), passed, example)


def _begins(file: Path) -> bool:
    """Whether a file on a disk begins like a picture."""
    if is_address(file):
        return False
    try:
        if not file.is_file():  # a pipe would be waited for
            return False
        with file.open("rb") as opened:
            start = opened.read(12)
    except OSError:
        return False
    if start[:4] == b"RIFF":
        return start[8:12] == b"WEBP"
    return start.startswith(_STARTS) or (start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS)
