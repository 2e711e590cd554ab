"""A part of a photograph, as a file: its quality, colour profile and EXIF kept."""

import io
import os
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps, JpegImagePlugin

from spp_jax.addresses import is_address, path_at
from spp_jax.data.unreadable import UnreadableError
from spp_jax.whole_files import written_whole

__all__ = ["ENDINGS", "cut"]

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")  # more bits than JPEG has


def cut(photo: str | os.PathLike, box: tuple[int, int, int, int], out: Path) -> None:
    """Write a part of a photograph; whole or not at all.

    A JPEG written from a JPEG has its quantisation and its colours' subsampling. The colour profile, the
    EXIF data and the XMP go along, without the orientation, which is applied, and without EXIF's thumbnail,
    which would show the whole.

    Args:
        photo: a file that Pillow reads.
        box: left, top, right, bottom, in pixels of the upright photograph.
        out: of one of :data:`ENDINGS`.

    Raises:
        UnreadableError: Pillow cannot read the photograph.
        OSError: the file cannot be written.
    """
    given = path_at(photo).read_bytes() if is_address(photo) else Path(photo).read_bytes()
    part, options = _part(given, box, out.suffix.lower() in (".jpg", ".jpeg"))
    with written_whole(out) as file:
        part.save(file, Image.registered_extensions()[out.suffix.lower()], **options)


def _part(given: bytes, box: tuple[int, int, int, int], jpeg: bool) -> tuple[Image.Image, dict[str, Any]]:
    try:
        with Image.open(io.BytesIO(given)) as picture:
            options = _quality(picture) if jpeg else {}
            upright = ImageOps.exif_transpose(picture)
            part = upright.crop(box)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"cannot be cut: {' '.join(str(error).split())[:200]}") from None
    if upright.info.get("icc_profile"):
        options["icc_profile"] = upright.info["icc_profile"]
    if upright.info.get("xmp"):
        options["xmp"] = upright.info["xmp"]
    exif = upright.getexif()
    if len(exif):
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        if inner:
            inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight] = part.size
        thumbnail = exif.get_ifd(ExifTags.IFD.IFD1)
        thumbnail.clear()
        options["exif"] = exif.tobytes()
    return (_for_jpeg(part) if jpeg else part), options


def _for_jpeg(part: Image.Image) -> Image.Image:
    """In a mode that JPEG has; what is transparent lies on white."""
    if part.mode in _DEEP:
        raise UnreadableError("has more than 8 bits a sample, which JPEG has not: write .png or .tif")
    if part.has_transparency_data:
        part = part.convert("RGBA")
        part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part)
    return part if part.mode in ("L", "RGB", "CMYK") else part.convert("RGB")


def _quality(picture: Image.Image) -> dict[str, Any]:
    """What a JPEG is written with: the photograph's own tables, or a high quality."""
    if not isinstance(picture, JpegImagePlugin.JpegImageFile):
        return {"quality": 95, "subsampling": 0}
    options: dict[str, Any] = {"qtables": picture.quantization}
    if (sampling := JpegImagePlugin.get_sampling(picture)) >= 0:
        options["subsampling"] = sampling
    return options
