"""A photograph in, its pixels out: uint8 sRGB ``[height, width, 3]``, EXIF orientation applied.

Alpha is laid over white, 16-bit samples lose their lower byte, an animation gives its first frame.
Sizes are in pixels, height before width, and read from the header alone.
"""

import io
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps

__all__ = ["MOST_PIXELS", "Photo", "UnreadableError", "decode", "photo_name", "photo_size"]

Photo: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"
"""A file, a file's bytes, an opened picture, or uint8 pixels ``[height, width, 3]``."""

MOST_PIXELS = 100_000_000
"""A larger picture is refused from its header, before memory is taken for it."""


class UnreadableError(Exception):
    """This photograph gives no pixels; the message says why in one line."""


def photo_name(photo: Photo, index: int) -> str:
    """What to call a photograph in messages: its path, or its place in the collection."""
    return str(photo) if isinstance(photo, str | os.PathLike) else f"photograph {index}"


def photo_size(photo: Photo) -> tuple[int, int]:
    """(height, width) as :func:`decode` will give it, without decoding.

    Raises:
        UnreadableError: the header cannot be read, or promises more than :data:`MOST_PIXELS`.
    """
    if isinstance(photo, np.ndarray):
        return _checked_pixels(photo).shape[0], photo.shape[1]
    try:
        with _open(photo) as picture:
            return _oriented_size(picture)
    except Exception as error:
        raise _unreadable(error) from None


def decode(photo: Photo) -> np.ndarray:
    """The pixels, uint8 ``[height, width, 3]``.

    Raises:
        UnreadableError: whatever went wrong: no file, no picture, truncated, too large.
    """
    if isinstance(photo, np.ndarray):
        return _checked_pixels(photo)
    try:
        with _open(photo) as picture:
            _oriented_size(picture)
            return np.asarray(_to_rgb(ImageOps.exif_transpose(picture)))
    except Exception as error:  # decoders raise anything on odd bytes; none may end a long run
        raise _unreadable(error) from None


def _open(photo: Photo) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo.copy()  # the caller's stays open
    if isinstance(photo, bytes):
        return Image.open(io.BytesIO(photo))
    path = Path(photo)  # pyright: ignore[reportArgumentType]  # arrays never come here
    if not path.is_file():
        raise UnreadableError("is no file" if path.exists() else "there is no such file")
    return Image.open(path)


def _oriented_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise UnreadableError(f"has {width}x{height} pixels, more than {MOST_PIXELS:,}")
    if picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
        return width, height
    return height, width


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _checked_pixels(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise UnreadableError(
            f"is an array {pixels.dtype}{list(pixels.shape)}, expected uint8 [height, width, 3]"
        )
    return pixels


def _unreadable(error: Exception) -> UnreadableError:
    if isinstance(error, UnreadableError):
        return error
    if isinstance(error, Image.UnidentifiedImageError):
        return UnreadableError("is no picture in a format that can be read")
    return UnreadableError(" ".join(f"{type(error).__name__}: {error}".split()))
