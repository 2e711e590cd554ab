"""What a decoder's process does: one file after another, each within its limits. See `isolation`.

It imports Pillow and NumPy, and what further a file needs, but nothing of JAX.
"""

import contextlib
import errno
import json
import mmap
import os
import resource
import signal
import socket
import tempfile

from PIL import Image, PngImagePlugin

from spp_jax.config import Decoding
from spp_jax.data.pixels import MEMORY, Wish, answer
from spp_jax.data.unreadable import UnreadableError

__all__ = ["anonymous_file", "main"]

_LONGEST = 65536  # bytes of a message
_PIECE = 2**18  # bytes written at a time


def main(channel: int, shared: int) -> None:
    """Serve until the other side is gone.

    Args:
        channel: descriptor of the socket: a message is a wish with the file's descriptor, and the reply the
            size or why there is none.
        shared: descriptor of memory for the pixels; the reply comes with another one where they are larger.
    """
    requests = socket.socket(fileno=channel)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, whatever the codec is doing
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MEMORY)
    Image.MAX_IMAGE_PIXELS = None  # our own limit is known before it
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # large profiles, and what programs note
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        requests.send(b"ready")
        while True:
            message, files, _, _ = socket.recv_fds(requests, _LONGEST, 1)
            if not message:
                return
            wish, decoding = json.loads(message)
            decoding["background"] = tuple(decoding["background"])
            reply, memory = _serve(files[0], shared, Wish(**wish), Decoding(**decoding))
            socket.send_fds(requests, [json.dumps(reply).encode()], memory)
            for descriptor in memory:
                os.close(descriptor)


def anonymous_file(name: str) -> int:
    """A descriptor of an empty file in memory, or where the system has no such, on a disk; without a path."""
    try:
        return os.memfd_create(name)
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


def _limit(what: int, most: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # a lower one may hold already
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _serve(file: int, shared: int, wish: Wish, decoding: Decoding) -> tuple[dict, list[int]]:
    """The reply, and the descriptor that goes with it."""
    signal.setitimer(signal.ITIMER_PROF, decoding.refuse_seconds)
    try:
        with os.fdopen(file, "rb") as opened:
            size, picture, told = answer(opened, wish, decoding)
        if picture is None:
            return {"size": size, "told": told}, []
        if 3 * picture.width * picture.height <= os.fstat(shared).st_size:
            os.lseek(shared, 0, os.SEEK_SET)
            _write(picture, shared)
            return {"size": size}, []
        return {"size": size}, [_file_of(picture)]
    except UnreadableError as error:
        return {"why": str(error)[:2000], "over": False}, []
    except MemoryError:
        return {"why": f"takes more than {MEMORY / 1e9:g} GB of memory to read", "over": True}, []
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _file_of(picture: Image.Image) -> int:
    """A descriptor of a file in memory with the pixels; which counts as memory of ours.

    Raises:
        MemoryError: it is more than is left.
    """
    count = 3 * picture.width * picture.height
    large = anonymous_file("pixels")
    try:
        os.ftruncate(large, count)
        with mmap.mmap(large, count):  # only so that the limit holds for both: the other side has it next
            _write(picture, large)
    except OSError as error:
        os.close(large)
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError from None
    return large


def _write(picture: Image.Image, file: int) -> None:
    """The pixels of an RGB picture, piece by piece: never twice in whole."""
    encoder = Image._getencoder("RGB", "raw", ("RGB", 0, 1))
    encoder.setimage(picture.im, (0, 0, *picture.size))
    encoder.encode_to_file(file, max(_PIECE, 3 * picture.width))
