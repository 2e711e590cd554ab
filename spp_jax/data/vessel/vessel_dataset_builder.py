"""TFDS builder of the scenes of Conwell, Graham, Boccagno, Vessel 2025, rated for beauty."""

from collections.abc import Iterator
from pathlib import Path

from spp_jax.data.photo_builder import Example, PhotoBuilder, find, part_of_scale, read_rows

__all__ = ["Builder"]

_SCENES = {"are": "exterior", "ari": "interior", "lsc": "landscape"}


class Builder(PhotoBuilder):
    """The score is the mean rating of 1 to 7, of 17 to 19 people, as (mean - 1) / 6.

    Photographs of buildings from outside and inside, and landscapes; paintings and faces, which the table
    names too, are left out.
    """

    NEEDS = (
        "vessel_means_per_image.csv, columns image_type,image_name,rating, and the folder images (or vessel) "
        "of the pictures (github.com/ColinConwell/AffectExMachina)"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS
    SCORE = "beauty"
    CATEGORIES = True

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """In the order of the table."""
        table = find(folder, "vessel_means_per_image.csv", needs=cls.NEEDS)
        images = find(folder, "images", "vessel", needs=cls.NEEDS)
        for where, row in read_rows(table, "image_type", "image_name", "rating"):
            if row["image_type"] not in _SCENES:
                continue
            score = part_of_scale(where, row["rating"], 1, 7)
            name, kind = row["image_name"], _SCENES[row["image_type"]]
            yield Example(name, images / name, score, score >= 0.5, name, category=kind)
