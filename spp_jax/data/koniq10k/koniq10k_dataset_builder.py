"""TFDS builder of KonIQ-10k (Hosu, Lin, Sziranyi, Saupe 2020): five marks, an official split."""

from collections.abc import Iterator
from pathlib import Path

from spp_jax.data.photo_builder import Example, PhotoBuilder, find, read_rows
from spp_jax.errors import UsageError

__all__ = ["Builder"]

_PARTS = {"training": "train", "validation": "validation", "test": "test"}


class Builder(PhotoBuilder):
    """The score is the mean of the votes of 1 to 5, as (mean - 1) / 4."""

    NEEDS = (
        "koniq10k_scores_and_distributions.csv, the folder 1024x768 (or 512x384) of pictures and, for the "
        "official split, koniq10k_distributions_sets.csv (database.mmsp-kn.de/koniq-10k-database.html)"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS
    MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """In the order of the score file."""
        table = find(folder, "koniq10k_scores_and_distributions.csv", needs=cls.NEEDS)
        images = find(folder, "1024x768", "512x384", needs=cls.NEEDS)
        sets = folder / "koniq10k_distributions_sets.csv"
        listed = read_rows(sets, "image_name", "set") if sets.is_file() else []
        parts = {row["image_name"]: row["set"] for _, row in listed}
        for where, row in read_rows(table, "image_name", *(f"c{mark}" for mark in range(1, 6))):
            name = row["image_name"]
            try:
                counts = [float(row[f"c{mark}"]) for mark in range(1, 6)]
                votes = tuple(count / sum(counts) for count in counts)
            except (ValueError, ZeroDivisionError):
                raise UsageError(f"{where}: c1 to c5 are no counts of votes") from None
            score = sum(mark * share for mark, share in enumerate(votes)) / 4
            split = _PARTS.get(parts.get(name, ""), "")
            if parts and not split:
                raise UsageError(f"{sets} names no part for {name}")
            yield Example(name, images / name, score, score >= 0.5, name, split, votes)
