"""What the commands for one photograph share: their options, the file to write, and what cannot be read."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import tyro

from spp_jax.cli.arguments import AnyPath
from spp_jax.compilation import default_cache_dir, use_compilation_cache
from spp_jax.data.decoding import UnreadableError
from spp_jax.errors import SppJaxError, UsageError
from spp_jax.scoring import DEFAULT, Scorer, judge_of

__all__ = ["OnePhoto", "new_file", "read_errors"]


@dataclasses.dataclass(frozen=True)
class OnePhoto:
    """A photograph, and who judges it by what."""

    photo: tyro.conf.Positional[AnyPath]
    """The photograph. It is left as it is."""
    out: Path | None = None
    """The file to write. Default: no file, only what is printed."""
    checkpoint: AnyPath | None = None
    """Folder of a run, the --out of spp-jax train. Default: the judge that --judge names."""
    judge: str = DEFAULT
    """A judge that ships: quality, beauty, all (both of them), or compact, a small one."""
    attribute: str | None = None
    """What counts, of what the judge judges, such as beauty. Default: the first."""
    overwrite: bool = False
    """Replace the file --out if it is there."""
    cache_dir: str = default_cache_dir()
    """Folder for compiled programs, or gs://... Whoever can write there can run programs as you. Default:
    $JAX_COMPILATION_CACHE_DIR, or a folder that is private to you."""

    def scorer(self) -> Scorer:
        """The judge; its programs are kept in the folder for them."""
        use_compilation_cache(self.cache_dir)
        return judge_of(self.judge, self.checkpoint)


def new_file(out: Path, photo: Path, overwrite: bool) -> None:
    """Refuse a file that is the photograph, is there already, or has no folder.

    Raises:
        UsageError: says which.
    """
    if not out.parent.is_dir():
        raise UsageError(f"out {out}: there is no folder {out.parent}", "out")
    if out.exists():
        if os.path.exists(photo) and os.path.samefile(out, photo):
            raise UsageError(f"out {out} is the photograph itself, which is left as it is", "out")
        if not overwrite:
            raise UsageError(f"out {out} is there already; add --overwrite to replace it", "out")


@contextlib.contextmanager
def read_errors(photo: Path) -> Iterator[None]:
    """Name the photograph in what says that it cannot be read.

    Raises:
        SppJaxError: it cannot be.
    """
    try:
        yield
    except UnreadableError as error:
        raise SppJaxError(f"{photo} {error}") from None
