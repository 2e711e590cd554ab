"""A file that is there whole or not at all: written beside its place, hidden, and then given its name."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["part_beside", "write_whole", "written_whole"]

_NAMED = 50  # characters of a name by which its part is known: no more than 200 bytes of the 255 of a name


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the path that a file is written to; it has its own name when the context ends without an error.

    It ends with an error: the file is what it was before, and nothing is left. Threads and processes may
    write the same file; it is then what one of them wrote.

    Args:
        path: on a disk or at an address. A file there is replaced, a link too.

    Raises:
        OSError: the name cannot be given.

    Example:
        >>> with written_whole(Path("scores.npz")) as part, part.open("wb") as file:  # doctest: +SKIP
        ...     np.savez(file, scores=scores)
    """
    with part_beside(path) as part:
        yield part
        part.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, as :func:`written_whole` does.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> write_whole(Path("metrics.json"), b"{}")  # doctest: +SKIP
    """
    with written_whole(path) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def part_beside(path: Path) -> Iterator[Path]:
    """Give a hidden path beside this one, which nobody else writes to; what is there at the end goes.

    For a file that shall have its name otherwise than by replacing what has it now.
    """
    part = path.with_name(f".{path.name[:_NAMED]}.{os.urandom(8).hex()}.part")
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is to be told
            part.unlink(missing_ok=True)
