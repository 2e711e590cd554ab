"""TFDS builder of AVA (Murray, Marchesotti, Perronnin 2012): votes of 1 to 10, an official test list."""

from collections.abc import Iterator
from pathlib import Path

from spp_jax.data.photo_builder import Example, PhotoBuilder, find, read_text
from spp_jax.errors import UsageError

__all__ = ["Builder"]

_TEST = "aesthetics_image_lists/generic_test.jpgl"


class Builder(PhotoBuilder):
    """The score is the mean vote / 10; good is a mean above 5, as the literature has it, so above .5."""

    NEEDS = (
        f"AVA.txt, the folder images (or image) with ID.jpg, and {_TEST} for the official split "
        "(github.com/imfing/ava_downloader names the sources)"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = NEEDS
    SCORE = "beauty"
    MARKS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

    @classmethod
    def examples(cls, folder: Path) -> Iterator[Example]:
        """In the order of AVA.txt: number, ID, ten counts of votes, two tags, challenge."""
        table = find(folder, "AVA.txt", needs=cls.NEEDS)
        images = find(folder, "images", "image", needs=cls.NEEDS)
        listed = folder / _TEST
        test = set(read_text(listed).split()) if listed.is_file() else None
        for line, text in enumerate(read_text(table).splitlines(), 1):
            fields = text.split()
            try:
                name, counts = fields[1], [int(field) for field in fields[2:12]]
                mean = sum(mark * count for mark, count in enumerate(counts, 1)) / sum(counts)
            except (IndexError, ValueError, ZeroDivisionError):
                raise UsageError(
                    f"{table}, line {line}: expected a number, an ID and ten counts of votes"
                ) from None
            if len(counts) != 10:
                raise UsageError(f"{table}, line {line}: {len(counts)} counts of votes instead of ten")
            split = "" if test is None else "test" if name in test else "train"
            votes = tuple(count / sum(counts) for count in counts)
            yield Example(name, images / f"{name}.jpg", mean / 10, mean > 5, name, split, votes)
