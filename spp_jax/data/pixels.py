"""An open file in, an upright picture in sRGB out; what `decoding` promises is made here.

Needs Pillow and NumPy alone, and neither paths nor JAX: a decoder's process imports nothing else.
"""

import functools
import io
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

from spp_jax.config import Decoding
from spp_jax.data import raw
from spp_jax.data.exif import exif_of, told
from spp_jax.data.unreadable import UnreadableError

try:  # HEIC and HEIF are read where this plugin is installed (pip install 'spp_jax[heif]')
    import pillow_heif
except ModuleNotFoundError:
    pass
else:
    pillow_heif.register_heif_opener()

__all__ = [
    "FORMATS",
    "HEIF_BRANDS",
    "MEMORY",
    "Answer",
    "Wish",
    "answer",
    "as_unreadable",
    "check_pixels",
    "finish",
    "upright_size",
]

MEMORY = 10**9
"""Bytes that a decoder's process may take in all, its own code included."""

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
_STRIP = 2**20  # pixels converted at a time: no copy of the whole in a wider mode
_PLAIN = 10**6  # pixels of a PPM of plain text that can be read in time
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class Wish(NamedTuple):
    """What is wanted of a file.

    Attributes:
        pixels: the picture, and not its size alone.
        recorded: the (height, width) that it must have; None: any.
        size: the (height, width) at which it is wanted; None: as the policy gives it.
        mirrored: left to right.
        turned: with its axes swapped, after all else.
        facts: without pixels: what the header tells beside the size.
    """

    pixels: bool
    recorded: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    mirrored: bool = False
    turned: bool = False
    facts: bool = False


class Answer(NamedTuple):
    """What a file gives.

    Attributes:
        size: (height, width) of its picture, or the shape of its pixels.
        picture: in RGB, where pixels are wanted.
        told: texts of its header, where these are wanted; see :func:`spp_jax.data.exif.told`.
    """

    size: tuple[int, ...]
    picture: Image.Image | None = None
    told: dict[str, str] | None = None


def answer(file: BinaryIO, wish: Wish, decoding: Decoding) -> Answer:
    """What is wanted of a file's picture.

    Raises:
        UnreadableError: whatever went wrong.
        MemoryError: so much of it cannot be had.
    """
    try:
        start = file.read(64)
        file.seek(0)
        source: Any = file if raw.is_raw(start) else _open(file, start)
        if not isinstance(source, Image.Image):
            height, width = raw.raw_size(file)
            check_pixels((width, height), decoding)
        else:
            height, width = upright_size(source, decoding)
        height, width = decoding.scaled((height, width)).tolist()
        if not wish.pixels:
            return Answer((height, width), told=_told(source, file) if wish.facts else None)
        _check_recorded((height, width), wish)
        wanted = (wish.size[0], wish.size[1]) if wish.size else (height, width)
        if not isinstance(source, Image.Image):
            source = raw.develop(file, wanted)
        picture = finish(source, wanted, wish, decoding)
        return Answer((picture.height, picture.width, 3), picture)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on odd bytes; none may end a long run
        raise as_unreadable(error) from None


def _told(source: Image.Image | BinaryIO, file: BinaryIO) -> dict[str, str]:
    return told(source) if isinstance(source, Image.Image) else raw.told(file)


def _check_recorded(size: tuple[int, int], wish: Wish) -> None:
    if wish.recorded is not None and size != tuple(wish.recorded):
        raise UnreadableError(
            f"is {size[0]}x{size[1]} pixels (height x width), but was recorded as "
            f"{wish.recorded[0]}x{wish.recorded[1]}"
        )


def finish(picture: Image.Image, wanted: tuple[int, int], wish: Wish, decoding: Decoding) -> Image.Image:
    """An opened picture, decoded, as a policy wants it: RGB, upright, of this (height, width).

    At most 12 bytes a pixel of the file are in use at a time: the picture as decoded and one copy of it.
    """
    orientation = _orientation(picture)
    stored = wanted if orientation in _SWAPPED else (wanted[1], wanted[0])
    if stored[0] < picture.width:  # a JPEG decoder can give a half, quarter or eighth
        needed = [2 * side for side in stored]
        if decoding.input == "crop":  # of which 7/8 of the shorter side are used
            needed = [-(-8 * side // 7) for side in needed]
        picture.draft(None, tuple(needed))  # pyright: ignore[reportArgumentType]
    picture = _in_place_of(picture, _to_srgb(picture, decoding.background))
    picture = _in_place_of(picture, _fitted(picture, stored, decoding))
    moves = [_TO_UPRIGHT.get(orientation)]
    moves += [Image.Transpose.FLIP_LEFT_RIGHT if wish.mirrored else None]
    moves += [Image.Transpose.TRANSPOSE if wish.turned else None]
    for move in moves:  # by Pillow: NumPy takes ten times as long, three bytes at a time
        picture = picture if move is None else _in_place_of(picture, picture.transpose(move))
    return picture


def _in_place_of(old: Image.Image, new: Image.Image) -> Image.Image:
    """The new one, the old one's memory being free by now, whoever still refers to it."""
    if new is not old:
        old.close()
    return new


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


# Opening --------------------------------------------------------------------------------------------------


def _open(file: BinaryIO, start: bytes) -> Image.Image | BinaryIO:
    """The opened picture; the file itself where it is a camera's raw file."""
    try:
        picture: Any = Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UnreadableError(_unknown(start)) from None
    if picture.format == "TIFF":
        if raw.is_raw_tiff(picture):
            return file
        _to_whole_page(picture)
    if picture.format == "PNG":
        _read_late_chunks(picture, file)
    return picture


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEPTHS = "of an unusual depth (such as 10 or 14 bits, or floats in colours)"
_LOOKS = (  # what is not read, and what to say of it: offset, bytes
    (0, b"8BPS", "is a Photoshop file, which is not read: export it"),
    (0, b"\0\0\1\0", "is an icon (.ico), which is not read: convert it"),
    (0, b"%PDF", "is a PDF, which is not read: export its pictures"),
    (0, b"%!PS", "is PostScript, which is not read: convert it"),
    (0, b"\xff\x0a", "is JPEG XL, which is not read: convert it"),
    (4, b"JXL ", "is JPEG XL, which is not read: convert it"),
    (0, b"\x76\x2f\x31\x01", "is OpenEXR, which is not read: convert it"),
    (0, b"DDS ", "is a texture (.dds), which is not read: convert it"),
    (0, b"gimp xcf", "is a GIMP file, which is not read: export it"),
    (0, b"#?RADIANCE", "is Radiance HDR, which is not read: convert it"),
    (0, b"PF", "is a PFM of colours, which is not read: convert it"),
    *((0, start, f"is a TIFF {_DEPTHS}, which is not read: convert it") for start in _TIFF),
)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIF_BRANDS = (*_HEIC_BRANDS, b"avif", b"avis", b"crx ")
"""What stands after ``ftyp`` in pictures of the HEIF family, and in Canon's raw files."""


def _unknown(start: bytes) -> str:
    """Why a file that begins so gives no picture."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS and "HEIF" not in FORMATS:
        return "is HEIC: pip install 'spp_jax[heif]' to read it"
    if start[4:12] == b"ftypavif" and "AVIF" not in FORMATS:
        return "is AVIF, which this Pillow was built without"
    for at, what, said in _LOOKS:
        if start[at : at + len(what)] == what:
            return said
    return "is no picture in a format that can be read"


def _to_whole_page(picture: Any) -> None:
    """From a page that is marked as a reduced one, to the first that is not."""
    subfile = ExifTags.Base.NewSubfileType
    if not picture.tag_v2.get(subfile, 0) & 1:
        return
    for page in range(1, 16):
        try:
            picture.seek(page)
        except EOFError:
            break
        if not picture.tag_v2.get(subfile, 0) & 1:
            return
    picture.seek(0)


def _read_late_chunks(picture: Image.Image, file: BinaryIO) -> None:
    """EXIF and XMP of a PNG from behind its pixels, which Pillow finds once these are decoded."""
    place = file.tell()
    file.seek(8)
    seen = False
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        length, name = struct.unpack(">I4s", head)
        seen = seen or name == b"IDAT"
        if seen and name == b"eXIf" and length < 2**20:
            picture.info["exif"] = b"Exif\0\0" + file.read(length)
            length = 0
        elif seen and name == b"iTXt" and length < 2**22:
            text = file.read(length)
            if text.startswith(b"XML:com.adobe.xmp\0\0"):
                picture.info["xmp"] = text
            length = 0
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(place)


def _orientation(picture: Image.Image) -> int:
    """Of the file, by EXIF or, where that says nothing, by XMP; 1 where Pillow turns the picture itself."""
    if picture.format == "TIFF":
        return 1
    try:
        return exif_of(picture).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF says nothing, whatever Pillow raises over it; the picture stands
        return 1


def upright_size(picture: Image.Image, decoding: Decoding) -> tuple[int, int]:
    """(height, width) of an opened picture once it is upright.

    Raises:
        UnreadableError: it has too many pixels, or is of a kind that takes minutes.
    """
    check_pixels(picture.size, decoding)
    codecs = [tile.codec_name for tile in getattr(picture, "tile", ())]
    if "ppm_plain" in codecs and picture.width * picture.height > _PLAIN:
        raise UnreadableError("is a PPM of plain text, which takes minutes to read: convert it")
    width, height = picture.size
    swapped = _orientation(picture) in _SWAPPED
    if picture.format == "TIFF" and ExifTags.Base.Orientation not in picture.tag_v2:  # pyright: ignore
        swapped = picture.getexif().get(ExifTags.Base.Orientation) in _SWAPPED  # by XMP, when it is loaded
    return (width, height) if swapped else (height, width)


def check_pixels(size: tuple[int, int], decoding: Decoding) -> None:
    """Refuse a (width, height) of more pixels than the policy allows.

    Raises:
        UnreadableError: it has.
    """
    width, height = size
    if width * height > decoding.refuse_pixels:
        raise UnreadableError(f"has {width}x{height} pixels, more than {decoding.refuse_pixels:,}")


# Colours --------------------------------------------------------------------------------------------------


def _to_srgb(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """RGB of any mode, by the picture's own profile; converted in strips."""
    profile, gamma = _profile(picture), _gamma(picture)
    picture = _load(picture)
    steps = [*_samples(picture), *_colours(picture, profile, gamma, background)]
    if not steps:
        return picture
    whole = Image.new("RGB", picture.size)
    rows = max(1, _STRIP // picture.width)
    for top in range(0, picture.height, rows):
        part = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        for step in steps:
            part = step(part)
        whole.paste(part, (0, top))
    return whole


def _load(picture: Image.Image) -> Image.Image:
    """Decoded; a PPM of an odd depth not by Pillow, which takes it sample by sample."""
    (tile, *_) = getattr(picture, "tile", None) or (None,)
    if picture.format == "PPM" and tile is not None and tile.codec_name == "ppm":
        return _load_ppm(picture, tile.offset, tile.args[-1])
    picture.load()
    return picture


def _load_ppm(picture: Any, offset: int, most: int) -> Image.Image:
    """Binary samples of 0 to ``most``, as 8 bits."""
    width, height = picture.size
    bands = len(picture.getbands())
    sample = np.dtype("u1" if most < 256 else ">u2")
    whole = Image.new("RGB" if bands == 3 else "L", picture.size)
    rows = max(1, _STRIP // width)
    picture.fp.seek(offset)
    for top in range(0, height, rows):
        count = min(rows, height - top) * width * bands
        data = picture.fp.read(count * sample.itemsize)
        if len(data) < count * sample.itemsize:
            raise OSError("image file is truncated")
        values = np.minimum(np.frombuffer(data, sample).astype(np.uint32), most)
        values = ((values * 510 + most) // (2 * most)).astype(np.uint8)
        shape = (-1, width, 3) if bands == 3 else (-1, width)
        whole.paste(Image.fromarray(values.reshape(shape)), (0, top))
    return whole


def _samples(picture: Any) -> list[Callable[[Image.Image], Image.Image]]:
    """What makes samples of more than 8 bits such of 8."""
    tags = picture.tag_v2 if picture.format == "TIFF" else {}
    inverted = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    if picture.mode.startswith("I;16"):
        return [functools.partial(_from_16_bits, bits=min(bits, 16), inverted=inverted)]
    if picture.mode == "I":
        whole = bits == 32 and tags.get(339, (1,))[0] == 1  # SampleFormat: unsigned
        return [functools.partial(_from_32_bits, unsigned=bool(tags) and whole, inverted=inverted)]
    return [functools.partial(_from_floats, inverted=inverted)] if picture.mode == "F" else []


def _from_16_bits(part: Image.Image, bits: int, inverted: bool) -> Image.Image:
    values = (np.asarray(part) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - values if inverted else values)


def _from_32_bits(part: Image.Image, unsigned: bool, inverted: bool) -> Image.Image:
    samples = np.asarray(part)
    if unsigned:
        values = (samples.view(np.uint32) >> 24).astype(np.uint8)
    else:  # 16-bit samples in 32 bits
        values = (np.clip(samples, 0, 2**16 - 1) >> 8).astype(np.uint8)
    return Image.fromarray(255 - values if inverted else values)


def _from_floats(part: Image.Image, inverted: bool) -> Image.Image:
    samples = np.nan_to_num(np.asarray(part))
    values = (np.clip(samples, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return Image.fromarray(255 - values if inverted else values)


def _colours(
    picture: Image.Image, profile: bytes | None, gamma: float | None, background: tuple[int, int, int]
) -> list[Callable[[Image.Image], Image.Image]]:
    """What makes RGB of a loaded picture's strips, once its samples have 8 bits."""
    mode = "L" if picture.mode.startswith(("I", "F", "1")) else picture.mode
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if mode == "LAB":
        profile = profile or ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    elif picture.has_transparency_data and not _says_nothing(picture):
        mode = "LA" if mode in ("LA", "La") else "RGBA"
    elif mode not in ("L", "RGB", "CMYK"):
        mode = "L" if mode in ("LA", "La") else "RGB"
    if mode != picture.mode:
        steps.append(lambda part: part if part.mode == mode else part.convert(mode))
    colours = "L" if mode == "LA" else mode
    if (transform := _transform_or_none(profile, colours) if profile else None) is not None:
        steps.append(functools.partial(_by_profile, transform=transform))
        mode = {"LA": "RGBA", "L": "RGB", "CMYK": "RGB", "LAB": "RGB"}.get(mode, mode)
    elif gamma is not None and not profile and mode in ("L", "LA", "RGB", "RGBA"):
        steps.append(functools.partial(_by_gamma, gamma=gamma))
    if mode in ("RGBA", "LA"):
        steps.append(functools.partial(_over, background=background))
    elif mode != "RGB":
        steps.append(lambda part: part.convert("RGB"))
    return steps


def _says_nothing(picture: Image.Image) -> bool:
    """Whether the alpha is what writers of BMP and TGA leave in the fourth byte: 0 everywhere.

    Likewise in a TIFF that does not say that its fourth sample is alpha.
    """
    unsaid = picture.format == "TIFF" and ExifTags.Base.ExtraSamples not in picture.tag_v2  # pyright: ignore
    if not (unsaid or picture.format in ("BMP", "DIB", "TGA")) or "A" not in picture.getbands():
        return False
    return picture.getchannel("A").getextrema()[1] == 0


def _by_profile(part: Image.Image, transform: Any) -> Image.Image:
    if part.mode != "LA":
        return transform.apply(part)
    rgb = transform.apply(part.getchannel("L"))
    rgb.putalpha(part.getchannel("A"))
    return rgb


def _by_gamma(part: Image.Image, gamma: float) -> Image.Image:
    """Samples that are light to this power, as sRGB."""
    light = (np.arange(256) / 255) ** (1 / gamma)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = np.rint(255 * curve).astype(int).tolist()
    bands = part.getbands()
    return part.point([i for band in bands for i in (range(256) if band == "A" else table)])


def _over(part: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    base = Image.new("RGB", part.size, background)
    base.paste(part.convert("RGB"), mask=part.getchannel("A"))
    return base


def _profile(picture: Image.Image) -> bytes | None:
    """The profile of the file, or Adobe RGB's where cameras say it as they do, in EXIF alone."""
    if profile := picture.info.get("icc_profile"):
        return profile
    exif = picture.info.get("exif") or b""
    if picture.mode != "RGB" or (b"R03" not in exif and picture.format != "TIFF"):
        return None
    try:
        known = Image.Image.getexif(picture)
        space = known.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = known.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # broken EXIF says nothing
        return None
    named = (
        index.strip("\0 ") if isinstance(index, str) else bytes(index or b"").strip(b"\0 ").decode("latin")
    )
    return adobe_rgb() if named.strip("\0 ") == "R03" and space != 1 else None


@functools.cache
def adobe_rgb() -> bytes:
    """An ICC profile of Adobe RGB (1998), from its primaries (adapted to D50) and its gamma of 563/256."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))

    tags = {
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.95045, 1, 1.08905),
        b"rXYZ": b"XYZ \0\0\0\0" + fixed(0.60974, 0.31111, 0.01947),
        b"gXYZ": b"XYZ \0\0\0\0" + fixed(0.20528, 0.62567, 0.06087),
        b"bXYZ": b"XYZ \0\0\0\0" + fixed(0.14919, 0.06322, 0.74457),
        b"desc": b"desc\0\0\0\0\0\0\0\x06Adobe\0".ljust(96, b"\0"),
        b"cprt": b"text\0\0\0\0none\0".ljust(16, b"\0"),
    }
    curve = struct.pack(">4sIIH2x", b"curv", 0, 1, 563)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


def _gamma(picture: Image.Image) -> float | None:
    """The exponent that a PNG states in place of a profile, where it is another than sRGB's."""
    gamma = picture.info.get("gamma")
    if picture.format != "PNG" or "srgb" in picture.info or not gamma or abs(gamma - 1 / 2.2) < 0.02:
        return None
    return gamma if 0.1 < gamma < 10 else None


def _transform_or_none(profile: bytes, mode: str) -> Any:
    """To sRGB; None where it changes nothing, is broken, or of other colours than the picture."""
    try:
        return _transform(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(given, _SRGB, mode, "RGBA" if mode == "RGBA" else "RGB")
    if mode not in ("L", "RGB", "RGBA"):
        return transform
    probe = _probe().convert(mode)
    wanted = np.asarray(probe.convert("RGB"), np.int16)
    found = np.asarray(transform.apply(probe).convert("RGB"), np.int16)
    return None if np.abs(found - wanted).max() <= 1 else transform


@functools.cache
def _probe() -> Image.Image:
    """Greys and colours by which a profile is known for sRGB's, whatever it is called."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, -1, 3)
    return Image.fromarray(np.concatenate([colours, greys], axis=1))


def as_unreadable(error: Exception) -> UnreadableError:
    """Any error of a decoder, in one line."""
    if isinstance(error, UnreadableError):
        return error
    if isinstance(error, OSError) and "broken data stream" in str(error):  # OpenJPEG's of both
        return UnreadableError(f"is damaged, or takes more than {MEMORY / 1e9:g} GB of memory to read")
    if isinstance(error, Image.UnidentifiedImageError):
        return UnreadableError(_unknown(b""))
    return UnreadableError(" ".join(f"{type(error).__name__}: {error}".split()))
