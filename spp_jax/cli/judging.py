"""What commands share: the judge; of one photograph also the file to write, and what cannot be read."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spp_jax.data.decoding import UnreadableError
from spp_jax.errors import SppJaxError, UsageError
from spp_jax.scoring import Scorer

__all__ = ["judge_of", "new_file", "read_errors"]


def judge_of(judge: str, checkpoint: Path | None, **options: Any) -> Scorer:
    """The judge of a run's folder, or else the one that ships under a name; with options of either."""
    if checkpoint is None:
        return Scorer.from_pretrained(judge, **options)
    return Scorer.from_checkpoint(checkpoint, **options)


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
