"""TFDS builder of Savoias (Saraee, Jalal, Betke 2018, arXiv:1810.01771): visual complexity."""

from collections.abc import Iterator
from pathlib import Path

from spp_jax.data.folder import read_table
from spp_jax.data.photo_builder import Example, PhotoBuilder, find

__all__ = ["Builder"]


class Builder(PhotoBuilder):
    """Scores were voted within each category, and mean nothing across: see the figures of each category."""

    NEEDS = "scores.csv (file,score,category; scores of 0 to 1) and the pictures it names"
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS
    SCORE = "complexity"
    CATEGORIES = True

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """In the order of the table; *good* is the more complex half of the scale."""
        for row in read_table(find(folder, "scores.csv", needs=cls.NEEDS), required=("score", "category")):
            kind = row.others["category"]
            name = f"{kind}/{row.file}"
            yield Example(name, folder / row.file, row.score, row.score >= 0.5, name, category=kind)
