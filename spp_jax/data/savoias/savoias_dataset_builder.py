"""TFDS builder of Savoias (Saraee, Jalal, Betke 2018, arXiv:1810.01771): visual complexity."""

from collections.abc import Iterator
from pathlib import Path

from spp_jax.data.folder import read_table
from spp_jax.data.photo_builder import Example, PhotoBuilder, find

__all__ = ["Builder"]


class Builder(PhotoBuilder):
    """Scores were voted within each category, and mean nothing across: ids begin with the category."""

    NEEDS = "scores.csv (file,score,category; scores of 0 to 1) and the pictures it names"
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """In the order of the table; *good* is the more complex half of the scale."""
        for row in read_table(find(folder, "scores.csv", needs=cls.NEEDS), required=("category",)):
            name = f"{row.others['category']}/{row.file}"
            yield Example(name, folder / row.file, row.score, row.score >= 0.5, name)
