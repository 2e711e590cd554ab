"""Cameras' raw files, by rawpy (LibRaw): ``pip install 'spp_jax[raw]'``.

A raw photograph is used at half its side: each pixel is made of one cell of the sensor's colour mosaic, so
that nothing is invented between them. Where a policy asks for less than the camera's own embedded preview
holds, the preview is taken: it is what the camera shows, and quick. Else the mosaic is developed with the
camera's white balance, to 8 bits in sRGB.
"""

import contextlib
import io
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from spp_jax.data import exif
from spp_jax.data.unreadable import UnreadableError

__all__ = ["ENDINGS", "develop", "is_raw", "is_raw_tiff", "raw_size", "told"]

ENDINGS = (
    *(".3fr", ".ari", ".arw", ".bay", ".cap", ".cr2", ".cr3", ".crw", ".cs1", ".dcr", ".dcs", ".dng"),
    *(".drf", ".eip", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mdc", ".mef", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".ori", ".pef", ".ptx", ".pxn", ".raf", ".raw", ".rw2", ".rwl", ".rwz"),
    *(".sr2", ".srf", ".srw", ".sti", ".x3f"),
)
"""How the names of raw files end."""

_STARTS = (
    *((0, b"FUJIFILMCCD-RAW"), (8, b"CR\x02"), (4, b"ftypcrx "), (0, b"IIRO"), (0, b"IIRS"), (0, b"MMOR")),
    *((0, b"IIU\0"), (0, b"\0MRM"), (0, b"FOVb"), (6, b"HEAPCCDR")),
)
_DNG_VERSION, _SUBFILE, _SUB_IFDS, _MAKE, _PHOTOMETRIC = 50706, 254, 330, 271, 262
_OF_SENSORS = (32803, 34892)  # colour filter array, linear raw


def is_raw(start: bytes) -> bool:
    """Whether a file begins like a raw file that is no TIFF to Pillow."""
    return any(start[at : at + len(what)] == what for at, what in _STARTS)


def is_raw_tiff(picture: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether an opened TIFF is a raw file: its first page is then but a small preview, or of the sensor."""
    tags = picture.tag_v2
    previewed = bool(tags.get(_SUBFILE, 0) & 1) and _SUB_IFDS in tags and _MAKE in tags
    return previewed or _DNG_VERSION in tags or tags.get(_PHOTOMETRIC) in _OF_SENSORS


def raw_size(file: BinaryIO) -> tuple[int, int]:
    """(height, width) as :func:`develop` gives it, upright.

    Raises:
        UnreadableError: rawpy is not installed, or cannot read it.
    """
    with _opened(file) as opened:
        return _size(opened)


def develop(file: BinaryIO, wanted: tuple[int, int]) -> Image.Image:
    """An upright RGB picture, of :func:`raw_size`, or the larger preview where that holds what is wanted.

    Args:
        file: seekable.
        wanted: (height, width) that is used.

    Raises:
        UnreadableError: see :func:`raw_size`.
    """
    import rawpy

    with _opened(file) as opened:
        height, width = _size(opened)
        if wanted[0] < height or wanted[1] < width:
            preview = _preview(opened, (height, width))
            if preview is not None and preview.height >= wanted[0] and preview.width >= wanted[1]:
                return preview
        try:
            pixels = opened.postprocess(half_size=True, use_camera_wb=True, output_bps=8)
        except (rawpy.LibRawError, rawpy.NotSupportedError) as error:
            raise _refused(error) from None
    picture = Image.fromarray(pixels)
    return picture if pixels.shape[:2] == (height, width) else picture.resize((width, height))


def told(file: BinaryIO) -> dict[str, str]:
    """Texts as :func:`spp_jax.data.exif.told` gives them: of its own EXIF, its preview's, or by LibRaw."""
    file.seek(0)
    try:
        found = exif.told(Image.open(file, formats=("TIFF",)))
    except Exception:  # no TIFF, or a broken one
        found = {}
    if "taken" in found:
        return found
    with _opened(file) as opened:
        with contextlib.suppress(Exception):  # no preview that tells anything
            preview = io.BytesIO(bytes(opened.extract_thumb().data))
            found = exif.told(Image.open(preview, formats=("JPEG",))) | found
        moment = getattr(getattr(opened, "other", None), "timestamp", None)
        if "taken" not in found and moment is not None and moment.year > 1970:
            found["taken"] = moment.strftime("%Y:%m:%d %H:%M:%S")
    return found


def _opened(file: BinaryIO):
    try:
        import rawpy
    except ModuleNotFoundError:
        raise UnreadableError("is a camera's raw file: pip install 'spp_jax[raw]' to read it") from None
    file.seek(0)
    try:
        return rawpy.imread(file)
    except (rawpy.LibRawError, rawpy.NotSupportedError) as error:
        raise _refused(error) from None


def _refused(error: Exception) -> UnreadableError:
    said = error.args[0] if error.args else error
    said = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return UnreadableError(f"is a camera's raw file that cannot be read: {' '.join(said.split())}")


def _size(opened) -> tuple[int, int]:
    sizes = opened.sizes
    height, width = -(-sizes.height // 2), -(-sizes.width // 2)
    return (width, height) if sizes.flip in (5, 6) else (height, width)


def _preview(opened, size: tuple[int, int]) -> Image.Image | None:
    """The embedded one, upright; None where there is none of the picture's own shape."""
    import rawpy

    try:
        found = opened.extract_thumb()
        if found.format == rawpy.ThumbFormat.JPEG:
            preview = Image.open(io.BytesIO(found.data), formats=("JPEG",))
            preview.load()
        else:
            preview = Image.fromarray(np.asarray(found.data))
        preview = preview.convert("RGB")
    except Exception:  # previews are an addition: whatever is wrong with one, the mosaic is there
        return None
    turned = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.ROTATE_90, 6: Image.Transpose.ROTATE_270}
    if opened.sizes.flip in turned:  # its own EXIF says the same, where it has any
        preview = preview.transpose(turned[opened.sizes.flip])
    alike = abs(preview.width * size[0] - preview.height * size[1]) <= 0.02 * preview.width * size[0]
    return preview if alike else None
