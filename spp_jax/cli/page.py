"""What `spp-jax score` does for a gallery: thumbnails on the way, and at the end the page."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from spp_jax.cli.scored import bar_hidden
from spp_jax.names import printable
from spp_jax.scoring import Entry, Scorer
from spp_jax.scoring.gallery import Gallery

__all__ = ["without_own", "write_gallery"]


def without_own(photos: Sequence[Path], gallery: Gallery) -> list[Path]:
    """The photographs that are no pictures of the gallery itself, where it lies in a folder of theirs."""
    found = [photo for photo in photos if not gallery.holds(photo)]
    if len(found) < len(photos):
        own = len(photos) - len(found)
        print(f"passed over: {own} of the gallery {printable(gallery.folder)}", file=sys.stderr)
    return found


def write_gallery(
    gallery: Gallery, scorer: Scorer, entries: Sequence[Entry], *, by: int, best: int, judge: str, title: str
) -> None:
    """Explain the best, make what thumbnails are missing, and write the page.

    Args:
        gallery: of these photographs.
        scorer: who judged.
        entries: ranked.
        by: of the judge's attributes, the one they are ranked by.
        best: how many are explained.
        judge: its name.
        title: of the page.
    """
    with tqdm(total=len(entries), unit="photo", desc="thumbnails", disable=bar_hidden(len(entries))) as bar:
        gallery.complete(scorer, entries, bar.update)
    count = min(best, sum(not entry.reason for entry in entries))
    with tqdm(total=count, unit="photo", desc="explain", disable=not (count and sys.stderr.isatty())) as bar:
        gallery.explain(scorer, entries, best, by=by, progress=bar.update)
    page = gallery.write(
        entries, scorer.attributes, by=by, digest=scorer.digest, best=best, judge=judge, title=title
    )
    print(f"gallery: {printable(page)}", file=sys.stderr)
