"""A photograph in, its pixels out: uint8 sRGB ``[height, width, 3]``, EXIF orientation applied.

Colours go to sRGB by the file's own profile; alpha is laid over a stated background; 16-bit samples lose
their lower byte, floating ones are taken to lie in 0 to 1; an animation gives its first frame. A picture
of more pixels than a policy allows is scaled down, its aspect ratio kept. Sizes are in pixels, height
before width, and read from the header alone.
"""

import functools
import io
import os
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile

from spp_jax.addresses import is_address, path_at
from spp_jax.config import Decoding

try:  # HEIC and HEIF are read where this plugin is installed (pip install 'spp_jax[heif]')
    import pillow_heif
except ModuleNotFoundError:
    pass
else:
    pillow_heif.register_heif_opener()

__all__ = ["FORMATS", "Photo", "UnreadableError", "decode", "photo_name", "photo_size"]

Photo: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"
"""A file, a file's bytes, an opened picture, or uint8 pixels ``[height, width, 3]``."""

Image.init()  # now: done by several threads at first use, one may find a format not registered yet
FORMATS = tuple(
    name
    for name in (
        *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "HEIF"),
        *("PPM", "TGA", "PCX"),
    )
    if name in Image.OPEN
)
"""What is read. Not everything that Pillow can open: some formats run other programs on the file, and ICO
decodes what it holds before its size is known."""

_TO_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)  # rows of the file are columns of the picture
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class UnreadableError(Exception):
    """This photograph gives no pixels; the message says why in one line."""


def photo_name(photo: Photo, index: int) -> str:
    """What to call a photograph in messages: its path, or its place in the collection."""
    return str(photo) if isinstance(photo, str | os.PathLike) else f"photograph {index}"


def photo_size(photo: Photo, decoding: Decoding = Decoding()) -> tuple[int, int]:  # noqa: B008  # frozen
    """(height, width) as :func:`decode` will give it, without decoding.

    Raises:
        UnreadableError: the header cannot be read, or promises more than ``decoding.refuse_pixels``.
    """
    try:
        if isinstance(photo, np.ndarray):
            size = _checked_pixels(photo).shape[:2]
        else:
            with _open(photo, decoding) as picture:
                size = _upright_size(picture, decoding)
    except Exception as error:
        raise _unreadable(error) from None
    height, width = decoding.scaled(size).tolist()
    return height, width


def decode(
    photo: Photo,
    decoding: Decoding = Decoding(),  # noqa: B008  # frozen
    *,
    recorded: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    mirrored: bool = False,
    turned: bool = False,
) -> np.ndarray:
    """The pixels, uint8 ``[height, width, 3]``; ``[width, height, 3]`` of a turned picture.

    Args:
        photo: what to decode.
        decoding: how.
        recorded: the (height, width) that :func:`photo_size` gave when the collection was recorded.
        size: the (height, width) wanted, antialiased; None: as the policy gives it.
        mirrored: left to right.
        turned: with its axes swapped, after all else.

    Raises:
        UnreadableError: whatever went wrong: no file, no picture, truncated, too large, not as recorded.
    """
    try:
        if isinstance(photo, np.ndarray):
            photo = Image.fromarray(_checked_pixels(photo))
        with _open(photo, decoding) as picture:
            height, width = decoding.scaled(_upright_size(picture, decoding)).tolist()
            if recorded is not None and (height, width) != tuple(recorded):
                raise UnreadableError(
                    f"is {height}x{width} pixels (height x width), but was recorded as "
                    f"{recorded[0]}x{recorded[1]}"
                )
            height, width = size or (height, width)
            orientation = _orientation(picture)
            stored = (height, width) if orientation in _SWAPPED else (width, height)
            if stored[0] < picture.width:  # a JPEG decoder can give a half, quarter or eighth
                picture.draft(None, (2 * stored[0], 2 * stored[1]))  # pyright: ignore[reportArgumentType]
            picture = _to_srgb(picture, decoding.background)
        picture = _fitted(picture, stored, decoding)
        moves = [_TO_UPRIGHT.get(orientation)]
        moves += [Image.Transpose.FLIP_LEFT_RIGHT if mirrored else None]
        moves += [Image.Transpose.TRANSPOSE if turned else None]
        for move in moves:  # by Pillow: NumPy takes ten times as long, three bytes at a time
            picture = picture if move is None else picture.transpose(move)
        return _pixels(picture)
    except Exception as error:  # decoders raise anything on odd bytes; none may end a long run
        raise _unreadable(error) from None


def _fitted(picture: Image.Image, size: tuple[int, int], decoding: Decoding) -> Image.Image:
    """At this (width, height), in the way that the policy has for its input."""
    options: Any = {"resample": Image.Resampling.LANCZOS, "reducing_gap": 3}
    if decoding.input == "crop":
        side = min(picture.size) * 7 / 8
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        return picture.resize(size, box=(left, top, left + side, top + side), **options)
    if decoding.input == "pad":
        scale = min(size[0] / picture.width, size[1] / picture.height)
        width, height = (max(1, round(scale * n)) for n in picture.size)
        canvas = Image.new("RGB", size, decoding.background)
        inside = picture.resize((width, height), **options)
        canvas.paste(inside, ((size[0] - width) // 2, (size[1] - height) // 2))
        return canvas
    return picture if picture.size == size else picture.resize(size, **options)


def _pixels(picture: Image.Image) -> np.ndarray:
    """Of an RGB picture, in one piece.

    As ``np.asarray`` gives them, which collects them from pieces of 64 KiB, holding the interpreter lock:
    with two threads that is a tenth of the time of decoding.
    """
    width, height = picture.size
    encoder = Image._getencoder("RGB", "raw", ("RGB", 0, 1))
    encoder.setimage(picture.im, (0, 0, width, height))
    _, _, pixels = encoder.encode(3 * width * height)
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def _open(photo: Any, decoding: Decoding) -> Image.Image:
    if isinstance(photo, Image.Image):
        _check_pixels(photo.size, decoding)  # before it is loaded, if it was not
        return photo.copy()  # the caller's stays open
    if isinstance(photo, bytes):
        return Image.open(io.BytesIO(photo), formats=FORMATS)
    path = path_at(photo)
    if is_address(path):  # asking what is there would be a journey of its own
        return Image.open(path.open("rb"), formats=FORMATS)
    if path.exists() and not path.is_file():
        raise UnreadableError("is no file")
    return Image.open(path, formats=FORMATS)


def _orientation(picture: Image.Image) -> int:
    """Of the file; 1 where Pillow turns the picture by itself, as it does with TIFF."""
    if picture.format == "TIFF":
        return 1
    try:  # the base class's: PNG's own decodes the whole picture, looking for EXIF behind the pixels
        return Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF says nothing, whatever Pillow raises over it; the picture stands
        return 1


def _upright_size(picture: Image.Image, decoding: Decoding) -> tuple[int, int]:
    _check_pixels(picture.size, decoding)
    if isinstance(picture, ImageFile.ImageFile) and [t for t in picture.tile if t.codec_name == "ppm_plain"]:
        raise UnreadableError("is a PPM of plain text, which takes minutes to read: convert it")
    width, height = picture.size
    return (width, height) if _orientation(picture) in _SWAPPED else (height, width)


def _check_pixels(size: tuple[int, int], decoding: Decoding) -> None:
    width, height = size
    if width * height > decoding.refuse_pixels:
        raise UnreadableError(f"has {width}x{height} pixels, more than {decoding.refuse_pixels:,}")


def _to_srgb(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """RGB of any mode, by the picture's own profile."""
    profile = picture.info.get("icc_profile")
    picture.load()
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode == "I":  # 16-bit samples in 32 bits
        picture = Image.fromarray((np.clip(np.asarray(picture), 0, 2**16 - 1) >> 8).astype(np.uint8))
    elif picture.mode == "F":
        samples = np.array(picture)
        del picture  # of the size of a float a sample: none of them twice, where it can be helped
        np.nan_to_num(samples, copy=False)
        samples = (np.clip(samples, 0, 1, out=samples) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        picture = Image.fromarray(samples)
    elif picture.mode == "LAB":
        profile = profile or ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode not in ("L", "RGB", "CMYK"):
        picture = picture.convert("RGB")
    if profile:
        picture = _by_profile(picture, profile)
    if picture.mode == "RGBA":
        base = Image.new("RGB", picture.size, background)
        base.paste(picture, mask=picture.getchannel("A"))
        return base
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _by_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    """The picture in sRGB; where the profile is broken, or of other colours than the picture, as it is."""
    try:
        transform = _transform(profile, picture.mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture
    return picture if transform is None else transform.apply(picture)


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if ImageCms.getProfileDescription(given).startswith("sRGB"):
        return None
    return ImageCms.buildTransform(given, _SRGB, mode, "RGBA" if mode == "RGBA" else "RGB")


def _checked_pixels(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise UnreadableError(
            f"is an array {pixels.dtype}{list(pixels.shape)}, expected uint8 [height, width, 3]"
        )
    return pixels


def _unreadable(error: Exception) -> UnreadableError:
    if isinstance(error, UnreadableError):
        return error
    if isinstance(error, FileNotFoundError):
        return UnreadableError("there is no such file")
    if isinstance(error, Image.UnidentifiedImageError):
        return UnreadableError("is no picture in a format that can be read")
    return UnreadableError(" ".join(f"{type(error).__name__}: {error}".split()))
