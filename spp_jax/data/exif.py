"""What a file tells of a photograph beside its pixels: when, by which camera, and the stars it was given.

A header is read where `spp_jax.data.isolation` says, within its limits; what it told, as text, is believed
only so far as it is well formed. Needs Pillow alone, as `spp_jax.data.pixels` does.
"""

import datetime
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import ExifTags, Image

__all__ = ["Facts", "exif_of", "facts_of", "told"]

_LONGEST = 100  # characters of what is told, at most
_RATING = 18246
_TIMES = (  # the moment, fractions of its second, the offset of its zone
    (ExifTags.Base.DateTimeOriginal, ExifTags.Base.SubsecTimeOriginal, ExifTags.Base.OffsetTimeOriginal),
    (ExifTags.Base.DateTimeDigitized, ExifTags.Base.SubsecTimeDigitized, ExifTags.Base.OffsetTimeDigitized),
)
_MAKERS = (ExifTags.Base.Make, ExifTags.Base.Model)
_MOMENT = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,6})\d*)?(.*)")
_OFFSET = re.compile(r"[+-](?:0\d|1[0-4]):[0-5]\d")
_XMP_TIME = re.compile(rb"""\b(?:exif:DateTimeOriginal|photoshop:DateCreated)(?:\s*=\s*["']|>)\s*([^"'<]*)""")
_XMP_RATING = re.compile(rb"""\bxmp:Rating(?:\s*=\s*["']|>)\s*([^"'<]*)""")


class Facts(NamedTuple):
    """What a file's header tells.

    Attributes:
        height: pixels, upright; None where it cannot be read.
        width: as the height.
        taken: when, in ISO 8601, by the camera's clock, with fractions and offset where there are any.
        camera: maker, model and serial number; empty where it tells none.
        rating: stars in the file, 1 to 5, or -1 (rejected); None where it has none: 0 means that, too.
    """

    height: int | None = None
    width: int | None = None
    taken: str | None = None
    camera: str = ""
    rating: int | None = None


def exif_of(picture: Image.Image) -> Image.Exif:
    """Of an opened picture, which is not decoded for it.

    Raises:
        Exception: it is broken; of what kind, is Pillow's affair.
    """
    if picture.format in ("AVIF", "HEIF"):  # the file's own turn counts, which is applied or told in EXIF
        exif = Image.Exif()
        exif.load(picture.info.get("exif") or b"")
        return exif
    return Image.Image.getexif(picture)  # the base class's: PNG's own decodes the whole picture


def told(picture: Image.Image) -> dict[str, str]:
    """Texts of an opened picture's EXIF and XMP, nothing of which is decoded or believed yet.

    What is broken tells nothing, and nothing is raised over it.
    """
    found: dict[str, str] = {}
    try:
        exif = exif_of(picture)
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        for tags in _TIMES:  # not the time of the file's last change: that may be of an export of many
            moment, *further = (_text(inner.get(tag)) for tag in tags)
            if _moment(moment, *further):
                found |= dict(zip(("taken", "fraction", "offset"), (moment, *further), strict=True))
                break
        parts = [exif.get(tag) for tag in _MAKERS] + [inner.get(ExifTags.Base.BodySerialNumber)]
        found["camera"] = " ".join(text for part in parts if (text := _text(part)))
        found["rating"] = _text(exif.get(_RATING))
    except Exception:  # broken EXIF says nothing, whatever Pillow raises over it
        found.clear()
    xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    if isinstance(xmp, bytes):
        for name, pattern in (("taken", _XMP_TIME), ("rating", _XMP_RATING)):
            if not found.get(name) and (match := pattern.search(xmp)):
                found[name] = _text(match[1])
    return {name: text for name, text in found.items() if text}


def facts_of(size: tuple[int, ...], texts: Mapping[str, Any]) -> Facts:
    """Facts of what was told: each part of it that is well formed.

    Example:
        >>> facts_of((2, 3), {"taken": "2024:05:01 12:00:00", "fraction": "25", "rating": "0"})
        Facts(height=2, width=3, taken='2024-05-01T12:00:00.25', camera='', rating=None)
    """
    parts = {name: str(texts.get(name, "")) for name in ("taken", "fraction", "offset", "camera", "rating")}
    taken = _moment(parts["taken"], parts["fraction"], parts["offset"])
    rating = parts["rating"].split(".")[0]
    known = int(rating) if rating in ("-1", "1", "2", "3", "4", "5") else None
    return Facts(int(size[0]), int(size[1]), taken, " ".join(parts["camera"].split()), known)


def _moment(text: str, fraction: str, offset: str) -> str | None:
    match = _MOMENT.fullmatch(text.strip())
    if not match:
        return None
    *numbers, within, rest = match.groups()
    try:
        moment = datetime.datetime.strptime(" ".join(numbers), "%Y %m %d %H %M %S")
    except ValueError:  # such as the zeros of a clock that was never set
        return None
    within = within or (fraction.strip() if re.fullmatch(r"\s*[0-9]{1,6}\s*", fraction) else "")
    offset = "+00:00" if rest.strip() == "Z" else rest.strip() or offset.strip()
    zone = offset if _OFFSET.fullmatch(offset) else ""
    return moment.isoformat() + (f".{within}" if within else "") + zone


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if value is None or isinstance(value, tuple | dict):
        return ""
    return "".join(c for c in str(value) if c.isprintable()).strip()[:_LONGEST]
