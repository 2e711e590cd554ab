"""A photograph in, its pixels out: uint8 sRGB ``[height, width, 3]``, EXIF orientation applied.

Colours go to sRGB by the file's own profile; alpha is laid over a stated background; samples of more than 8
bits lose their lower ones, floating ones are taken to lie in 0 to 1; an animation gives its first frame. A
picture of more pixels than a policy allows is scaled down, its aspect ratio kept. Sizes are in pixels, height
before width, and read from the header alone. docs/formats.md has a table of what is read, and how.

Files are decoded in processes of their own, so that whatever is in one, it takes at most the policy's
``refuse_seconds`` of processor time and a gigabyte of memory (see `spp_jax.data.isolation`). A picture that
was opened or decoded elsewhere is taken as it is, in this process.
"""

import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterator
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image

from spp_jax.addresses import is_address, path_at
from spp_jax.config import ANY_SIZE, Decoding
from spp_jax.data.decoder_process import anonymous_file
from spp_jax.data.exif import Facts, facts_of, told
from spp_jax.data.isolation import Answer, isolated
from spp_jax.data.pixels import FORMATS, Wish, as_unreadable, finish, upright_size
from spp_jax.data.unreadable import UnreadableError

__all__ = [
    "FORMATS",
    "Facts",
    "Photo",
    "UnreadableError",
    "decode",
    "decoded",
    "listed",
    "one_photo",
    "photo_facts",
    "photo_name",
    "photo_size",
]

Photo: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray"
)
"""A file, a file's bytes, a file opened for reading bytes, an opened picture, or uint8 pixels
``[height, width, 3]``."""

_HEADER = 2**19  # bytes of a file at an address that most often tell its size
_LARGEST = 10**9  # bytes of a file that is read into memory


def photo_name(photo: Photo, index: int) -> str:
    """What to call a photograph in messages: its path, or its place in the collection."""
    return str(photo) if isinstance(photo, str | os.PathLike) else f"photograph {index}"


def listed(photos: Any) -> list[Photo]:
    """The photographs of an iterable.

    Raises:
        TypeError: it is itself a photograph, whose letters, bytes or rows are none.
    """
    single = isinstance(photos, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    if single or hasattr(photos, "read") or (isinstance(photos, np.ndarray) and photos.ndim < 4):
        raise TypeError(f"photos must be an iterable of photographs, not one of them: [{_kind(photos)}]")
    return list(photos)


def one_photo(photo: Any) -> Photo:
    """The photograph.

    Raises:
        TypeError: it is a list of them.
    """
    if isinstance(photo, list | tuple | set):
        raise TypeError(f"photo must be one photograph, not a {_kind(photo)} of them")
    return photo


def photo_size(photo: Photo, decoding: Decoding = Decoding()) -> tuple[int, int]:  # noqa: B008  # frozen
    """(height, width) as :func:`decode` will give it, without decoding.

    Raises:
        UnreadableError: the header cannot be read, or promises more than ``decoding.refuse_pixels``.
    """
    try:
        with _read(photo, Wish(pixels=False), decoding) as (size, _, _):
            height, width = size[:2]
    except Exception as error:
        raise _unreadable(error) from None
    return height, width


def photo_facts(photo: Photo, decoding: Decoding = Decoding()) -> Facts:  # noqa: B008  # frozen
    """Size, time, camera and stars, by the header alone; of a raw file, half the sensor's size.

    Nothing is refused for its size, and what cannot be read has no facts. It takes no longer than the
    policy's ``refuse_seconds``.
    """
    limits = dataclasses.replace(ANY_SIZE, refuse_seconds=decoding.refuse_seconds)
    try:
        with _read(photo, Wish(pixels=False, facts=True), limits) as (size, _, texts):
            return facts_of(size, texts)
    except Exception:  # scoring says what is wrong
        return Facts()


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

    A JPEG that is scaled down is decoded at a half, a quarter or an eighth of its size where that is still
    at least twice the wanted one on both sides, and antialiased from there: what the coarser frequencies
    leave out lies beyond what the wanted size can show.

    Args:
        photo: what to decode.
        decoding: how.
        recorded: the (height, width) that :func:`photo_size` gave when the collection was recorded.
        size: the (height, width) wanted, antialiased; None: as the policy gives it.
        mirrored: left to right.
        turned: with its axes swapped, after all else.

    Raises:
        UnreadableError: whatever went wrong: no file, no picture, truncated, too large, not as recorded,
            more seconds or memory than the policy allows.
    """
    with decoded(photo, decoding, recorded=recorded, size=size, mirrored=mirrored, turned=turned) as pixels:
        return pixels.copy()


@contextlib.contextmanager
def decoded(photo: Photo, decoding: Decoding, **wish: Any) -> Iterator[np.ndarray]:
    """As :func:`decode`, but the pixels are lent: they are gone when the context is left."""
    try:
        stack = contextlib.ExitStack()
        _, pixels, _ = stack.enter_context(_read(photo, Wish(pixels=True, **wish), decoding))
    except Exception as error:
        raise _unreadable(error) from None
    with stack:
        assert pixels is not None
        yield pixels


@contextlib.contextmanager
def _read(photo: Any, wish: Wish, decoding: Decoding) -> Iterator[Answer]:
    if isinstance(photo, np.ndarray):
        photo = _checked_pixels(photo)
        photo = Image.fromarray(photo) if wish.pixels else Image.new("1", photo.shape[1::-1])
    if isinstance(photo, Image.Image):
        yield _of_picture(photo, wish, decoding)
        return
    if not wish.pixels and isinstance(photo, str | os.PathLike) and is_address(photo):
        with path_at(photo).open("rb") as file:  # its first part most often tells
            start: Any = file.read(_HEADER)
        try:
            with _in_memory(start) as opened, isolated(opened, wish, decoding) as found:
                yield found
                return
        except UnreadableError:
            if len(start) < _HEADER:
                raise
    with _opened(photo) as opened, isolated(opened, wish, decoding) as found:
        yield found


def _of_picture(photo: Image.Image, wish: Wish, decoding: Decoding) -> Answer:
    """Of one that was opened elsewhere, which stays open."""
    upright_size(photo, decoding)  # before it is loaded, if it was not
    if wish.pixels:
        photo = photo.copy()
    height, width = decoding.scaled(upright_size(photo, decoding)).tolist()
    if not wish.pixels:
        return (height, width), None, told(photo) if wish.facts else {}
    picture = finish(photo, wish.size or (height, width), wish, decoding)
    return (picture.height, picture.width, 3), np.asarray(picture), {}


@contextlib.contextmanager
def _opened(photo: Any) -> Iterator[int]:
    """A descriptor of the file, to read it from its beginning."""
    if isinstance(photo, bytes | bytearray | memoryview):
        with _in_memory(photo) as file:
            yield file
        return
    if hasattr(photo, "read"):
        with _in_memory(_content(photo)) as file:
            yield file
        return
    if not isinstance(photo, str | os.PathLike):
        raise UnreadableError(
            f"is a {_kind(photo)}, expected a path, bytes, a file opened for reading bytes, a PIL image or a "
            "uint8 array"
        )
    if is_address(photo):
        with path_at(photo).open("rb") as remote, _in_memory(_content(remote)) as file:
            yield file
        return
    file = os.open(photo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer opens too
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise UnreadableError("is no file")
        yield file
    finally:
        os.close(file)


def _kind(photo: Any) -> str:
    return type(photo).__name__


def _content(file: IO[bytes]) -> bytes:
    """All of an opened file, whose place is left as it was."""
    try:
        before = file.tell()
        file.seek(0)
        content = file.read(_LARGEST + 1)
        file.seek(before)
    except (OSError, AttributeError):
        raise UnreadableError("is a stream, which can be read but once: give its bytes") from None
    if not isinstance(content, bytes):
        raise UnreadableError("is a file opened for text: open it with 'rb'")
    if len(content) > _LARGEST:
        raise UnreadableError(f"has more than {_LARGEST:,} bytes")
    return content


@contextlib.contextmanager
def _in_memory(content: Any) -> Iterator[int]:
    """A descriptor of a file without a name that holds these bytes."""
    file = anonymous_file("photograph")
    try:
        left = memoryview(content).cast("B")
        while left:
            left = left[os.write(file, left) :]
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def _checked_pixels(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise UnreadableError(
            f"is an array {pixels.dtype}{list(pixels.shape)}, expected uint8 [height, width, 3]"
        )
    return pixels


def _unreadable(error: Exception) -> UnreadableError:
    if isinstance(error, FileNotFoundError) or (isinstance(error, ValueError) and "null" in str(error)):
        return UnreadableError("there is no such file")
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return UnreadableError(f"cannot be opened: {error.strerror}")
    return as_unreadable(error)
