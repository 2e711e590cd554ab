"""Decoders in processes of their own: whatever is in a file, it takes its limits and no more.

A codec holds no promises about an odd file: 28 KB can ask for gigabytes, or for minutes. Here it runs in a
process that the system stops at so many seconds of processor time and that gets no more than so much memory;
the picture is then named, the process replaced, and the others go on meanwhile. Processes start when they
are first needed, one for each thread that decodes at the same time, and end with ours, however that ends. A
file goes there as an open descriptor and its pixels come back in memory that both see, so that neither is
copied through a pipe, and nothing has a name that could be left behind.

Where no process can be started, as under some limits of containers, files are decoded in ours, without
these limits, and that is logged.
"""

import atexit
import contextlib
import json
import logging
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from spp_jax.config import Decoding
from spp_jax.data.decoder_process import anonymous_file
from spp_jax.data.pixels import Wish, answer
from spp_jax.data.unreadable import UnreadableError

Answer: TypeAlias = tuple[tuple[int, ...], np.ndarray | None, dict[str, str]]
"""Size, pixels and what the header told: see `spp_jax.data.pixels.Answer`."""

__all__ = ["Answer", "isolated"]

_LOG = logging.getLogger(__name__)
_LONGEST = 65536  # bytes of a message
_SHARED = (
    2**24
)  # bytes of memory that is shared with a decoder for good: larger pictures take more, each time
# One thread and one pool of memory: what more of them set aside would count as used. And freed memory is
# kept for the next picture: fresh memory costs a tenth of the time of decoding.
_FOR_ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**25),
}
_PACKAGE = Path(__file__).parents[1]
# The packages' own __init__ would load JAX, which takes seconds and hundreds of megabytes: bare ones stand
# for them. The search path is ours: what we import, the decoder does, and nothing from the working folder.
_START = """
import json, sys, types
path, packages = json.loads(sys.argv[1])
sys.path[:] = path
for name, folder in packages.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from spp_jax.data.decoder_process import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


@contextlib.contextmanager
def isolated(file: int, wish: Wish, decoding: Decoding) -> Iterator[Answer]:
    """What :func:`spp_jax.data.pixels.answer` gives for a file, found by a process of its own.

    Args:
        file: a descriptor of the open file, which stays open.
        wish: what is wanted of it.
        decoding: how.

    Yields:
        The size, the pixels where they are wanted (uint8, to be used before the context is left), and the
        header's texts where these are.

    Raises:
        UnreadableError: why there are none; also of a file that takes more than its limits.
    """
    if why := _known(file, wish, decoding):
        raise UnreadableError(why)
    decoder = _DECODERS.take()
    if decoder is None:
        with os.fdopen(os.dup(file), "rb") as opened:
            size, picture, told = answer(opened, wish, decoding)
        yield size, None if picture is None else np.asarray(picture), told or {}
        return
    try:
        size, pixels, told = decoder.ask(file, wish, decoding)
    except UnreadableError as error:
        _DECODERS.put(decoder)
        if isinstance(error, _OverLimitsError):
            _remember(file, wish, decoding, str(error))
        raise
    except BaseException:  # such as Ctrl-C: the next one would be given this one's reply
        decoder.end()
        _DECODERS.put(decoder)
        raise
    try:
        yield size, pixels, told
    finally:
        del pixels
        _DECODERS.put(decoder)


class _OverLimitsError(UnreadableError):
    """It takes more than its limits: to try again would cost as much."""


_OVER: dict[tuple, str] = {}
"""What was over its limits, by what it was; a file is asked for its size, for its pixels, and each epoch."""
_REMEMBERED = 1000


def _asked(file: int, decoding: Decoding, *wish: Any) -> tuple:
    about = os.fstat(file)
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, decoding, *wish)


def _known(file: int, wish: Wish, decoding: Decoding) -> str | None:
    if not _OVER:
        return None
    size = _OVER.get(_asked(file, decoding, False, None))  # whose size takes too long, its pixels do
    return size or _OVER.get(_asked(file, decoding, wish.pixels, wish.size))


def _remember(file: int, wish: Wish, decoding: Decoding, why: str) -> None:
    with contextlib.suppress(KeyError, RuntimeError):  # another thread did it
        while len(_OVER) >= _REMEMBERED:
            del _OVER[next(iter(_OVER))]
    _OVER[_asked(file, decoding, wish.pixels, wish.size)] = why


class _Decoder:
    """One process, and the socket to it; one picture at a time."""

    def __init__(self):
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        packages = {"spp_jax": str(_PACKAGE), "spp_jax.data": str(_PACKAGE / "data")}
        place = json.dumps([[path for path in sys.path if os.path.isabs(path)], packages])
        self._memory = anonymous_file("pixels")
        os.ftruncate(self._memory, _SHARED)  # takes no memory before it is written
        self._shared = mmap.mmap(self._memory, _SHARED, prot=mmap.PROT_READ)
        handed = [theirs.fileno(), self._memory]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, place, *map(str, handed)],
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # nobody's pipe is held open by it
                stderr=subprocess.DEVNULL,
                env=dict(os.environ, **_FOR_ONE_THREAD),
                cwd="/",
                process_group=0,  # Ctrl-C is for us
            )
            ready = self._ours.recv(_LONGEST)
            if not ready:
                raise OSError(f"a decoder ended at once, with status {self._process.wait()}")
        except BaseException:
            self._ours.close()
            raise
        finally:
            theirs.close()

    def ask(self, file: int, wish: Wish, decoding: Decoding) -> Answer:
        """What is wanted; pixels stay until it is asked again.

        Raises:
            UnreadableError: the reason that it gave; or it ended over the picture.
        """
        message = json.dumps([wish._asdict(), vars(decoding)], default=int).encode()
        try:
            socket.send_fds(self._ours, [message], [file])
            reply, memory, _, _ = socket.recv_fds(self._ours, _LONGEST, 1)
        except (BrokenPipeError, ConnectionResetError):
            reply, memory = b"", []
        if not reply:
            self.end()
            raise _ended(self._process.returncode, decoding)
        found = json.loads(reply)
        if "why" in found:
            raise (_OverLimitsError if found["over"] else UnreadableError)(found["why"])
        size = tuple(found["size"])
        if not wish.pixels:
            return size, None, found.get("told") or {}
        count = math.prod(size)
        if not memory:
            return size, np.frombuffer(self._shared, np.uint8, count).reshape(size), {}
        with os.fdopen(memory[0]) as large:
            shared = mmap.mmap(large.fileno(), count, prot=mmap.PROT_READ)
        return size, np.frombuffer(shared, np.uint8).reshape(size), {}

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return self._process.returncode is not None

    def end(self) -> None:
        """Whatever it is doing."""
        if not self.ended:
            self._process.kill()
            self._process.wait()
        self._close()

    def forget(self) -> None:
        """In a copy of our process: the decoder is the original's."""
        self._process.returncode = 0
        self._close()

    def _close(self) -> None:
        self._ours.close()
        if self._memory >= 0:
            os.close(self._memory)
        self._memory = -1


def _ended(status: int, decoding: Decoding) -> UnreadableError:
    if status in (-signal.SIGPROF, -signal.SIGXCPU):
        return _OverLimitsError(
            f"takes more than {decoding.refuse_seconds:g} seconds of processor time to read"
        )
    if status == -signal.SIGKILL:
        return UnreadableError("takes more memory to read than there is")
    return UnreadableError(f"is damaged, or made to harm: its decoder broke down (status {status})")


class _Decoders:
    """Those that wait for work; as many in all as threads decode at a time."""

    def __init__(self):
        self._free: list[_Decoder] = []
        self._all: set[_Decoder] = set()
        # At least two: one that is stuck for seconds does not hold up all others.
        self._places = threading.BoundedSemaphore(max(2, len(os.sched_getaffinity(0))))
        self._lock = threading.Lock()
        self.may_start = True

    def take(self) -> _Decoder | None:
        """One that is free, or new; None where none can be started."""
        if not self.may_start:
            return None
        self._places.acquire()
        try:
            with self._lock:
                if self._free:
                    return self._free.pop()
            decoder = _Decoder()
            self._all.add(decoder)
            return decoder
        except OSError as error:
            self._places.release()
            if self.may_start:
                _LOG.warning("files are decoded in this process, without limits: %s", error)
            self.may_start = False
            return None
        except BaseException:
            self._places.release()
            raise

    def put(self, decoder: _Decoder) -> None:
        """Give one back, or what is left of it."""
        with self._lock:
            (self._all.discard if decoder.ended else self._free.append)(decoder)
        self._places.release()

    def end(self) -> None:
        """All of them, also those at work."""
        for decoder in list(self._all):
            decoder.end()

    def forget(self) -> None:
        """In a copy of our process."""
        for decoder in self._all:
            decoder.forget()


_DECODERS = _Decoders()


def _begin_anew() -> None:
    global _DECODERS
    _DECODERS.forget()
    _DECODERS = _Decoders()


atexit.register(lambda: _DECODERS.end())
os.register_at_fork(after_in_child=_begin_anew)
