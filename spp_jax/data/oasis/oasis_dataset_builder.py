"""TFDS builder of OASIS (Kurdi, Lozano, Banaji 2017), rated for beauty by Brielmann and Pelli (2019)."""

from collections.abc import Iterator
from pathlib import Path

from spp_jax.data.photo_builder import Example, PhotoBuilder, find, part_of_scale, read_rows

__all__ = ["Builder"]


class Builder(PhotoBuilder):
    """The score is the mean beauty of 1 to 7, as (mean - 1) / 6; valence and arousal likewise.

    Scenes, objects and animals; pictures of persons are left out, as a photograph's beauty is not that of
    whom it shows. Beauty here follows what is in the picture: it goes along with valence.
    """

    NEEDS = (
        "OASIS.csv and the folder images (or Images) of the release (osf.io/6pnd7), and means_per_image.csv "
        "of the beauty ratings (github.com/aenneb/OASIS-beauty)"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS
    SCORE = "beauty"
    LABELS = ("valence", "arousal")
    CATEGORIES = True

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """In the order of OASIS.csv, whose themes the beauty ratings write without blanks."""
        table = find(folder, "OASIS.csv", needs=cls.NEEDS)
        means = find(folder, "means_per_image.csv", needs=cls.NEEDS)
        images = find(folder, "images", "Images", needs=cls.NEEDS)
        beauty = {
            row["Theme"]: part_of_scale(where, row["beauty_mean"], 1, 7)
            for where, row in read_rows(means, "Theme", "beauty_mean")
        }
        for where, row in read_rows(table, "Theme", "Category", "Valence_mean", "Arousal_mean"):
            name = row["Theme"].replace(" ", "")
            kind = row["Category"].lower()
            if kind == "person" or name not in beauty:
                continue
            further = tuple(
                part_of_scale(where, row[f"{label}_mean"], 1, 7) for label in ("Valence", "Arousal")
            )
            spaced, plain = images / f"{row['Theme']}.jpg", images / f"{name}.jpg"
            photo = spaced if spaced.is_file() else plain
            score = beauty[name]
            yield Example(name, photo, score, score >= 0.5, name, category=kind, labels=further)
