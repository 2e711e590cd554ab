"""One run, one process that writes: a lock on the folder, which the system takes back from who crashes."""

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path

from spp_jax.addresses import is_address
from spp_jax.errors import UsageError

__all__ = ["RunLock", "check_free"]

_log = logging.getLogger(__name__)
_NAME = "lock"


class RunLock:
    """The right to write into a run's folder. Use as a context.

    The folder is made, and goes again where nothing else was written to it. At an address, and on a file
    system without locks, there is none: that is said, and the run goes on.

    Example:
        >>> with RunLock(Path("runs/first")):  # doctest: +SKIP
        ...     ...  # a second one here raises UsageError
    """

    def __init__(self, folder: Path):
        """Take nothing yet."""
        self._folder, self._file, self._made = folder, None, False

    def __enter__(self) -> "RunLock":
        """Take it.

        Raises:
            UsageError: another process has it.
            OSError: the folder cannot be made or written.
        """
        if is_address(self._folder):
            _log.info(f"{self._folder}: no lock there; see that no other process trains into it")
            return self
        self._made = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = os.open(self._folder / _NAME, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(file, self._folder)
            except BaseException:
                os.close(file)
                raise
            with contextlib.suppress(FileNotFoundError):  # whoever had it removed it meanwhile
                if os.path.samestat(os.fstat(file), os.stat(self._folder / _NAME)):
                    self._file = file
                    continue
            os.close(file)
        return self

    def __exit__(self, *exception) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            (self._folder / _NAME).unlink()
        os.close(self._file)
        self._file = None
        if self._made:
            with contextlib.suppress(OSError):  # not empty: a run is there
                self._folder.rmdir()


def check_free(folder: Path) -> None:
    """Whether nobody trains into this folder just now; changes nothing.

    Raises:
        UsageError: somebody does.
    """
    if is_address(folder):
        return
    try:
        file = os.open(folder / _NAME, os.O_RDWR)
    except OSError:  # there is none, or it cannot be written: the run will say so
        return
    try:
        _lock(file, folder)
    finally:
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UsageError(
                f"another process trains into {folder}: wait for its end, or name another folder (out)", "out"
            ) from None
        _log.warning(
            f"{folder} cannot be locked ({error.strerror}); see that no other process trains into it"
        )
