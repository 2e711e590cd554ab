"""TFDS builder of BIQ2021 (Ahmed, Asif, Saleem, Younus 2022): 12,000 photographs, an official split."""

from collections.abc import Iterator
from pathlib import Path

from spp_jax.data.photo_builder import Example, PhotoBuilder, find, read_rows
from spp_jax.errors import UsageError

__all__ = ["Builder"]

_TABLES = {  # the release names them in either way
    "train": ("Train (Images and MOS).csv", "Train.csv"),
    "test": ("Test (Images and MOS).csv", "Test.csv"),
}
_SUBSETS = {"ss01": "gallery", "ss02": "taken for it", "ss03": "from the web"}


class Builder(PhotoBuilder):
    """The score is the MOS, of 30 people each, scaled to 0 to 1 by the source.

    Categories are the source's three subsets: photographs of a private gallery (ss01), taken for the data
    set with faults on purpose (ss02), and downloaded (ss03).
    """

    NEEDS = (
        "the folder Images and the two tables Train (Images and MOS).csv and Test (Images and MOS).csv, "
        "columns Image Name,MOS (github.com/nisarahmedrana/BIQ2021)"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS
    CATEGORIES = True

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """In the order of the tables, the training part first; a few scores lie a little outside 0 to 1."""
        images = find(folder, "Images", needs=cls.NEEDS)
        tables = {part: find(folder, *names, needs=cls.NEEDS) for part, names in _TABLES.items()}
        for part, table in tables.items():
            for where, row in read_rows(table, "Image Name", "MOS"):
                name = row["Image Name"]
                try:
                    score = min(max(float(row["MOS"]), 0.0), 1.0)
                except ValueError:
                    raise UsageError(f"{where}: the MOS {row['MOS']!r} is no number") from None
                kind = _SUBSETS.get(name[:4].lower(), "other")
                yield Example(name, images / name, score, score >= 0.5, name, part, category=kind)
